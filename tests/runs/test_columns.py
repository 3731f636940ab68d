"""Which figures of a log row are shown, and how a time is said."""

import pytest

from mgpo.runs.columns import figures, spent

ROW = {
    "loss": 0.0, "reward": 0.4375, "grounding/valid_share": 0.875, "grounding/hit_rate": 0.3125, "turns/1_tokens": 23.6,
    "turns/2_tokens": 5.0, "turns/1_truncated": 0.0, "frac_reward_zero_std": 0.25, "grad_norm": 1.5,
}  # fmt: skip


def test_a_row_of_rollouts_in_the_order_of_the_table():
    shown = figures(ROW)
    assert list(shown) == ["reward", "valid", "hit", "tokens per turn", "no signal"]
    assert shown["tokens per turn"] == "24 + 5" and shown["reward"] == "0.44"


def test_ten_turns_are_in_their_order():
    assert figures({"reward": 1.0} | {f"turns/{n}_tokens": n for n in (10, 2, 1)})["tokens per turn"] == "1 + 2 + 10"


def test_a_row_without_rollouts_shows_its_loss():
    assert figures({"loss": 6.125, "mean_token_accuracy": 0.5312, "entropy": 1.0}) == {
        "loss": "6.12",
        "tokens right": "0.53",
    }


def test_an_evaluation_shows_its_own_figures_and_no_groups():
    shown = figures({"reward": 0.9} | {f"eval_{key}": value for key, value in ROW.items()}, "eval_")
    assert shown["reward"] == "0.44" and "no signal" not in shown


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_figure_that_is_no_number_is_a_dash(missing):
    assert figures(ROW | {"reward": missing})["reward"] == "–"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(6.24, "6.2 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"),
     (7500, "2 h 05 min"), (86399, "23 h 59 min"), (273600, "3 d 04 h")],
)  # fmt: skip
def test_times_as_they_are_said(seconds, said):
    assert spent(seconds) == said

"""Who stands in the table, and which checkpoint stands for a method."""

import pytest

from mgpo.evaluation.evaluate import Result
from mgpo.experiments import rows as rows_module
from mgpo.experiments.plan import METHODS, TITLES, Plan
from mgpo.experiments.rows import BASES, ceiling, entrants, in_words
from mgpo.experiments.validation import best_step, by_kind


def curve(*accuracies):
    return [{"step": 10 * number, "validation/accuracy": share} for number, share in enumerate(accuracies)]


def result(category, correct):
    return Result("q", category, correct, None, None, None, 0.25)


def test_the_best_checkpoint_is_the_earliest_of_equals_and_may_be_the_base():
    assert best_step(curve(0.3, 0.5, 0.4)) == 10
    assert best_step(curve(0.3, 0.5, 0.5)) == 10
    assert best_step(curve(0.5, 0.4, 0.3)) == 0


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Rows of a plan of 20 steps whose baselines got worse, but for GRPO without a box."""
    curves = {"grpo": curve(0.4, 0.3, 0.2), "sft": curve(0.4, 0.45, 0.2), "direct": curve(0.4, 0.41, 0.42)}
    monkeypatch.setattr(rows_module, "models_of", lambda plan, m, s: [(0, "mgpo-tiny"), (10, f"{m}10"), (20, f"{m}20")])
    monkeypatch.setattr(rows_module, "validate_run", lambda plan, method, seed: curves[method])
    return {e.name: e for e in entrants(Plan(tmp_path, (0,), 20, 5), 0)}


def test_a_baseline_that_ends_below_its_start_is_shown_and_is_not_the_rival(table):
    assert table[TITLES["grpo"]].model == "mgpo-tiny" and table[TITLES["grpo"]].step == 0
    assert table[f"{TITLES['grpo']}, end"].step == 20
    assert table[TITLES["sft"]].model == "sft10" and table[f"{TITLES['sft']}, end"].step == 20
    assert table[TITLES["direct"]].step == 20 and f"{TITLES['direct']}, end" not in table


def test_mgpo_is_its_last_checkpoint_whatever_validation_says(table):
    assert table["MGPO"].step == 20 and table["MGPO"].controlled and list(table)[-1] == "MGPO"


def test_the_untrained_base_stands_there_in_every_prompt(table):
    assert [name for name in table if name in BASES] == list(BASES) == list(table)[:3]
    assert {table[name].method for name in BASES} == set(METHODS) - {"sft"}  # SFT asks as `direct` does
    assert table["base"].controlled and not table["base, asked directly"].controlled


def test_a_baseline_at_step_zero_is_asked_as_its_run_asks(table, tmp_path):
    assert table[TITLES["grpo"]].run == tmp_path / "grpo_seed0"


def test_what_the_overview_allows_and_accuracy_by_kind():
    found = [result("overview/count", True), result("by_colour/letter", True), result("by_place/dots", False)]
    assert ceiling(found) == pytest.approx((1 + 0.25 + 0.25) / 3)
    assert by_kind(found) == {"overview_accuracy": 1.0, "fine_print_accuracy": 0.5}
    assert by_kind(found[:1])["fine_print_accuracy"] is None


def test_the_result_is_told_in_words_whoever_is_better():
    def row(method, accuracy, seed, black=None, split="test"):
        controls = {"black_crop": black and {"accuracy": black}}
        return {
            "method": method,
            "split": split,
            "seed": seed,
            "n": 1000,
            "accuracy": accuracy,
            "chance": 0.25,
            "controls": controls,
        }

    rows = [row("base", 0.6, 0), row("base", 0.5, 1), row("MGPO", 0.4, 0, 0.3), row("MGPO", 0.42, 1, 0.32)]
    rows += [
        row(TITLES["grpo"], 0.34, 0),
        row(f"{TITLES['grpo']}, end", 0.2, 0),
        row("MGPO", 0.99, 0, 0.99, "ood_small"),
    ]
    assert in_words(rows) == (
        "Right answers to 1,000 questions of test (mean of 2 seeds): MGPO 41 %; the untrained base 55 %; GRPO, box and answer 34 %; "
        "guessing 25 %. Where MGPO names a valid box but is shown a black crop: 31 %."
    )
    assert "black" not in in_words([row("base", 0.6, 0), row("MGPO", 0.4, 0)])

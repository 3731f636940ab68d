"""`rollouts_ahead`: the next batch is sampled while the model is updated, with the weights of one batch before, and nothing else changes."""

import threading
from pathlib import Path

import datasets
import pytest
from support import TALL, WIDE, box, make_trainer, settings
from vllm_stand_in import StandIn

from mgpo.jsonl import read_jsonl

TURNS = ((box(WIDE), box(TALL)), ("\\boxed{A}", "It is \\boxed{B}"))
SERVER = {"use_vllm": True, "vllm_mode": "server", "freeze_vision_tower": True, "max_steps": 3, "learning_rate": 1e-4}
AHEAD = SERVER | {"rollouts_ahead": True}


@pytest.fixture
def run(monkeypatch, tmp_path, rows, random_tiny):
    """Trains; returns the steps that were logged and the server that was asked."""

    def train(prepare=lambda trainer, server: None, **changes):
        made = StandIn.install(monkeypatch, TURNS)
        trainer = make_trainer(random_tiny, tmp_path / f"run{len(list(tmp_path.iterdir()))}", rows, **changes)
        prepare(trainer, made[-1])
        trainer.train()
        lines, _ = read_jsonl(Path(trainer.args.output_dir) / "metrics.jsonl")
        return [line for line in lines if "loss" in line], made[-1]

    return train


def updates(server):
    """By batch, the pushes of weights that answered its turns."""
    return [{push for _, _, push in server.asked[i : i + 2]} for i in range(0, len(server.asked), 2)]


def test_each_batch_is_sampled_once_with_the_weights_of_one_batch_before(run):
    _, server = run(**AHEAD)
    assert [turn for turn, *_ in server.asked] == [0, 1] * 3
    assert updates(server) == [{1}, {1}, {2}]  # taking turns, they would be 1, 2, 3
    _, server = run(**SERVER)
    assert updates(server) == [{1}, {2}, {3}]


def test_a_batch_is_sampled_while_the_model_is_updated(run):
    """The server does not answer for the second batch before the first update has begun: taking turns would never get there."""
    updating = threading.Event()
    waited = []

    def prepare(trainer, server):
        loss = trainer._compute_loss

        def note(*args, **kwargs):
            updating.set()
            return loss(*args, **kwargs)

        trainer._compute_loss = note
        server.before_answering = lambda entry: len(server.asked) < 2 or waited.append(updating.wait(30))

    steps, _ = run(prepare, **AHEAD)
    assert len(steps) == 3 and waited and all(waited)


def test_without_an_update_in_between_it_is_the_same_training(run):
    """With a learning rate of 0, old weights are the same weights: rows, rewards, losses and gradients are those of taking turns."""
    ahead, _ = run(**AHEAD | {"learning_rate": 0.0})
    in_turns, _ = run(**SERVER | {"learning_rate": 0.0}, vllm_importance_sampling_mode="token_truncate")
    assert any(step["grad_norm"] > 0 for step in ahead)
    timed = ("time", "runtime", "per_second")
    for one, other in zip(ahead, in_turns, strict=True):
        same = {name for name in other if not any(word in name for word in timed)}
        assert {name: one[name] for name in same} == pytest.approx(
            {name: other[name] for name in same}, rel=1e-6, abs=1e-9
        )


def test_older_weights_are_corrected_by_the_ratio_of_probabilities(run):
    """Batches 2 and 3 were sampled one update before: the log-probabilities differ, and the ratio with them."""
    steps, _ = run(**AHEAD | {"learning_rate": 1e-2}, max_logprob_difference=100.0)
    apart = [step["sampling/sampling_logp_difference/mean"] for step in steps]
    ratios = [step["sampling/importance_sampling_ratio/mean"] for step in steps]
    assert apart[0] < 1e-5 and ratios[0] == pytest.approx(1, abs=1e-5)
    assert min(apart[1:]) > 1e-3 and all(abs(ratio - 1) > 1e-3 for ratio in ratios[1:])


def test_an_evaluation_in_between_asks_with_the_weights_of_its_own_step(run, rows):
    evaluated = {"eval_dataset": datasets.Dataset.from_list(rows[:2]), "eval_strategy": "steps", "eval_steps": 1}
    _, server = run(**AHEAD | {"max_steps": 2}, per_device_eval_batch_size=4, **evaluated)
    # Two batches of training with the first weights; an evaluation after each of two updates; nothing was sampled twice.
    assert [push for turn, _, push in server.asked if turn == 0] == [1, 1, 2, 3]


def test_accumulation_and_several_epochs(run):
    """An update of two parts, and six questions that are three epochs of six updates."""
    steps, server = run(**AHEAD | {"max_steps": 6}, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    assert len(steps) == 6 and [turn for turn, *_ in server.asked] == [0, 1] * 6
    assert all(0 <= max(pushes) - number <= 1 for number, pushes in enumerate(updates(server)))


def test_an_error_of_the_server_ends_the_run_with_its_words(run):
    def prepare(trainer, server):
        def fail(entry):
            if len(server.asked) >= 2:
                raise OSError("connection reset by the server")

        server.before_answering = fail

    with pytest.raises(ConnectionError, match="connection reset by the server"):
        run(prepare, **AHEAD)


def test_rollouts_that_became_likelier_are_not_left_out(tmp_path):
    ahead, in_turns = settings(tmp_path, **AHEAD), settings(tmp_path, **SERVER)
    assert ahead.vllm_importance_sampling_mode == "token_truncate"
    assert in_turns.vllm_importance_sampling_mode == "sequence_mask"  # TRL's
    assert (
        settings(tmp_path, **AHEAD, vllm_importance_sampling_mode="sequence_mask").vllm_importance_sampling_mode
        == "sequence_mask"
    )


def test_only_with_a_server_and_the_correction(tmp_path):
    with pytest.raises(ValueError, match="vllm_mode: server"):
        settings(tmp_path, rollouts_ahead=True)
    with pytest.raises(ValueError, match="serves 2 updates"):
        settings(tmp_path, **AHEAD, steps_per_generation=2)
    with pytest.raises(ValueError, match="vllm_importance_sampling_correction"):
        settings(tmp_path, **AHEAD, vllm_importance_sampling_correction=False)

"""Runs that are killed by SIGKILL at random moments end as the run that nobody killed, to the bit."""

import json

import pytest
import torch
from killing import killed_often, log_of, run_through
from safetensors.torch import load_file

from mgpo.tree import load_tree

TIMES = ("time", "runtime", "per_second")
LAST = "checkpoint-11"


@pytest.fixture(scope="module")
def questions(rows, tmp_path_factory):
    """Six questions to train on, four to evaluate with."""
    folder = tmp_path_factory.mktemp("questions")
    for split, some in (("train", rows), ("test", rows[:4])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


@pytest.fixture(scope="module")
def whole(random_tiny, questions, tmp_path_factory):
    """The run that nobody killed, and how long its phases took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, seconds = run_through(random_tiny, questions, folder)
    assert status == 0, log_of(folder)
    return folder, seconds


def untimed(value):
    """Without what a clock wrote."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if not any(part in str(key) for part in TIMES)}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def differing(one, other, where=""):
    """Places at which two trees of tensors and plain values are not equal."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) and one.dtype == other.dtype else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [place for key in one for place in differing(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return [place for i, pair in enumerate(zip(one, other)) for place in differing(*pair, f"{where}/{i}")]
    return [] if one == other or one != one and other != other else [f"{where}: {one!r} {other!r}"]


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_same_run(one, other):
    """Model, checkpoint, random generators, pending rollouts, logs, metrics and trajectories are equal."""
    assert not differing(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))
    for name in ("model", "optimizer", "process_0"):
        trees = [untimed(_any_tree(folder / LAST / f"{name}.safetensors")) for folder in (one, other)]
        assert not differing(*trees), name
    assert untimed(lines(one / "metrics.jsonl")) == untimed(lines(other / "metrics.jsonl"))
    states = [untimed(json.loads((folder / LAST / "trainer_state.json").read_text())) for folder in (one, other)]
    assert states[0] == states[1]
    seen = [sorted(file.name for file in (folder / "trajectories").glob("*.jsonl")) for folder in (one, other)]
    assert seen[0] == seen[1]
    for name in seen[0]:
        assert lines(one / "trajectories" / name) == lines(other / "trajectories" / name), name


def _any_tree(file):
    return load_file(file) if file.name.startswith("model") else load_tree(file)


def test_the_comparison_would_notice(whole, tmp_path):
    one, other = {"a": [torch.zeros(2), 1.5]}, {"a": [torch.zeros(2), 1.25]}
    assert differing(one, other) == ["/a/1: 1.5 1.25"]
    assert differing({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0000001])}) == ["/a"]
    rows = lines(whole[0] / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8, 10]
    assert sum("eval_loss" in row for row in rows) == 3 and "train_loss" in rows[-1]
    assert len({row["grad_norm"] for row in rows if "loss" in row}) == 5  # it learns in every step that is logged


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("phase", ["rollout", "update", "checkpoint", "evaluation"])
def test_a_run_killed_five_times_ends_as_the_one_that_was_not(phase, whole, random_tiny, questions, tmp_path):
    """Twenty kills in all, each at a random moment of its phase; each resumed run is killed again."""
    unharmed, seconds = whole
    assert killed_often(random_tiny, questions, tmp_path / "run", phase, 5, seconds[phase], seed=len(phase)) == 5
    assert_same_run(unharmed, tmp_path / "run")

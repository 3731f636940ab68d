"""Runs that are killed, terminated or left without a disk end as the run that nothing happened to, to the bit."""

import json
import os
import signal
import subprocess
import sys

import killing
import pytest
import torch
from killing import killed_often, log_of, run_through, terminated_at
from safetensors.torch import load_file

from mgpo.runs.checkpoints import flaw
from mgpo.runs.tree import load_tree

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
    """The run that nobody killed, and how many calls of functions its phases took."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, calls = run_through(random_tiny, questions, folder, counted=True)
    assert status == 0, log_of(folder)
    return folder, calls


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


def test_sigterm_finishes_the_step_saves_and_exits(whole, random_tiny, questions, tmp_path):
    """Step 5 is no step to save at, and the rollouts of its generation still wait for their second update."""
    folder = tmp_path / "run"
    assert terminated_at(random_tiny, questions, folder, 4) == 128 + signal.SIGTERM
    assert f"Start it again to go on from {folder}/checkpoint-5" in " ".join(log_of(folder).split())
    assert "Traceback" not in log_of(folder) and not (folder / "model.safetensors").exists()
    assert flaw(folder / "checkpoint-5") is None
    assert run_through(random_tiny, questions, folder)[0] == 0, log_of(folder)
    assert_same_run(whole[0], folder)


def test_a_full_disk_leaves_the_last_good_checkpoint(whole, random_tiny, questions, tmp_path):
    folder, full = tmp_path / "run", killing.files_no_larger_than_a_megabyte_after_the_first_checkpoint
    status, _ = run_through(random_tiny, questions, folder, prepare=full)
    told = " ".join(log_of(folder).split())
    assert status == 2 and "The checkpoint of step 6 could not be written" in told and "Traceback" not in told
    assert f"{folder}/checkpoint-3 is complete: the run goes on from there" in told
    assert {place.name for place in folder.iterdir() if place.is_dir()} == {"checkpoint-3", "trajectories"}
    assert run_through(random_tiny, questions, folder)[0] == 0, log_of(folder)
    assert_same_run(whole[0], folder)


def test_a_half_written_checkpoint_is_skipped_with_a_message(whole, random_tiny, questions, tmp_path):
    """Two kinds: one that its run was writing when it died, one that something else cut."""
    folder = tmp_path / "run"
    assert run_through(random_tiny, questions, folder)[0] == 0, log_of(folder)
    cut = folder / "checkpoint-9" / "optimizer.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    (folder / ".saving").mkdir()
    (folder / "checkpoint-11").rename(folder / ".saving" / "checkpoint-11")
    assert run_through(random_tiny, questions, folder)[0] == 0, log_of(folder)
    told = log_of(folder)
    assert f"{folder}/.saving/checkpoint-11 was being written when the run ended: it is skipped." in told
    assert f"{folder}/checkpoint-9 is skipped: optimizer.safetensors has 1,000 bytes instead of " in told
    assert_same_run(whole[0], folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("phase", ["rollout", "update", "checkpoint", "evaluation"])
def test_a_run_killed_five_times_ends_as_the_one_that_was_not(phase, whole, random_tiny, questions, tmp_path):
    """Twenty kills in all, each at a random moment of its phase; each resumed run is killed again."""
    unharmed, calls = whole
    assert calls[phase] > 100, "there are moments to be killed at"
    assert killed_often(random_tiny, questions, tmp_path / "run", phase, 5, calls[phase], seed=len(phase)) == 5
    assert_same_run(unharmed, tmp_path / "run")


def in_own_mounts(script, *arguments):
    """Run a shell script that may mount file systems of its own; skip where the machine does not allow that."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount in a namespace of their own")
    words = ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, arguments)]
    ran = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.slow
def test_a_real_disk_that_fills_up(random_tiny, questions, tmp_path):
    """A file system of 100 MB: two checkpoints and their rest fit, a third does not."""
    words = killing.command(random_tiny, questions, tmp_path / "disk" / "run")
    script = f"mount -t tmpfs -o size=100m tmpfs {tmp_path}/disk && {sys.executable} -m mgpo $@; echo status $?; "
    script += f"ls -A {tmp_path}/disk/run"
    (tmp_path / "disk").mkdir()
    _, told = in_own_mounts(script, *words)
    assert "status 2" in told and "No space left on device" in told and "could not be written" in told, told[-2000:]
    left = told.partition("status 2")[2].split()
    assert "checkpoint-3" in left and ".saving" not in left and "is complete: the run goes on from there" in told, told[
        -2000:
    ]


@pytest.mark.slow
def test_a_read_only_folder_is_refused_at_once(random_tiny, questions, tmp_path):
    (tmp_path / "run").mkdir()
    words = killing.command(random_tiny, questions, tmp_path / "run")
    script = f"mount -t tmpfs tmpfs {tmp_path}/run && mount -o remount,ro {tmp_path}/run && {sys.executable} -m mgpo $@"
    status, told = in_own_mounts(script, *words)
    assert status == 2 and "cannot be written to" in told and "Choose another --output_dir" in told, told[-2000:]
    assert "Traceback" not in told

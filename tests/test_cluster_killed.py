"""Two processes that are killed or told to stop, and started again, end as two that nothing happened to, to the bit: FSDP 2's too."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from killing import command
from safetensors.torch import load_file
from test_cluster import HERE, LORA, children, environment, logged, several
from test_killed import differing, lines, untimed

from mgpo.runs.checkpoints import flaw, last_complete, step_of
from mgpo.runs.tree import load_tree

SHARDED_STATE = ("--fsdp_state_dict_type", "SHARDED_STATE_DICT")
AS_LORA = tuple(word for name, value in LORA.items() for word in (f"--{name}", str(value)))
RUNS = {
    "multi_gpu": (),
    "fsdp2": (),
    "fsdp2 sharded": SHARDED_STATE,
    "multi_gpu lora": AS_LORA,
    "fsdp2 lora": AS_LORA,
    "fsdp2 sharded lora": (*SHARDED_STATE, *AS_LORA),
}
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
ZERO = [pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3")]
LAST = "checkpoint-8"


@pytest.fixture(scope="module")
def questions(rows, tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def started(name, model, questions, folder):
    """The run; accelerate is told that processes on CPU may split weights (`startup_sharded`)."""
    few = ("--per_device_train_batch_size", "2", "--eval_strategy", "no", "--max_steps", "8")
    own = command(model, questions, folder, *few, *RUNS.get(name, ("--optim", "adamw_torch")))
    words = [own[0], *map(str, several(2, name.split()[0])), *own[1:]]
    return subprocess.Popen(
        [sys.executable, "-m", "mgpo", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(HERE / "startup_sharded"),
    )  # fmt: skip


def to_the_end(*run):
    process = started(*run)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-4000:]
    return said


@pytest.fixture(scope="module", params=[*RUNS, *ZERO])
def whole(request, random_tiny, questions, tmp_path_factory):
    """A kind of run, and the folder of one that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    to_the_end(request.param, random_tiny, questions, folder)
    return request.param, folder


def tree(file):
    if file.suffix in (".bin", ".pt"):
        return torch.load(file, weights_only=True)
    return load_file(file) if "model" in file.name else load_tree(file)


def assert_same_end(one, other):
    """Model, each process's own state, and where they are files, optimizer and schedule; logs too."""
    files = [
        *one.glob("*model.safetensors"),
        *(one / LAST).glob("*.safetensors"),
        *(one / LAST).glob("*.bin"),
        *(one / LAST).glob("*.pt"),
    ]
    assert len(files) >= 3 and {"process_0.safetensors", "process_1.safetensors"} <= {file.name for file in files}
    for file in files:
        assert not differing(untimed(tree(file)), untimed(tree(other / file.relative_to(one)))), file
    assert untimed(lines(one / "metrics.jsonl")) == untimed(lines(other / "metrics.jsonl"))
    assert len({row["grad_norm"] for row in logged(one)}) == 4  # it learns


def killed(process, folder):
    """Launcher and processes, while they make the steps after the first checkpoint."""
    until(process, lambda: (folder / "checkpoint-3").is_dir())
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (folder / LAST).exists()


def told_to_stop(process, folder):
    """The launcher; twice, as a scheduler that is impatient, or that has told the processes too, may do."""
    until(process, lambda: (folder / "metrics.jsonl").exists())
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    last, _ = last_complete(folder)
    assert process.returncode == 128 + signal.SIGTERM and f"Start it again to go on from {last}" in said, said[-3000:]
    assert flaw(last) is None and step_of(last) < 8


def left_alone(process, folder):
    """The launcher alone is killed: its processes notice, save and stop, and the folder is free for the next start."""
    until(process, lambda: (folder / "metrics.jsonl").exists())
    os.kill(process.pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=120)  # returns when the last process has closed its output
    last, _ = last_complete(folder)
    assert f"Start it again to go on from {last}" in said and "because its launcher has ended" in said, said[-3000:]
    assert step_of(last) < 8


def until(process, there):
    while not there():
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("end", [killed, told_to_stop, left_alone])
def test_it_goes_on_as_if_nothing_had_happened(end, whole, random_tiny, questions, tmp_path):
    name, unharmed = whole
    run = name, random_tiny, questions, tmp_path / "run"
    end(started(*run), tmp_path / "run")
    assert f"Going on from {tmp_path}/run/checkpoint-" in to_the_end(*run)
    assert_same_end(unharmed, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_finished_run_that_is_started_again_keeps_its_model(whole, random_tiny, questions):
    name, folder = whole
    (before,) = folder.glob("*model.safetensors")
    weights = load_file(before)
    assert "nothing to train" in to_the_end(name, random_tiny, questions, folder)
    again = load_file(before)
    assert not [key for key, weight in weights.items() if not torch.equal(again[key], weight)]

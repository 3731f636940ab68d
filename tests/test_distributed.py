"""Two processes are one: the same global batch gives the same losses and weights; an error of one ends both."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed import CASES
from killing import command
from safetensors.torch import load_file
from test_killed import differing, untimed

from mgpo.runs.checkpoints import last_complete, step_of
from mgpo.runs.tree import load_tree

HERE = Path(__file__).parent
EXACT = 1e-5
FEW = ("--per_device_train_batch_size", "2", "--eval_strategy", "no")
"""Six questions are not enough for more on two processes; a file has no other split to evaluate on."""


def launched(*words, processes=2):
    """The command that runs a script or module in so many processes, of one thread each, and its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--main_process_port", str(port)]
    # --cpu would start one process, whatever --num_processes says; so this says several, and the environment says CPU.
    launcher += ["--multi_gpu", "--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    paths = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "COLUMNS": "400", "ACCELERATE_USE_CPU": "true"}
    return [sys.executable, *(launcher if processes > 1 else []), *map(str, words)], os.environ | env


def start(*words, processes=2):
    """Run it to its end."""
    words, env = launched(*words, processes=processes)
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=280)


@pytest.fixture(scope="module")
def questions(rows, tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def runs(random_tiny, questions, tmp_path_factory):
    """Folders of the run in one process and of the run in two."""
    folders = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"in_{processes}")
        ran = start(HERE / "distributed.py", random_tiny, questions, folder, processes=processes)
        assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
        folders.append(folder)
    return folders


def logged(folder):
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_same(case, runs):
    one, two = (logged(folder / case) for folder in runs)
    assert len(one) == len(two) == 3 and all(row["grad_norm"] > 0 for row in one)
    for key in (
        "loss",
        "grad_norm",
        "reward_std",
        "reward",
        "grounding/valid_share",
        "turns/1_tokens",
        "learning_rate",
    ):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=EXACT, abs=1e-7), key
    assert {row["grounding/valid_share"] for row in one} == {0.5}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_same(case, runs, random_tiny):
    """Per tensor; AdamW divides by the root of tiny second moments, so single entries may differ by more.

    Biases begin at zero and stay small, and attention's keys have biases whose gradient is nothing but rounding: so a hundred
    millionth per entry is allowed besides, a tenth of what float32 resolves at 1.
    """
    one, two = (load_file(folder / case / "model.safetensors") for folder in runs)
    began = load_file(random_tiny / "model.safetensors")
    for name, weight in one.items():
        assert (two[name] - weight).norm() < EXACT * weight.norm() + 1e-8 * weight.numel() ** 0.5, name
    assert sum(not torch.equal(weight, began[name]) for name, weight in one.items()) > 20


def test_rollouts_ahead_were_sampled_with_older_weights(runs):
    """So the cases above compared what they should: the first batch was sampled with its own weights, the others one update before."""
    for folder in runs:
        apart = [row["sampling/sampling_logp_difference/mean"] for row in logged(folder / "ahead")]
        assert apart[0] < 1e-5 and min(apart[1:]) > 1e-4


def test_single_entries_are_the_same_without_adam(runs):
    one, two = (load_file(folder / "sgd" / "model.safetensors") for folder in runs)
    for name, weight in one.items():
        assert torch.allclose(two[name], weight, rtol=EXACT, atol=EXACT * weight.abs().max().item()), name


def test_an_error_on_one_process_ends_all_with_its_message(random_tiny, questions, tmp_path):
    """The other one waits in a collective call; nobody waits for it."""
    words = command(
        random_tiny,
        questions,
        tmp_path / "run",
        *FEW,
        "--extra_reward_funcs",
        "distributed.fails_on_the_second_process",
    )
    begun = time.monotonic()
    ran = start("-m", "mgpo", *words)
    assert ran.returncode != 0 and "The answer key of question q3 is broken." in ran.stdout + ran.stderr
    assert time.monotonic() - begun < 60  # the start of two processes counts too
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert "rank      : 1" in ran.stderr  # the launcher names it


@pytest.mark.slow
def test_two_processes_resume_as_one_does(random_tiny, questions, tmp_path):
    """Each process goes on with its own random numbers, its own waiting rollouts and the order of its epoch, to the bit.

    Sixteen questions are eight steps: the run resumes in its second epoch, in the middle of a generation.
    """
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps(rows[i % 6] | {"id": f"q{i}"}) + "\n" for i in range(16)))
    stopped, whole = tmp_path / "run", tmp_path / "kept"
    for _ in range(2):
        ran = start("-m", "mgpo", *command(random_tiny, many, stopped, *FEW))
        assert ran.returncode == 0, ran.stderr[-3000:]
        if not whole.exists():
            shutil.copytree(stopped, whole)
            shutil.rmtree(stopped / "checkpoint-11")
    for name in ("model", "process_0", "process_1"):
        file = f"checkpoint-11/{name}.safetensors"
        read = load_file if name == "model" else load_tree
        assert not differing(untimed(read(whole / file)), untimed(read(stopped / file))), name
    assert untimed(logged(whole)) == untimed(logged(stopped))


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_on_all(random_tiny, questions, tmp_path):
    """The launcher hands the signal on; all processes stop after the same step, and a new start goes on from it."""
    folder = tmp_path / "run"
    words, env = launched("-m", "mgpo", *command(random_tiny, questions, folder, *FEW, "--max_steps", "60"))
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.1)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    last, skipped = last_complete(folder)
    assert last is not None and not skipped and f"Start it again to go on from {last}" in said, said[-3000:]
    ran = start("-m", "mgpo", *command(random_tiny, questions, folder, *FEW, "--max_steps", str(step_of(last) + 2)))
    assert ran.returncode == 0 and (folder / f"checkpoint-{step_of(last) + 2}").is_dir(), ran.stderr[-3000:]

"""Several processes and machines as `examples/cluster/` starts them: what they train, answer and leave is that of one process."""

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from rich.console import Console
from safetensors.torch import load_file
from test_killed import untimed

from mgpo.cli.launching import split
from mgpo.evaluation.request import EvaluationRequest
from mgpo.evaluation.results import read_records
from mgpo.evaluation.run import run_evaluation
from mgpo.runs.checkpoints import last_complete, step_of

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples" / "cluster"
BY_HAND = {
    "num_generations": 2, "max_steps": 4, "save_steps": 3, "logging_steps": 1, "trajectories_every": 1,
    "extra_reward_funcs": ["by_hand.even_ids"], "optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant", "beta": 0.0,
    "max_grounding_tokens": 40, "max_answer_tokens": 12, "max_reply_tokens": 160, "gradient_checkpointing": False,
    "use_cpu": True, "disable_tqdm": True, "seed": 0,
}  # fmt: skip
"""Settings of runs whose rollouts are written by hand, by their place in the global batch."""
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": r".*language_model.*\.(q_proj|v_proj|down_proj)"}


@pytest.fixture(scope="module")
def questions(rows, tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recipe(folder, model, questions, **changes):
    """A recipe of a run of seconds, whose output goes into the folder."""
    settings = BY_HAND | {"model_name_or_path": str(model), "dataset_name": str(questions)} | changes
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(*before):
    paths = [*map(str, before), str(HERE), os.environ["PYTHONPATH"]]
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400", "PYTHONPATH": os.pathsep.join(paths)}


def mgpo(*words, env=None, timeout=280):
    words = [sys.executable, "-m", "mgpo", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, env=env or environment(), timeout=timeout)


def several(processes, config="multi_gpu"):
    return "--accelerate_config", config, "--num_processes", processes, "--main_process_port", free_port()


def logged(folder):
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


def assert_same_training(one, other):
    """Losses, gradient norms and weights within 1e-5, and of the weights most have moved."""
    before, after = logged(one), logged(other)
    assert len(before) == len(after) == 4 and all(row["grad_norm"] > 0.01 for row in before)
    for key in ("loss", "grad_norm", "reward", "grounding/valid_share", "turns/1_tokens"):
        assert [row[key] for row in after] == pytest.approx([row[key] for row in before], rel=1e-5, abs=1e-7), key
    (name,) = (file.name for file in one.glob("*model.safetensors"))
    weights, others = load_file(one / name), load_file(other / name)
    assert weights.keys() == others.keys()
    for key, weight in weights.items():
        assert torch.allclose(others[key], weight, rtol=1e-5, atol=1e-5 * weight.abs().max().item()), key


# Two machines.


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_two_machines_train_what_one_process_trains(changes, random_tiny, questions, tmp_path):
    """The job for SLURM with two launchers, ranks 0 and 1, on loopback."""
    file = recipe(tmp_path, random_tiny, questions, **changes)
    words = ["--config", str(file), "--output_dir"]
    ran = subprocess.run(
        ["bash", EXAMPLES / "train.sbatch", "multi_gpu", *words, tmp_path / "two", "--per_device_train_batch_size", "2"],
        capture_output=True, text=True, env=slurm.environment(tmp_path / "slurm", free_port()), timeout=280,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    alone = mgpo("train", *words, tmp_path / "one", "--per_device_train_batch_size", 4)
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two/checkpoint-3/process_1.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_whose_time_is_over_saves_and_goes_on(random_tiny, questions, tmp_path):
    """SLURM signals launchers and processes alike, so that each process hears of it twice."""
    file, env = recipe(tmp_path, random_tiny, questions), slurm.environment(tmp_path / "slurm", free_port())
    words = ["--config", str(file), "--per_device_train_batch_size", "2", "--output_dir"]
    job = ["bash", EXAMPLES / "train.sbatch", "multi_gpu", *words]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [*job, stopped, "--max_steps", "40"]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    until_it_logs(process, stopped)
    (srun,) = children(process.pid)
    os.kill(srun, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    last, _ = last_complete(stopped)
    assert process.returncode == 128 + signal.SIGTERM and f"Start it again to go on from {last}" in said, said[-3000:]
    end = step_of(last) + 2
    for folder in (stopped, whole):
        done = subprocess.run(
            [*job, folder, "--max_steps", str(end)], capture_output=True, text=True, env=env, timeout=280
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert untimed(logged(stopped)) == untimed(logged(whole)) and len(logged(whole)) == end


def until_it_logs(process, folder, steps=1):
    while not (folder / "metrics.jsonl").exists() or len(logged(folder)) < steps:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_jobs_are_what_they_should_be(tmp_path):
    """Shell and directives are valid, and each word of the commands is known to accelerate or to `mgpo`."""
    directives = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name in ("job-name", "cpus-per-task", "mem", "time", "signal", "open-mode", "output"):
        directives.add_argument(f"--{name}")
    for name in ("nodes", "ntasks-per-node", "gpus-per-node"):
        directives.add_argument(f"--{name}", type=int, required=True)
    for job in EXAMPLES.glob("*.sbatch"):
        assert subprocess.run(["bash", "-n", job]).returncode == 0
        asked = directives.parse_args(re.findall(r"^#SBATCH (\S+)$", job.read_text(), re.MULTILINE))
        assert asked.ntasks_per_node == 1 and asked.gpus_per_node == 8 and asked.open_mode == "append"
        assert job.read_text().index("#SBATCH") < job.read_text().index("set -euo pipefail")
    words = shlex.split(said_by("train.sbatch", ["zero3", "--config", "r.yaml", "--max_steps", "3"], tmp_path))
    for_launcher, for_command = split(words, launch_command_parser())
    assert for_command == ["train", "--config", "r.yaml", "--max_steps", "3"]
    parsed = launch_command_parser().parse_args([*for_launcher, "--module", "mgpo", *for_command])
    assert (parsed.num_machines, parsed.num_processes, parsed.machine_rank) == (2, 2, 0)
    assert (
        parsed.main_process_ip == "127.0.0.1"
        and parsed.main_process_port == "29123"
        or parsed.main_process_port == 29123
    )
    words = shlex.split(said_by("eval.sbatch", ["--model", "m", "--n", "3"], tmp_path))
    assert split(words, launch_command_parser())[1] == ["eval", "--model", "m", "--n", "3"]


def said_by(job, words, folder):
    """The words after `mgpo` that a job starts on machine 0."""
    place = folder / job
    env = slurm.environment(place, 29123)
    (place / "bin").mkdir()
    (place / "bin/activate").write_text("")
    (place / "mgpo").write_text(
        '#!/bin/sh\n[ "$SLURM_NODEID" = 0 ] && for word in "$@"; do printf "%s " "$word"; done; true\n'
    )
    (place / "mgpo").chmod(0o755)
    return subprocess.run(
        ["bash", EXAMPLES / job, *words], capture_output=True, text=True, env=env | {"VENV": str(place)}
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_torchrun_trains_what_one_process_trains(random_tiny, questions, tmp_path):
    file = recipe(tmp_path, random_tiny, questions)
    words = ["--config", str(file), "--output_dir"]
    env = environment() | {"GPUS": "2", "PORT": str(free_port()), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    command = ["bash", EXAMPLES / "torchrun.sh", *words, tmp_path / "two", "--per_device_train_batch_size", "2"]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=280)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    alone = mgpo("train", *words, tmp_path / "one", "--per_device_train_batch_size", 4)
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert_same_training(tmp_path / "one", tmp_path / "two")


# Evaluation.


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The request of an evaluation with boxes and crops, and what one process answers."""
    request = EvaluationRequest(
        "mgpo-tiny", ("needle",), tmp_path_factory.mktemp("eval") / "one", n=11, batch_size=2, sampled=True,
        controls=("random_crop",), seed=3,
    )  # fmt: skip
    run_evaluation(request, Console(quiet=True))
    return request, answered(request.out)


def answered(folder):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_records(folder / "needle.jsonl")]


def eval_words(out):
    return [
        "eval",
        "--tasks",
        "needle",
        "--n",
        11,
        "--batch-size",
        2,
        "--sampled",
        "--controls",
        "random_crop",
        "--seed",
        3,
        "--out",
        out,
    ]


def test_an_evaluation_whose_process_was_killed_goes_on_in_another_number_of_processes(evaluated, tmp_path):
    request, whole = evaluated
    assert sum(record["valid_box"] for record in whole) > 4 and len({record["id"] for record in whole}) == 11
    out = tmp_path / "out"
    words = [sys.executable, "-m", "mgpo", *map(str, [*eval_words(out), *several(2)])]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (out / "needle.jsonl").exists() and not list(out.glob("needle.parts/*.jsonl")):
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.01)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL and "was killed by SIGKILL" in said, said[-3000:]
    assert not (out / "summary.json").exists()
    run_evaluation(EvaluationRequest(**vars(request) | {"out": out}), Console(quiet=True))
    assert answered(out) == whole and not (out / "needle.parts").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_evaluation_in_two_processes_has_the_records_of_one(evaluated, tmp_path):
    request, whole = evaluated
    ran = mgpo(*eval_words(tmp_path / "out"), *several(2))
    assert ran.returncode == 0 and ran.stdout.count("results: ") == 1, ran.stderr[-3000:]
    assert answered(tmp_path / "out") == whole
    rows = [json.loads((folder / "summary.json").read_text()) for folder in (request.out, tmp_path / "out")]
    for (row,) in rows:
        row.pop("seconds_per_question")
    assert rows[0] == rows[1]
    pictures = [
        sorted(file.name for file in (folder / "images").iterdir()) for folder in (request.out, tmp_path / "out")
    ]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_evaluation_of_which_all_were_killed_goes_on_in_three_processes(evaluated, tmp_path):
    """On two machines; the third process comes when it goes on."""
    out = tmp_path / "out"
    command = ["bash", EXAMPLES / "eval.sbatch", *map(str, eval_words(out)[1:])]
    env = slurm.environment(tmp_path / "slurm", free_port())
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (out / "needle.jsonl").exists() and not list(out.glob("needle.parts/*.jsonl")):
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.01)
    (srun,) = children(process.pid)
    for launcher in children(srun):
        for pid in (launcher, *children(launcher)):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (out / "summary.json").exists()
    ran = mgpo(*eval_words(out), *several(3))
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert answered(out) == evaluated[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_vllm_in_this_process_is_not_split_and_says_so(tmp_path):
    ran = mgpo("eval", "--engine", "vllm", "--n", 4, "--out", tmp_path / "out", *several(2))
    assert ran.returncode == 2 and "--engine vllm is not split over processes. Start a server" in ran.stderr
    assert not (tmp_path / "out").exists()

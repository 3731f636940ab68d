"""Runs the trainings of an experiment as processes of one thread each, a few at a time; stopped ones are resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.resources import files
from typing import Any

from rich.progress import Progress, TaskID

from mgpo.experiments.plan import TITLES, Plan, read_mark, write_mark

Job = tuple[str, int]
"""Method and seed."""


def train_all(plan: Plan, progress: Progress) -> None:
    """Train every method with every seed.

    Raises:
        ChildProcessError: a training failed; the message holds the end of its log.
    """
    waiting = [(method, seed) for seed in plan.seeds for method in plan.methods]
    bars = {job: progress.add_task(_name(job), total=plan.steps) for job in waiting}
    running: dict[Job, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < plan.workers:
                job = waiting.pop(0)
                if read_mark(plan.run(*job)) == plan.wanted(job[0], trained=True):
                    progress.update(bars[job], completed=plan.steps)
                else:
                    running[job] = _start(plan, *job)
            time.sleep(0.5)
            for job, process in list(running.items()):
                _show_steps(plan, job, bars[job], progress)
                if process.poll() is not None:
                    _finish(plan, job, process)
                    running.pop(job)
    finally:
        for process in running.values():
            process.terminate()


def _start(plan: Plan, method: str, seed: int) -> subprocess.Popen:
    """Start or resume a training. A folder that was begun from another base, recipe or number of steps is deleted."""
    folder = plan.run(method, seed)
    if read_mark(folder) not in (plan.wanted(method, trained=False), plan.wanted(method, trained=True)):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_mark(folder, plan.wanted(method, trained=False))
    settings = {
        "output_dir": folder, "max_steps": plan.steps, "seed": seed, "dataset_seed": seed, "disable_tqdm": True,
        "save_steps": plan.save_steps, "save_total_limit": plan.checkpoints + 1,
    }  # fmt: skip
    if method in plan.rates:
        settings["learning_rate"] = plan.rates[method]
    recipe = str(files("mgpo") / "recipes" / f"tiny_{method}.yaml")
    command = [sys.executable, "-m", "mgpo", "train", "--config", recipe]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def _finish(plan: Plan, job: Job, process: subprocess.Popen) -> None:
    folder = plan.run(*job)
    if process.returncode != 0:
        tail = "".join((folder / "log.txt").read_text().splitlines(keepends=True)[-15:])
        raise ChildProcessError(
            f"Training {job[0]} with seed {job[1]} failed. The end of {folder / 'log.txt'}:\n{tail}"
        )
    write_mark(folder, plan.wanted(job[0], trained=True))


def _name(job: Job) -> str:
    return f"train {TITLES[job[0]]}, seed {job[1]}"


def _show_steps(plan: Plan, job: Job, bar: TaskID, progress: Progress) -> None:
    file = plan.run(*job) / "metrics.jsonl"
    if not file.is_file():
        return
    last: dict[str, Any] = {}
    for line in file.read_text().splitlines()[-1:]:
        try:
            last = json.loads(line)
        except ValueError:  # being written
            return
    reward = f" reward {last['reward']:.2f}" if "reward" in last else ""
    progress.update(bar, completed=last.get("step", 0), description=_name(job) + reward)

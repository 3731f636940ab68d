"""The whole loop: train MGPO and the single-turn baseline from one base, evaluate all three, tell the story.

    mgpo demo --out runs/demo                    one seed, minutes on two CPU cores
    mgpo reproduce --out runs/reproduce-tiny     three seeds, 1,000 questions per split

Both are the same code with other numbers, and both can be stopped and started again: a finished training or split is
kept. Trainings run as processes of one thread each, two at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mgpo.data.question import Question
from mgpo.files import write_whole
from mgpo.report import print_results, write_report
from mgpo.worlds.needle import needle_rows
from mgpo.worlds.scene import EVAL_SPLITS

METHODS = ("mgpo", "grpo")
EVAL_SEED = 9_000
"""Evaluation questions of training seed s come from seed EVAL_SEED + s: never trained on."""
GALLERY = 12
BATCH = 50


@dataclass(frozen=True)
class Plan:
    """What an experiment does.

    Attributes:
        out: folder of everything it writes.
        seeds: training seeds.
        steps: training steps per method (equal, so both see the same number of rollouts).
        questions: evaluation questions per split and seed.
        workers: processes at a time.
    """

    out: Path
    seeds: tuple[int, ...]
    steps: int
    questions: int
    workers: int = 2


def run_experiment(plan: Plan) -> Path:
    """Train, evaluate, report.

    Returns:
        The report, `report.html` in the plan's folder; `results.json` lies beside it.

    Raises:
        ChildProcessError: a training failed; the message holds the end of its log.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    started = time.time()
    columns = (TextColumn("{task.description:<26}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        _train_all(plan, progress)
        rows = _evaluate_all(plan, progress)
    results = plan.out / "results.json"
    write_whole(results, json.dumps(rows, indent=1) + "\n")
    print_results(rows, console)
    report = _report(plan, rows, time.time() - started)
    console.print(f"results: {results}\nreport:  {report}")
    return report


@cache
def fingerprint() -> str:
    """What a result depends on besides its plan: base weights, recipes and the package's version."""
    package = files("mgpo")
    parts = [package / "assets" / "mgpo-tiny" / "model.safetensors"]
    parts += [package / "recipes" / f"tiny_{method}.yaml" for method in METHODS]
    digest = hashlib.sha256(version("mgpo").encode())
    for part in parts:
        digest.update(part.read_bytes())
    return digest.hexdigest()[:16]


def run_folder(plan: Plan, method: str, seed: int) -> Path:
    """Where a training writes."""
    return plan.out / f"{method}_seed{seed}"


def _train_all(plan: Plan, progress: Progress) -> None:
    waiting = [(method, seed) for seed in plan.seeds for method in METHODS]
    bars = {job: progress.add_task(f"train {job[0]}, seed {job[1]}", total=plan.steps) for job in waiting}
    running: dict[tuple[str, int], subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < plan.workers:
                job = waiting.pop(0)
                if _is_trained(plan, *job):
                    progress.update(bars[job], completed=plan.steps)
                else:
                    running[job] = _start_training(plan, *job)
            time.sleep(0.5)
            for job, process in list(running.items()):
                _show_steps(plan, job, bars[job], progress)
                if process.poll() is not None:
                    _finish_training(plan, job, process)
                    running.pop(job)
    finally:
        for process in running.values():
            process.terminate()


def _start_training(plan: Plan, method: str, seed: int) -> subprocess.Popen:
    """Start or go on; what was begun from another base, by another recipe or for another number of steps is thrown away."""
    folder = run_folder(plan, method, seed)
    if _mark(folder) not in (_wanted(plan, trained=False), _wanted(plan, trained=True)):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write_mark(folder, _wanted(plan, trained=False))
    recipe = str(files("mgpo") / "recipes" / f"tiny_{method}.yaml")
    command = [sys.executable, "-m", "mgpo", "train", "--config", recipe, "--output_dir", str(folder)]
    command += [
        "--max_steps",
        str(plan.steps),
        "--seed",
        str(seed),
        "--dataset_seed",
        str(seed),
        "--disable_tqdm",
        "true",
    ]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def _is_trained(plan: Plan, method: str, seed: int) -> bool:
    """A training of this plan has ended."""
    return _mark(run_folder(plan, method, seed)) == _wanted(plan, trained=True)


def _wanted(plan: Plan, trained: bool) -> dict[str, Any]:
    return {"from": fingerprint(), "steps": plan.steps, "trained": trained}


def _mark(folder: Path) -> dict[str, Any] | None:
    """What a run folder was begun for, and whether it is done; None if it was not begun by an experiment."""
    file = folder / "plan.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _write_mark(folder: Path, mark: dict[str, Any]) -> None:
    write_whole(folder / "plan.json", json.dumps(mark) + "\n")


def _finish_training(plan: Plan, job: tuple[str, int], process: subprocess.Popen) -> None:
    folder = run_folder(plan, *job)
    if process.returncode != 0:
        tail = "".join((folder / "log.txt").read_text().splitlines(keepends=True)[-15:])
        raise ChildProcessError(f"Training of {job[0]}, seed {job[1]} failed. The end of {folder / 'log.txt'}:\n{tail}")
    _write_mark(folder, _wanted(plan, trained=True))


def _show_steps(plan: Plan, job: tuple[str, int], bar: TaskID, progress: Progress) -> None:
    file = run_folder(plan, *job) / "metrics.jsonl"
    if not file.is_file():
        return
    last: dict[str, Any] = {}
    for line in file.read_text().splitlines()[-1:]:
        try:
            last = json.loads(line)
        except ValueError:  # being written
            return
    told = f" reward {last['reward']:.2f}" if "reward" in last else ""
    progress.update(bar, completed=last.get("step", 0), description=f"train {job[0]}, seed {job[1]}{told}")


def _evaluate_all(plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    jobs = [(split, seed) for seed in plan.seeds for split in EVAL_SPLITS]
    bar = progress.add_task("evaluate", total=len(jobs) * plan.questions)
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(plan.workers) as pool:
        futures = {pool.submit(evaluate_split, plan, split, seed): (split, seed) for split, seed in jobs}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            progress.advance(bar, plan.questions)
    return [row for seed in plan.seeds for split in EVAL_SPLITS for row in found[split, seed]]


def evaluate_split(plan: Plan, split: str, seed: int) -> list[dict[str, Any]]:
    """Rows of base, grpo and mgpo on one split; the same questions, each drawn once. Kept on disk when done."""
    file = plan.out / "evaluation" / f"{split}_seed{seed}.json"
    if file.is_file():
        rows = json.loads(file.read_text())
        kept = {"n": plan.questions, "steps": plan.steps, "from": fingerprint()}
        if all(kept.items() <= row.items() for row in rows):
            return rows
    import torch

    from mgpo.evaluation import Result, evaluate, summarise
    from mgpo.trajectories import save_trajectories

    torch.set_num_threads(1)
    runs = {method: run_folder(plan, method, seed) for method in reversed(METHODS)}
    policies = {"base": _policy_of("mgpo-tiny", runs["mgpo"])}
    policies |= {method: _policy_of(str(run), run) for method, run in runs.items()}
    results: dict[str, list[Result]] = {name: [] for name in policies}
    for number, first in enumerate(range(0, plan.questions, BATCH)):
        count = min(BATCH, plan.questions - first)
        questions = [Question.from_row(row) for row in needle_rows(split, EVAL_SEED + seed, count, first)]
        for name, (policy, protocol, limits) in policies.items():
            kept = GALLERY if first == 0 and split == "test" else 0
            seeded = (EVAL_SEED + seed) * 1000 + number
            results[name] += evaluate(policy, questions, protocol, limits, BATCH, seeded, kept)
    rows = []
    for name, (_, protocol, _) in policies.items():
        told = {"method": name, "split": split, "seed": EVAL_SEED + seed, "steps": plan.steps, "from": fingerprint()}
        rows.append(summarise(results[name], protocol, **told))
        if split == "test":
            episodes = [result.episode for result in results[name][:GALLERY]]
            save_trajectories(episodes, plan.out / "trajectories" / f"{name}_seed{seed}.jsonl")
    write_whole(file, json.dumps(rows, indent=1) + "\n")
    return rows


def _policy_of(model: str, run: Path) -> tuple[Any, Any, Any]:
    """A policy, and the protocol and token limits of a run: its own, or for the base MGPO's."""
    from mgpo.asking import limits_for, protocol_for
    from mgpo.engines.loading import trained_with
    from mgpo.engines.local import LocalPolicy

    policy, trained = LocalPolicy.load(model, dtype="float32"), trained_with(str(run))
    return policy, protocol_for(policy, trained=trained), limits_for(trained)


def _report(plan: Plan, rows: list[dict[str, Any]], seconds: float) -> Path:
    from mgpo.environment import describe_environment

    machine = describe_environment()
    seed = plan.seeds[0]
    about = {
        "what": "mgpo-tiny, trained on the needle world by MGPO (two turns) and by single-turn GRPO",
        "training": f"{plan.steps} steps of 16 questions x 8 rollouts for each method, seeds {list(plan.seeds)}",
        "evaluation": f"{plan.questions} fresh questions per split and seed; accuracies are greedy, valid-box and hit rates "
        "are of one sampled turn (temperature 1) per question",
        "time": f"{seconds / 60:.1f} minutes on {machine['cores']} cores since it was last started",
        "versions": ", ".join(f"{k} {v}" for k, v in machine["packages"].items() if v),
    }
    curves = {method.upper(): run_folder(plan, method, seed) / "metrics.jsonl" for method in METHODS}
    galleries = [
        ("base, before training", plan.out / "trajectories" / f"base_seed{seed}.jsonl"),
        ("MGPO, after training", plan.out / "trajectories" / f"mgpo_seed{seed}.jsonl"),
    ]
    return write_report(plan.out / "report.html", "mgpo-tiny learns where to look", about, rows, curves, galleries)

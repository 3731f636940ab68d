"""The whole loop: train MGPO and its baselines from one base, measure every checkpoint, evaluate with controls, report.

    mgpo demo --out runs/demo                    one seed, minutes on two CPU cores
    mgpo sweep --out runs/sweep-tiny             learning rates of every method, chosen on validation questions
    mgpo reproduce --out runs/reproduce-tiny     three seeds, 1,000 questions per split

All three run the same code with other numbers. They can be stopped and started again; finished trainings and splits are
not repeated.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mgpo.experiments.plan import TITLES, Plan
from mgpo.experiments.rows import in_words, rows_of
from mgpo.experiments.trainings import train_all
from mgpo.experiments.validation import PREFIX, best_step, validate_run
from mgpo.files import write_whole
from mgpo.pages.report import write_report
from mgpo.pages.tables import print_controls, print_results
from mgpo.worlds.scene import EVAL_SPLITS

SWEPT = {
    "mgpo": (1e-4, 1.5e-4, 2e-4, 3e-4),
    "grpo": (2e-5, 6e-5, 1.25e-4, 2.5e-4),
    "direct": (2e-5, 6e-5, 1.25e-4, 2.5e-4),
    "sft": (1e-5, 3e-5, 1e-4, 3e-4),
}
"""Learning rates that `mgpo sweep` tries."""
SWEEP_SEED = 100
"""Training seed of the sweep, which `mgpo reproduce` does not use."""


def run_experiment(plan: Plan) -> Path:
    """Train, validate, evaluate, report.

    Returns:
        The report, `report.html` in the plan's folder; `results.json` lies beside it.

    Raises:
        ChildProcessError: a training failed; the message holds the end of its log.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    started = time.time()
    with _progress(console) as progress:
        train_all(plan, progress)
        validations = _validate_all(plan, progress)
        rows = _evaluate_all(plan, progress)
    results = plan.out / "results.json"
    write_whole(results, json.dumps(rows, indent=1) + "\n")
    print_results(rows, console)
    print_controls(rows, console)
    console.print(in_words(rows), highlight=False)
    report = _report(plan, rows, validations, time.time() - started)
    console.print(f"results: {results}\nreport:  {report}")
    return report


def sweep(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Train each method at each of its rates and measure all checkpoints on validation questions.

    Returns:
        By method, a row per rate: `rate`, the best checkpoint's `step` and `accuracy`, the last one's accuracy (`end`)
            and the base's (`start`). Also written to `sweep.json`.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in plan.methods}
    console = Console()
    table = Table("method", "learning rate", "start", "best", "at step", "end", title="validation accuracy in percent")
    with _progress(console) as progress:
        for number, values in enumerate(zip(*(SWEPT[method] for method in plan.methods), strict=True)):
            rates = dict(zip(plan.methods, values))
            one = replace(plan, out=plan.out / f"rate{number}", rates=rates)
            one.out.mkdir(exist_ok=True)
            train_all(one, progress)
            for (method, _), rows in _validate_all(one, progress).items():
                best = next(row for row in rows if row["step"] == best_step(rows))
                key = PREFIX + "accuracy"
                found[method].append(
                    {"rate": rates[method], "start": rows[0][key], "accuracy": best[key], "step": best["step"],
                     "end": rows[-1][key], "rows": rows}
                )  # fmt: skip
            write_whole(plan.out / "sweep.json", json.dumps(found, indent=1) + "\n")
    for method, tried in found.items():
        for row in tried:
            shares = [f"{100 * row[name]:.1f}" for name in ("start", "accuracy", "end")]
            table.add_row(TITLES[method], f"{row['rate']:g}", *shares[:2], str(row["step"]), shares[2])
    console.print(table)
    return found


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _validate_all(plan: Plan, progress: Progress) -> dict[tuple[str, int], list[dict[str, Any]]]:
    jobs = [(method, seed) for method in plan.methods for seed in plan.seeds]
    bar = progress.add_task("measure checkpoints", total=len(jobs))
    with ProcessPoolExecutor(plan.workers) as pool:
        futures = {pool.submit(validate_run, plan, *job): job for job in jobs}
        found = {}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            progress.advance(bar)
    return {job: found[job] for job in jobs}


def _evaluate_all(plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    jobs = [(split, seed) for seed in plan.seeds for split in EVAL_SPLITS]  # `test` first: its controls take longest
    bar = progress.add_task("evaluate", total=len(jobs) * plan.questions)
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(plan.workers) as pool:
        futures = {pool.submit(rows_of, plan, split, seed): (split, seed) for split, seed in jobs}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            progress.advance(bar, plan.questions)
    return [row for seed in plan.seeds for split in EVAL_SPLITS for row in found[split, seed]]


def _report(plan: Plan, rows: list[dict[str, Any]], validations: dict, seconds: float) -> Path:
    from mgpo.runs.environment import describe_environment

    machine = describe_environment()
    seed = plan.seeds[0]
    about = {
        "result": in_words(rows),
        "experiment": "mgpo-tiny, trained on the needle world by MGPO (two turns) and by its baselines from the same base",
        "training": f"{plan.steps} steps of 16 questions for each method (8 rollouts per question, except for SFT); "
        f"seeds: {', '.join(map(str, plan.seeds))}",
        "baselines": "each is represented by its best checkpoint on the validation questions, which may be the untrained base; "
        "MGPO is represented by its last checkpoint",
        "evaluation": f"{plan.questions} fresh questions per split and seed; accuracies are of greedy decoding; "
        "valid-box and hit rates are of one turn per question, sampled at temperature 1, unless they are called greedy",
        "time": f"{seconds / 60:.1f} minutes on {machine['cores']} cores since the last start",
        "versions": ", ".join(f"{k} {v}" for k, v in machine["packages"].items() if v),
    }
    curves = {TITLES[method]: _curve(plan, method, seed, validations[method, seed]) for method in plan.methods}
    galleries = [
        ("base, before training", plan.out / "trajectories" / f"base_seed{seed}.jsonl"),
        ("MGPO, after training", plan.out / "trajectories" / f"mgpo_seed{seed}.jsonl"),
    ]
    return write_report(plan.out / "report.html", "mgpo-tiny before and after training", about, rows, curves, galleries)


def _curve(plan: Plan, method: str, seed: int, validated: list[dict[str, Any]]) -> Path:
    """Join a training's log and the measurements of its checkpoints in one file of metrics."""
    run = plan.run(method, seed)
    lines = (run / "metrics.jsonl").read_text().splitlines() + [json.dumps(row) for row in validated]
    write_whole(run / "curves.jsonl", "\n".join(lines) + "\n")
    return run / "curves.jsonl"

"""Measures all checkpoints of a training on the same validation questions, for curves and to choose the best one.

The questions are of the split `train` under a seed that no training uses. Step 0 is the untrained base, asked in the
method's own words, so a baseline that only gets worse is represented by its own starting point.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mgpo.experiments.plan import VALIDATION_SEED, Plan
from mgpo.files import write_whole
from mgpo.method.question import Question
from mgpo.worlds.needle import needle_rows

BATCH = 50
PREFIX = "validation/"


def validate_run(plan: Plan, method: str, seed: int) -> list[dict[str, Any]]:
    """One row per checkpoint, the base first: `step`, and shares under `validation/`; cached on disk when done."""
    run = plan.run(method, seed)
    file = run / "validation.json"
    if file.is_file():
        kept = json.loads(file.read_text())
        if kept["plan"] == plan.wanted(method, trained=True) and kept["n"] == plan.validation:
            return kept["rows"]
    import torch

    torch.set_num_threads(1)
    questions = [Question.from_row(row) for row in needle_rows("train", VALIDATION_SEED, plan.validation)]
    rows = [{"step": step} | _shares(path, run, questions) for step, path in models_of(plan, method, seed)]
    write_whole(file, json.dumps({"plan": plan.wanted(method, True), "n": plan.validation, "rows": rows}) + "\n")
    return rows


def models_of(plan: Plan, method: str, seed: int) -> list[tuple[int, str]]:
    """Steps and folders of a training's models, from the base to the end."""
    run = plan.run(method, seed)
    steps = sorted(int(re.findall(r"\d+", folder.name)[-1]) for folder in run.glob("checkpoint-*"))
    between = [(step, str(run / f"checkpoint-{step}")) for step in steps if step < plan.steps]
    return [(0, "mgpo-tiny"), *between, (plan.steps, str(run))]


def best_step(rows: list[dict[str, Any]]) -> int:
    """The step with the best validation accuracy, the earliest of equals."""
    return max(rows, key=lambda row: (row[PREFIX + "accuracy"], -row["step"]))["step"]


def _shares(model: str, run: Path, questions: list[Question]) -> dict[str, float]:
    from mgpo.evaluation.evaluate import evaluate, summarise
    from mgpo.experiments.asking import asked_as

    policy, protocol, limits = asked_as(model, run)
    results = evaluate(policy, questions, protocol, limits, BATCH, VALIDATION_SEED)
    row = summarise(results, protocol) | by_kind(results)
    names = {
        "accuracy": "accuracy", "overview_accuracy": "overview_accuracy", "fine_print_accuracy": "fine_print_accuracy",
        "valid_box_rate": "valid_share", "hit_given_valid": "hit_given_valid",
        "greedy_hit_given_valid": "greedy_hit_given_valid", "iou": "iou", "crop_only_accuracy": "crop_only",
    }  # fmt: skip
    return {PREFIX + name: row[key] for key, name in names.items() if row.get(key) is not None}


def by_kind(results: list[Any]) -> dict[str, float | None]:
    """Accuracy on questions that the overview answers, and on fine print."""
    kinds: dict[str, list[bool]] = {"overview_accuracy": [], "fine_print_accuracy": []}
    for result in results:
        of = "overview_accuracy" if result.category.startswith("overview/") else "fine_print_accuracy"
        kinds[of].append(result.correct)
    return {name: sum(right) / len(right) if right else None for name, right in kinds.items()}

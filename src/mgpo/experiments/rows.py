"""Rows of an experiment's table: the untrained base in every method's words, every trained model, and their controls.

base                     MGPO's two turns, with all controls on `test`
base, asked as GRPO      box and answer in one turn
base, asked directly     the answer in one turn
SFT, GRPO ...            the best checkpoint on validation, which may be the base (step 0)
SFT, GRPO ..., end       the last checkpoint, where that is another one
MGPO                     the last checkpoint, with all controls on `test`
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mgpo.evaluation.controls import Control, controls_beside
from mgpo.experiments.asking import asked_as
from mgpo.experiments.plan import EVALUATION_SEED, TITLES, Plan
from mgpo.experiments.validation import best_step, by_kind, models_of, validate_run
from mgpo.files import write_whole
from mgpo.method.question import Question
from mgpo.worlds.needle import needle_rows

CONTROLLED = "test"
"""The split on which the controls are asked."""
GALLERY = 12
BATCH = 50
BASES = {"base": "mgpo", "base, asked as GRPO": "grpo", "base, asked directly": "direct"}


@dataclass(frozen=True)
class Entrant:
    """The model of a row: its folder, the run or the method that decides how it is asked, and its training step."""

    name: str
    model: str
    run: Path | None
    method: str
    step: int
    controlled: bool


def entrants(plan: Plan, seed: int) -> Iterator[Entrant]:
    """The rows of one seed, in the order of the table."""
    for name, method in BASES.items():
        yield Entrant(name, "mgpo-tiny", None, method, 0, method == "mgpo")
    for method in sorted(plan.methods, key=list(TITLES)[::-1].index):
        models = dict(models_of(plan, method, seed))
        best = plan.steps if method == "mgpo" else best_step(validate_run(plan, method, seed))
        run = plan.run(method, seed)
        yield Entrant(TITLES[method], models[best], run, method, best, method == "mgpo")
        if best != plan.steps:
            yield Entrant(f"{TITLES[method]}, end", str(run), run, method, plan.steps, False)


def rows_of(plan: Plan, split: str, seed: int) -> list[dict[str, Any]]:
    """All rows on one split, with the same questions for all models, each drawn once; cached on disk when done."""
    file = plan.out / "evaluation" / f"{split}_seed{seed}.json"
    if file.is_file():
        kept = json.loads(file.read_text())
        if kept["measured"] == plan.measured:
            return kept["rows"]
    import torch

    from mgpo.evaluation.evaluate import Result, evaluate_batches, summarise
    from mgpo.runs.trajectories import save_trajectories

    torch.set_num_threads(1)
    everyone = list(entrants(plan, seed))
    asked = [asked_as(e.model, e.run, None if e.run else e.method) for e in everyone]
    results: list[list[Result]] = [[] for _ in everyone]
    records: list[list[dict[str, Any]]] = [[] for _ in everyone]
    for number, first in enumerate(range(0, plan.questions, BATCH)):
        count = min(BATCH, plan.questions - first)
        questions = [Question.from_row(row) for row in needle_rows(split, EVALUATION_SEED + seed, count, first)]
        for which, (entrant, (policy, protocol, limits)) in enumerate(zip(everyone, asked)):
            controls = tuple(Control) if entrant.controlled and split == CONTROLLED else ()
            seeded = (EVALUATION_SEED + seed) * 1000 + number
            [batch] = evaluate_batches(policy, questions, protocol, limits, BATCH, seeded, controls=controls)
            records[which] += [result.record() for result in batch]
            for result in batch:
                keep = split == CONTROLLED and len(results[which]) < GALLERY
                result.episode = result.episode if keep else None
                results[which].append(result)
    rows = []
    for entrant, (_, protocol, _), found, lines in zip(everyone, asked, results, records):
        named = {"method": entrant.name, "split": split, "seed": EVALUATION_SEED + seed, "checkpoint": entrant.step}
        row = summarise(found, protocol, **named) | by_kind(found)
        rows.append(row | {"overview_ceiling": ceiling(found), "controls": controls_beside(lines)})
        if entrant.controlled and split == CONTROLLED:
            name = f"{entrant.name.lower()}_seed{seed}.jsonl"
            save_trajectories([result.episode for result in found[:GALLERY]], plan.out / "trajectories" / name)
    write_whole(file, json.dumps({"measured": plan.measured, "rows": rows}, indent=1) + "\n")
    return rows


def ceiling(results: list[Any]) -> float:
    """Expected accuracy of a model that answers all overview questions, and guesses the fine print."""
    return sum(1.0 if r.category.startswith("overview/") else r.chance for r in results) / len(results)


def in_words(rows: list[dict[str, Any]]) -> str:
    """The result on `CONTROLLED` in sentences: MGPO beside the other models, and without its crop.

    Args:
        rows: of `rows_of`, of all seeds; accuracies are means over them.
    """
    here = [row for row in rows if row["split"] == CONTROLLED]
    accuracies: dict[str, list[float]] = {}
    for row in here:
        accuracies.setdefault(row["method"], []).append(row["accuracy"])
    percent = {name: f"{100 * fmean(found):.0f} %" for name, found in accuracies.items()}
    rivals = [f"{name} {percent[name]}" for name in TITLES.values() if name in percent and name != TITLES["mgpo"]]
    told = "; ".join([f"the untrained base {percent['base']}", *rivals, f"guessing {100 * here[0]['chance']:.0f} %"])
    seeds = len({row["seed"] for row in here})
    asked = f"{here[0]['n']:,} questions of {CONTROLLED}" + (f" (mean of {seeds} seeds)" if seeds > 1 else "")
    sentences = [f"Right answers to {asked}: MGPO {percent[TITLES['mgpo']]}; {told}."]
    black = [row["controls"]["black_crop"] for row in here if row["method"] == TITLES["mgpo"]]
    if all(black):
        share = f"{100 * fmean(control['accuracy'] for control in black):.0f} %"
        sentences.append(f"Where MGPO names a valid box but is shown a black crop: {share}.")
    return " ".join(sentences)

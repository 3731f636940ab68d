"""The evaluations of a run: found beside it, checked against its weights, and shown as a table of its card.

Only summaries are shared (shares of right answers, boxes and hits). The questions, answers and pictures stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from mgpo.evaluation.results import weights_of

COLUMNS = (
    "task",
    "split",
    "asked as",
    "questions",
    "right",
    "95 %",
    "valid boxes",
    "hits",
    "pixels per image, at most",
)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: its name and its rows, one per task, without places of this machine."""

    name: str
    rows: tuple[dict[str, Any], ...]


def evaluations_of(run: Path, hub_id: str, named: Sequence[Path] = ()) -> tuple[list[Evaluation], list[str]]:
    """Evaluations to share with a run, and a sentence about each that is left out.

    Args:
        run: the run folder.
        hub_id: what the model is called in the rows from now on.
        named: results folders that the user names. Others are looked for in the run folder, beside it, and in `eval/`
            beside it and beside the folder above, where `mgpo eval` writes.

    Raises:
        ValueError: a folder that the user names holds no results, or those of another model.
    """
    found: dict[Path, Evaluation] = {}
    notes = []
    for folder in named:
        if why := _unfit(folder, run, exact=False):
            raise ValueError(f"--results {folder}: {why}")
        found[folder.resolve()] = _read(folder, hub_id)
    for folder in _beside(run):
        if folder.resolve() in found or not _is_of(folder, run):
            continue
        if why := _unfit(folder, run, exact=True):
            notes.append(f"{folder} is left out: {why}")
            continue
        read = _read(folder, hub_id)
        if same := next((place for place, other in found.items() if _figures(other) == _figures(read)), None):
            notes.append(f"{folder} is left out: it holds the same figures as {same}.")
        else:
            found[folder.resolve()] = read
    names = [evaluation.name for evaluation in found.values()]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"Several results folders are called {name}. Rename one: they would be one file on the hub."
            )
    return list(found.values()), notes


def table(evaluations: Sequence[Evaluation]) -> str:
    """All rows as a Markdown table, in percent."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in (row for evaluation in evaluations for row in evaluation.rows):
        low, high = row["ci95"]
        cells = [row["task"], row["split"], row["protocol"], row["n"], _percent(row["accuracy"]),
                 f"{100 * low:.0f} to {100 * high:.0f}", _percent(row["valid_box_rate"]), _percent(row["hit_rate"]),
                 f"{row['pixel_budget']:,}"]  # fmt: skip
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def metadata(evaluations: Sequence[Evaluation]) -> list[EvalResult]:
    """All accuracies in the form in which the hub reads them from a card (percent)."""
    return [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type=row["task"],
            dataset_name=row["task"],
            dataset_split=row["split"],
            dataset_args={"questions": row["n"], "protocol": row["protocol"], "seed": row["seed"]},
            metric_type="accuracy",
            metric_name=f"accuracy, {row['protocol']}, percent",
            metric_value=round(100 * row["accuracy"], 1),
        )
        for evaluation in evaluations
        for row in evaluation.rows
    ]


def _beside(run: Path) -> Iterator[Path]:
    above = run.resolve().parent
    for place in dict.fromkeys((run.resolve(), above, above / "eval", above.parent / "eval")):
        if place.is_dir():
            yield from sorted(folder for folder in place.iterdir() if (folder / "settings.json").is_file())


def _is_of(folder: Path, run: Path) -> bool:
    try:
        model = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["model"]
        return Path(model).resolve() == run.resolve()
    except (ValueError, KeyError, TypeError, OSError):
        return False  # some other program's settings.json


def _unfit(folder: Path, run: Path, exact: bool) -> str:
    """Why an evaluation cannot be shared with a run; empty if it can.

    Args:
        exact: also compare the dates of the weights. Two trainings of one model write files of the same names and sizes.
    """
    settings, summary = folder / "settings.json", folder / "summary.json"
    if not settings.is_file() or not summary.is_file():
        return "it holds no finished evaluation (settings.json and summary.json). Run its mgpo eval again to finish it."
    held = json.loads(settings.read_text(encoding="utf-8"))
    then = held.get("weights") if isinstance(held, dict) else None
    if not isinstance(then, list):
        return "it holds no evaluation of mgpo eval."
    now = weights_of(run)
    if not exact:
        then, now = [entry[:2] for entry in then], [entry[:2] for entry in now]
    if then != now:
        more = "" if not exact else f" If the run was only copied since, name it by --results {folder}."
        return f"it was made with other weights than those in {run}. Evaluate the run again.{more}"
    return ""


def _read(folder: Path, hub_id: str) -> Evaluation:
    rows = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return Evaluation(folder.name, tuple(row | {"model": hub_id, "task": Path(row["task"]).name} for row in rows))


def _figures(evaluation: Evaluation) -> list[dict[str, Any]]:
    """All figures but the time: of an evaluation that was made twice they are the same."""
    return [{key: value for key, value in row.items() if key != "seconds_per_question"} for row in evaluation.rows]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"

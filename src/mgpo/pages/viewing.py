"""`mgpo view RUN`: shows a training run or an evaluation as one page in the browser.

The page is `mgpo.pages.report`'s: curves, results, and a gallery that can be filtered by right and wrong, box and
category.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mgpo.pages.report import write_report

NEWEST, CARDS = 2, 60
"""Steps of a training whose trajectories are compared (the first and the last), and questions shown at most."""


def write_view(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder.

    Args:
        run: a folder that `mgpo train`, `mgpo eval` or `mgpo demo` wrote.
        out: where to write it; `view.html` in the run's folder if None.

    Raises:
        ValueError: the folder holds no run.
    """
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder. Name the folder of a training run or of an evaluation.")
    out = out or run / "view.html"
    if (run / "settings.json").is_file():
        return _evaluation(run, out)
    if (run / "metrics.jsonl").is_file() or (run / "trajectories").is_dir():
        return _training(run, out)
    raise ValueError(
        f"{run} holds neither metrics.jsonl (a training run) nor settings.json (an evaluation). Name a folder that mgpo train "
        "or mgpo eval wrote."
    )


def _training(run: Path, out: Path) -> Path:
    settings = yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").is_file() else {}
    keys = (
        "method",
        "model_name_or_path",
        "dataset_name",
        "max_steps",
        "num_generations",
        "learning_rate",
        "max_pixels",
    )
    about = {key.replace("_", " "): str(settings[key]) for key in keys if settings.get(key) is not None}
    steps = sorted((run / "trajectories").glob("*.jsonl"))
    shown = [steps[0], steps[-1]] if len(steps) > NEWEST - 1 else steps
    galleries = [(_caption(file), file) for file in shown]
    curves = {run.name: run / "metrics.jsonl"} if (run / "metrics.jsonl").is_file() else {}
    return write_report(out, f"Training: {run.name}", about, [], curves, galleries, CARDS)


def _caption(file: Path) -> str:
    step = file.stem.removeprefix("step_").lstrip("0") or "0"
    return f"step {step}" if file.stem.startswith("step_") else file.stem


def _evaluation(run: Path, out: Path) -> Path:
    settings = json.loads((run / "settings.json").read_text())
    about = {
        key.replace("_", " "): str(settings[key])
        for key in ("model", "protocol", "max_turns", "min_pixels", "pixel_budget")
    }
    summary = run / "summary.json"
    rows: list[dict[str, Any]] = json.loads(summary.read_text()) if summary.is_file() else []
    about |= {row["task"]: _scores(row) for row in rows}
    rows = [row | {"split": row["task"]} for row in rows]
    names = [file for file in sorted(run.glob("*.jsonl")) if file.name != "judge.jsonl"]
    return write_report(out, f"Evaluation: {run.name}", about, rows, {}, [(f.stem, f) for f in names], CARDS)


def _scores(row: dict[str, Any]) -> str:
    figures = [f"{name} {100 * value:.1f} %" for name, value in row.get("figures", {}).items()]
    return ", ".join([f"{100 * row['accuracy']:.1f} % of {row['n']} questions right", *figures])

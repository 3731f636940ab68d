"""Results of an evaluation on disk: one JSON line per question, with the settings beside them; a second start resumes.

runs/eval/mine/settings.json    what was evaluated, and how
runs/eval/mine/vstar.jsonl      one line per question: turns, boxes, answer, measurements
runs/eval/mine/summary.json     one row per task
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mgpo.files import write_whole


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Claim a folder for these settings, or resume an evaluation with the same settings.

    Raises:
        ValueError: the folder holds results under other settings; the message names the first of them.
    """
    file = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if file.is_file():
        before = json.loads(file.read_text())
        changed = [key for key in settings | before if settings.get(key) != before.get(key)]
        if changed and any(folder.rglob("*.jsonl")):  # a start that answered nothing does not claim the folder
            changes = ", ".join(f"{key}: {before.get(key)!r} -> {settings.get(key)!r}" for key in changed[:4])
            raise ValueError(
                f"{folder} holds results from other settings ({changes}). Choose another --out, or delete the folder."
            )
        if not changed:
            return
    write_whole(file, json.dumps(settings, indent=1) + "\n")


def weights_of(model: Path) -> list[list[Any]]:
    """Names, sizes and dates of a local model's weights, so that a newer model in the same folder is noticed."""
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def finished_batches(file: Path, batch_size: int, total: int) -> list[dict[str, Any]]:
    """The whole batches in a results file, or its first `total` results; the rest of an unfinished batch is cut off."""
    if not file.is_file():
        return []
    records = []
    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    if len(records) >= total:
        return records[:total]
    whole = len(records) // batch_size * batch_size
    write_whole(file, "".join(line_of(record) for record in records[:whole]))
    return records[:whole]


def line_of(record: dict[str, Any]) -> str:
    """A record as a line of a results file."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def append(file: Path, records: list[dict[str, Any]]) -> None:
    """Add the results of a batch; they are on disk when this returns."""
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(map(line_of, records)))
        out.flush()
        os.fsync(out.fileno())


def read_records(file: Path) -> list[dict[str, Any]]:
    """All lines of a results file.

    Raises:
        ValueError: a line is no JSON, e.g. because the run was killed; running the evaluation again repairs it.
    """
    records = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{file} line {number} is not valid JSON: {error}. Run the evaluation again to repair the file."
            ) from error
    return records


def add_summary(folder: Path, row: dict[str, Any]) -> None:
    """Put a task's row into `summary.json`, replacing an earlier one of the task."""
    file = folder / "summary.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    rows = [other for other in rows if other["task"] != row["task"]] + [row]
    write_whole(file, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")

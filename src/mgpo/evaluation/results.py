"""Results of an evaluation on disk: one JSON line per question, with the settings beside them; a second start resumes.

runs/eval/mine/settings.json    what was evaluated, and how
runs/eval/mine/vstar.jsonl      one line per question: turns, boxes, answer, measurements
runs/eval/mine/summary.json     one row per task
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mgpo.files import write_whole
from mgpo.runs.folder import only_one


def claim(
    folder: Path, settings: dict[str, Any], held: ExitStack, beside: bool = False, moved: bool = False
) -> tuple[Path, str]:
    """Claim a folder for these settings, or resume an evaluation with the same settings. It is locked before anything is compared.

    Evaluations of different tasks share a folder if all else is equal: `data` says where each task's questions come from.

    Args:
        folder: the folder.
        settings: what is evaluated, and how.
        held: takes the lock of the folder, until it is closed.
        beside: if another process writes to the folder, or it holds results under other settings, take the first of `folder-2`,
            `folder-3`, ... that is free.
        moved: another address of the endpoint is no other setting.

    Returns:
        The folder that is claimed, and a sentence if it is newly claimed instead of `folder`; else an empty text.

    Raises:
        ValueError: the folder holds results under other settings or is being written to, and `beside` is false, or its settings
            cannot be read.
    """
    settings = json.loads(json.dumps(settings))
    place, number, why = folder, 1, ""
    while taken := _taken(place, settings, held, beside, moved):
        why = why or taken
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    is_new = not _holds_results(place)
    data = {} if is_new else _data(_read_settings(place))
    write_whole(place / "settings.json", json.dumps(settings | {"data": data | settings["data"]}, indent=1) + "\n")
    return place, f"{folder} {why}, so these go into {place}" if why and is_new else ""


def _taken(place: Path, settings: dict[str, Any], held: ExitStack, beside: bool, moved: bool) -> str:
    """Why a folder cannot be used; empty if it can: then it is locked."""
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as lock:
        try:
            lock.enter_context(only_one(place))
        except ValueError:
            if not beside:
                raise
            return "is being written to by another process"
        why = _differences(place, settings, moved)
        if not why:
            held.push(lock.pop_all())
            return ""
    if not beside:
        raise ValueError(
            f"{place} holds results from other settings ({why}). Choose another --out, or delete the folder."
            + (" If the same model is served there now, add --endpoint-moved." if why.startswith("endpoint: ") else "")
        )
    return f"holds results from other settings ({why})"


def _differences(folder: Path, settings: dict[str, Any], moved: bool) -> str:
    """How the settings of the results in a folder differ; empty if they do not, or if it holds none."""
    if not _holds_results(folder):
        return ""
    before = _read_settings(folder)
    changed = []
    for key in settings | before:
        then, now = before.get(key), settings.get(key)
        if key == "data":  # a task that only one of them has is no difference
            old, new = _data(before), _data(settings)
            shared = sorted(old.keys() & new.keys())
            then, now = ({task: os.path.normpath(place[task]) for task in shared} for place in (old, new))
        if key == "endpoint" and moved and then and now:
            continue
        if then != now:
            changed.append("the model's weights" if key == "weights" else f"{key}: {then!r} -> {now!r}")
    return ", ".join(changed[:4])


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / "settings.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Choose another --out, or delete the folder.") from error


def _data(settings: dict[str, Any]) -> dict[str, str]:
    data = settings.get("data")
    return data if isinstance(data, dict) else {}


def _holds_results(folder: Path) -> bool:
    """Whether an evaluation has answered anything there: a start that answered nothing does not claim the folder."""
    return (folder / "settings.json").is_file() and any(folder.rglob("*.jsonl"))


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


def add_summary(folder: Path, row: dict[str, Any], results: str) -> bool:
    """Put a task's row into `summary.json`, replacing an earlier one of the task.

    Args:
        folder: the folder of the evaluation.
        row: the task's row.
        results: name of the task's results file.

    Returns:
        Whether it is there. An earlier row over more questions, whose results are all in the file, is kept instead.
    """
    file = folder / "summary.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    earlier = [
        other for other in rows if Path(other["task"]).stem == Path(row["task"]).stem
    ]  # however its path is written
    answered = (folder / results).read_bytes().count(b"\n")
    if any(row["n"] < other["n"] <= answered for other in earlier):
        return False
    rows = [other for other in rows if other not in earlier] + [row]
    write_whole(file, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return True

"""Reads JSONL files that may still be written to: `metrics.jsonl` and trajectories of a run."""

from __future__ import annotations

import json
from pathlib import Path


def read_jsonl(path: Path) -> tuple[list[dict], list[str]]:
    """The JSON objects of a file that may be missing or still being written, and notes about what was skipped."""
    if not path.is_file():
        return [], [f"{path} is missing."]
    rows, bad = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            value = "half"
        if isinstance(value, dict):
            rows.append(value)
        elif line.strip():
            bad.append(number)
    lines = (
        f"line {bad[0]}" if len(bad) == 1 else f"{len(bad)} lines, the first of which is line {bad[0]}" if bad else ""
    )
    return rows, [f"{path}: skipped {lines} (half-written or not a JSON object)."] if bad else []

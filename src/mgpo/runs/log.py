"""Writes `metrics.jsonl` of a run folder: one line per log, in step order, each step once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mgpo.files import write_whole
from mgpo.jsonl import read_jsonl


class RunLog(TrainerCallback):
    """Writes `metrics.jsonl` of the run folder."""

    def __init__(self) -> None:
        self._begun = False
        self._first_step: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of the step from which the run starts or resumes."""
        self._first_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what was logged last. The first time, drop lines of steps that a resumed run repeats."""
        if not state.is_world_process_zero:
            return
        file = Path(args.output_dir) / "metrics.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not self._begun:
            self._begun = True
            _forget_after(file, state.global_step if self._first_step is None else self._first_step)
        with file.open("a") as out:
            out.write(json.dumps(_finite(state.log_history[-1])) + "\n")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row with None in place of numbers that JSON cannot hold."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _forget_after(file: Path, step: int) -> None:
    """Drop lines that a stopped run logged after the checkpoint that is resumed, and its final line."""
    if file.is_file():
        rows, _ = read_jsonl(file)
        kept = [row for row in rows if row.get("step", 0) <= step and "train_loss" not in row]
        write_whole(file, "".join(json.dumps(row) + "\n" for row in kept))

"""Writes `metrics.jsonl` of a run folder (one line per log, in step order, each step once) and its `README.md`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mgpo.config import SFT
from mgpo.files import write_whole
from mgpo.jsonl import read_jsonl
from mgpo.policies.loading import TINY, resolve
from mgpo.runs.card import model_card


class RunLog:
    """Mixin for a `transformers.Trainer`: put it before the trainer's class."""

    _log_begun = False

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's own log, and one line in `metrics.jsonl`."""
        super().log(logs, *args, **kwargs)
        if not self.accelerator.is_main_process or not self.state.log_history:
            return
        file = Path(self.args.output_dir) / "metrics.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not self._log_begun:
            self._log_begun = True
            _forget_after(file, getattr(self, "_initial_global_step", self.state.global_step))
        with file.open("a") as out:
            out.write(json.dumps(_finite(self.state.log_history[-1])) + "\n")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write `README.md` of the run folder: what this model is, and how to ask it."""
        if self.is_world_process_zero():
            base = self.accelerator.unwrap_model(self.model).config._name_or_path
            base = TINY if base == resolve(TINY) else base
            folder, method = Path(self.args.output_dir), getattr(self.args, "method", SFT)
            write_whole(folder / "README.md", model_card(self.hub_model_id or str(folder), base, method))


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row with None in place of numbers that JSON cannot hold."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _forget_after(file: Path, step: int) -> None:
    """Drop lines that a stopped run logged after the checkpoint that is resumed, and its final line."""
    if file.is_file():
        rows, _ = read_jsonl(file)
        kept = [row for row in rows if row.get("step", 0) <= step and "train_loss" not in row]
        write_whole(file, "".join(json.dumps(row) + "\n" for row in kept))

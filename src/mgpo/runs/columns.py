"""The figures of a log row that a person watches: the same for the table of a terminal and for the lines of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FIGURES = {
    "reward": "reward",
    "valid": "grounding/valid_share",
    "hit": "grounding/hit_rate",
    "tokens per turn": None,
    "no signal": "frac_reward_zero_std",
    "KL": "kl",
}
"""Column -> key of a row. `no signal`: the share of questions whose rollouts all have the same reward."""
SUPERVISED = {"loss": "loss", "tokens right": "mean_token_accuracy"}
"""Those of a row without rollouts."""
_TURN = re.compile(r"turns/(\d+)_tokens")


def figures(row: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Columns and their text, in order; a column whose key the row does not have is left out.

    Args:
        row: what `Trainer.log` was given.
        prefix: of the row's keys: "eval_" for an evaluation.
    """
    row = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
    found = {}
    for column, key in (FIGURES if "reward" in row else SUPERVISED).items():
        if key is None:
            turns = sorted((int(match[1]), row[key]) for key in row if (match := _TURN.fullmatch(key)))
            if turns:
                found[column] = " + ".join(_number(value, "{:.0f}") for _, value in turns)
        elif key in row and not (prefix and column == "no signal"):  # one answer per question has no group
            found[column] = _number(row[key], "{:.3g}" if key in ("kl", "loss") else "{:.2f}")
    return found


def spent(seconds: float) -> str:
    """A time as a person says it: 6.2 s, 48 s, 3 min 20 s, 2 h 05 min, 3 d 04 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) and value == value else "–"

"""Notes on what rows repeat: the same text in two choices of a question, and an id that several rows have.

`mgpo data check` and `mgpo train` both print them (`docs/data.md`). Such rows are used: published datasets hold some, and ids only
name rows in logs. But only the gold letter is right, so a model that picks the same text under another letter is told that it is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mgpo.method.question import LETTERS

SHOWN = 3


class Repeats:
    """Sees rows one by one, and says afterwards what they repeat."""

    def __init__(self) -> None:
        self._choices: list[str] = []
        self._ids: dict[str, list[str]] = {}

    def see(self, row: Mapping[str, Any], where: str) -> None:
        """Take note of a row of `Question`'s fields; `where` is its place."""
        if alike := repeated(row.get("choices") or ()):
            self._choices.append(f"{where}: {alike}")
        if name := str(row.get("id") or ""):
            self._ids.setdefault(name, []).append(where)

    def notes(self) -> list[str]:
        """At most two lines: rows with equal choices, and ids of several rows, each with how many and the first of them."""
        shared = {name: places for name, places in self._ids.items() if len(places) > 1}
        found = []
        if self._choices:
            rows = "1 row has" if len(self._choices) == 1 else f"{len(self._choices)} rows have"
            found.append(
                f"note: {rows} the same text in two choices, of which only the gold letter counts as right: {first_of(self._choices)}"
            )
        if shared:
            ids = "1 id is" if len(shared) == 1 else f"{len(shared)} ids are"
            listed = [f"{name!r} in {len(places)} rows ({places[0]}, {places[1]})" for name, places in shared.items()]
            found.append(f"note: {ids} used by several rows, which logs then cannot tell apart: {first_of(listed)}")
        return found


def repeated(choices: Sequence[Any]) -> str:
    """Which letters have the same text, apart from case and spaces, e.g. "A and C are both 'red'"; empty if none have."""
    first: dict[str, str] = {}
    for letter, choice in zip(LETTERS, choices):
        text = " ".join(str(choice).split()).casefold()
        if text in first:
            return f"{first[text]} and {letter} are both {str(choice)!r}"
        first[text] = letter
    return ""


def first_of(lines: Sequence[str]) -> str:
    """The first lines, and how many more there are."""
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more

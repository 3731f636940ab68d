"""Cells of a row that may be empty, or may hold a list: of Python, of numpy, or as text, as a TSV holds it."""

from __future__ import annotations

import json
from ast import literal_eval
from collections.abc import Mapping
from numbers import Real
from typing import Any


def absent(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, blank text, or an embedded image with neither bytes nor a path."""
    if isinstance(value, Mapping):
        return bool(value) and value.keys() <= {"bytes", "path"} and not any(value.values())
    if isinstance(value, Real):
        return bool(value != value)  # NaN, which pandas writes into empty cells
    return value is None or isinstance(value, str) and not value.strip()


def list_of_text(text: str) -> Any:
    """A list or an object that a table holds as text, in JSON's or Python's notation.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass  # in Python's notation, or no list at all
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text[:60]!r} is not a list") from error


def list_in(value: Any) -> list[Any] | None:
    """The list that a cell holds, without the empty cells at its end that only pad it; None if the cell holds no list.

    Raises:
        ValueError: it is text in brackets that is no list.
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = list_of_text(value)
    if getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U"):  # an array of numbers may be an image itself
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return None
    found = list(value)
    while found and absent(found[-1]):
        found.pop()
    return found

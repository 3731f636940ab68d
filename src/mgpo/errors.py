"""Errors that end a run for a reason other than a bug. The command line prints their sentence instead of a traceback.

Wrong settings and wrong data are `ValueError`s, raised before a run begins. A bad rollout is no error: it is data.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'vstar'?" if a known name is close to this one, else empty; it is added to an error's sentence."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


class RunError(RuntimeError):
    """A run that cannot continue. The message says why, and what to do."""


class CheckpointError(RunError):
    """A checkpoint that cannot be written or read. The message says why, and which one is good."""


class NumbersError(RunError):
    """Too many steps in a row had numbers that are not finite."""


class Stopped(Exception):
    """A run that was asked to stop and has been saved. The message says how to resume it."""

"""Errors that end a run for a reason other than a bug. The command line prints their sentence instead of a traceback.

Wrong settings and wrong data are `ValueError`s, raised before a run begins. A bad rollout is no error: it is data.
"""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Callable, Iterable


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


class ProcessFailed(RunError):
    """One of several processes ended with an error, which it has printed; `status` is the exit status to pass on."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Stopped(Exception):
    """A run that was asked to stop and has been saved. The message says how to resume it; `by` is the signal."""

    def __init__(self, message: str, by: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.by = by


OF_USERS = (ValueError, OSError, RunError)
"""What wrong settings, wrong data, missing files and servers that do not answer raise."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main function; an error of `OF_USERS` ends it with its sentence and status 2, as it ends a command of mgpo."""
    try:
        main()
    except OF_USERS as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        sys.exit(2)

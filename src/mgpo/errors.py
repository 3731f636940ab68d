"""Errors that end a run for a reason that is no bug. The command line prints their sentence instead of a traceback.

Wrong settings and wrong data are `ValueError`s, before a run begins. A bad rollout is no error at all: it is data.
"""


class RunError(RuntimeError):
    """A run that cannot go on. The message says why, and what to do."""


class CheckpointError(RunError):
    """A checkpoint that cannot be written or read. The message says why, and which one is good."""


class NumbersError(RunError):
    """Too many steps in a row had numbers that are not finite."""


class Stopped(Exception):
    """A run that was asked to stop and has saved. The message says how it goes on."""

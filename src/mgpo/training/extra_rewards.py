"""Reward functions of the user's own, named by their dotted paths (`extra_reward_funcs`)."""

from __future__ import annotations

import importlib
from typing import Any


def load_dotted(path: str) -> Any:
    """Import a function by its dotted path, e.g. `my_project.rewards.brevity`.

    Raises:
        ValueError: nothing is found under the path; the message includes the reason.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"extra_reward_funcs: {path!r} was not found ({error}). Write package.module.function."
        ) from error

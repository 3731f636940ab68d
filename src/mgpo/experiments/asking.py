"""Loads a model of an experiment, to be asked as its run was trained or in another method's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LIMITS = {"max_grounding_tokens": 32, "max_answer_tokens": 12}
"""Tokens of a box and of an answer, as the recipes `tiny_*` set them."""


def asked_as(model: str, run: Path | None = None, method: str | None = None) -> tuple[Any, Any, Any]:
    """A policy, the protocol and the token limits.

    Args:
        model: `mgpo-tiny` or a folder.
        run: the run whose settings apply; without one, `LIMITS`.
        method: asks in this method's words instead of the run's.
    """
    from mgpo.asking.settings import limits_for, protocol_for
    from mgpo.policies.local import LocalPolicy
    from mgpo.policies.names import trained_with

    policy = LocalPolicy.load(model, dtype="float32")
    trained = trained_with(str(run)) if run else LIMITS | {"method": method}
    if method == "grpo":  # box and answer share a turn
        both = LIMITS["max_grounding_tokens"] + LIMITS["max_answer_tokens"] + 4
        trained |= {"max_answer_tokens": both, "method": method}
    protocol = protocol_for(policy, method, trained=trained)
    return policy, protocol, limits_for(trained, protocol)

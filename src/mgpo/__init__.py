"""MGPO: teach a vision-language model to look twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgpo.asking.grounded import GroundedVQA as GroundedVQA

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Makes `from mgpo import GroundedVQA` work, but loads it only when it is asked for."""
    if name == "GroundedVQA":
        from mgpo.asking.grounded import GroundedVQA

        return GroundedVQA
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

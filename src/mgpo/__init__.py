"""MGPO: teach a vision-language model to look twice.

    from mgpo import GroundedVQA, MGPOConfig, MGPOTrainer, evaluate

What is imported here is the interface that stays; everything deeper may move.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgpo.asking.grounded import GroundedVQA as GroundedVQA
    from mgpo.config import MGPOConfig as MGPOConfig
    from mgpo.evaluation.evaluate import evaluate as evaluate
    from mgpo.training.trainer import MGPOTrainer as MGPOTrainer

__version__ = "0.1.0"
__all__ = ["GroundedVQA", "MGPOConfig", "MGPOTrainer", "evaluate"]

_PLACES = {
    "GroundedVQA": "mgpo.asking.grounded",
    "MGPOConfig": "mgpo.config",
    "MGPOTrainer": "mgpo.training.trainer",
    "evaluate": "mgpo.evaluation.evaluate",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: the command line must start without torch."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

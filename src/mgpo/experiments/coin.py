"""A random reward, as a control: what does training alone do to a policy, if no answer counts?

    mgpo train --config recipes/tiny_mgpo.yaml --extra_reward_funcs mgpo.experiments.coin.coin --reward_weights 0 1

Right answers have no weight there, so what such a run learns about where to look was not learned from answers.
"""

from __future__ import annotations

import random
from typing import Any


def coin(completions: list[Any], **_: Any) -> list[float]:
    """One reward of 0 or 1 per completion, with even odds, from Python's generator (which training seeds)."""
    return [float(random.random() < 0.5) for _ in completions]

"""The reward for verl's reward loop, where the agent loop leaves the scoring to it (`score: false`).

    reward.custom_reward_function.path=pkg://mgpo.verl.reward reward.custom_reward_function.name=compute_score

verl passes the whole response as `solution_str`: both turns of the model with the environment's between them, which repeats
the choices. So the last turn is read from `extra_info`, where the agent loop has put it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgpo.method.rewards import is_correct

LAST_TURN, CHOICES, ANSWER = "mgpo_last_turn", "mgpo_choices", "mgpo_answer"
"""Fields that the agent loop adds to a row's `extra_info`."""


def compute_score(
    data_source: Any, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """1.0 if the last turn answers right, else 0.0, as verl takes it: `score`, and `acc` for its metrics.

    Raises:
        ValueError: the row was not made by `MGPOAgentLoop`.
    """
    extra = extra_info or {}
    if LAST_TURN not in extra:
        raise ValueError(
            f"mgpo.verl.reward scores what MGPOAgentLoop has sampled, but extra_info has no {LAST_TURN!r}. Set "
            "actor_rollout_ref.rollout.agent.default_agent_loop=mgpo."
        )
    right = float(is_correct(extra[LAST_TURN], tuple(extra[CHOICES]), extra[ANSWER]))
    return {"score": right, "acc": right}

"""One question of one photograph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mgpo.data.question import Question
from mgpo.engines.loading import default_budget, default_coordinates
from mgpo.engines.local import LocalPolicy
from mgpo.grounding import BoxRules
from mgpo.imaging import open_image
from mgpo.protocol import Episode, Method, Protocol
from mgpo.rollout import TurnLimits, run_episodes


def protocol_for(
    policy: LocalPolicy, method: str = "mgpo", max_turns: int = 2, max_pixels: int | None = None
) -> Protocol:
    """The turn protocol that fits a policy: its own pixel budget and coordinates unless said otherwise."""
    budget = default_budget(policy.processor)
    if max_pixels is not None:
        budget = replace(budget, max_pixels=max_pixels, min_pixels=min(budget.min_pixels, max_pixels))
    box = BoxRules(coordinates=default_coordinates(policy.model.config.model_type))
    return Protocol(method=Method(method), max_turns=max_turns, box=box, budget=budget)


def ask_image(
    image: Path, question: str, choices: tuple[str, ...], model: str, max_turns: int = 2, max_pixels: int | None = None
) -> Episode:
    """Run the two turns on a photograph; returns the finished episode."""
    policy = LocalPolicy.load(model)
    protocol = protocol_for(policy, max_turns=max_turns, max_pixels=max_pixels)
    policy.set_budget(protocol.budget)
    episode = Episode(Question(image, question, choices, id=str(image)), open_image(image), protocol)
    run_episodes(policy, [episode], TurnLimits())
    return episode

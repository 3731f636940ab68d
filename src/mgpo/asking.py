"""One question of one photograph; and how a policy wants to be asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mgpo.data.question import Question
from mgpo.engines.loading import default_budget, default_coordinates
from mgpo.engines.local import LocalPolicy
from mgpo.photograph import Photograph
from mgpo.protocol import Episode, Protocol
from mgpo.rollout import TurnLimits, run_episodes


def trained_with(model: str) -> dict[str, Any]:
    """Settings of the run that left a model (`config.yaml` beside it, or above its checkpoint); empty without one."""
    folder = Path(model)
    run = folder.parent if folder.name.startswith("checkpoint-") else folder
    file = run / "config.yaml"
    return yaml.safe_load(file.read_text()) or {} if file.is_file() else {}


def protocol_for(
    policy: LocalPolicy,
    method: str | None = None,
    max_turns: int | None = None,
    max_pixels: int | None = None,
    trained: dict[str, Any] | None = None,
) -> Protocol:
    """The turn protocol that fits a policy: what is not given is as it was trained, else the paper's and its processor's.

    Args:
        policy: who will speak.
        method, max_turns, max_pixels: what to ask for.
        trained: see `trained_with`.
    """
    budget = default_budget(policy.processor)
    if max_pixels is not None:
        budget = replace(budget, max_pixels=max_pixels, min_pixels=min(budget.min_pixels, max_pixels))
    asked = {name: value for name, value in (("method", method), ("max_turns", max_turns)) if value is not None}
    return Protocol.from_settings((trained or {}) | asked, budget, default_coordinates(policy.model.config.model_type))


def limits_for(trained: dict[str, Any], grounding: int | None = None, answer: int | None = None) -> TurnLimits:
    """Token limits of the turns: as given, else as the policy was trained, else generous."""
    usual = TurnLimits()
    return TurnLimits(
        grounding or trained.get("max_grounding_tokens", usual.grounding),
        answer or trained.get("max_answer_tokens", usual.answer),
    )


def ask_image(
    image: Path,
    question: str,
    choices: tuple[str, ...],
    model: str,
    max_turns: int | None = None,
    max_pixels: int | None = None,
) -> Episode:
    """Run the two turns on a photograph; returns the finished episode."""
    policy, trained = LocalPolicy.load(model), trained_with(model)
    protocol = protocol_for(policy, "mgpo", max_turns, max_pixels, trained)
    policy.set_budget(protocol.budget)
    episode = Episode(Question(image, question, choices, id=str(image)), Photograph(image), protocol)
    run_episodes(policy, [episode], limits_for(trained))
    return episode

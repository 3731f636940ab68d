"""Loads a policy and finds the settings to ask it with: those of its training run, unless others are given."""

from __future__ import annotations

from typing import Any

from mgpo.method.protocol import Protocol
from mgpo.policies.names import resolve
from mgpo.policies.shipped import SHIPPED
from mgpo.policies.turn_loop import Policy, TurnLimits

ENGINES = ("transformers", "vllm")


def load_policy(
    model: str, engine: str = "transformers", endpoint: str | None = None, thinking: bool | None = None
) -> Policy:
    """A policy by name.

    Args:
        model: `mgpo-tiny`, a folder or a hub id; with an endpoint, the model's name on the server.
        engine: one of `ENGINES`; not used with an endpoint.
        endpoint: base URL of an OpenAI-compatible server, e.g. http://localhost:8000/v1.
        thinking: `enable_thinking` of the chat template; None leaves it as in the training run, else to the template.

    Raises:
        ValueError: the engine is unknown, what it needs is not installed, or a server decides on thinking.
        FileNotFoundError: as in `refuse_unknown_policy`.
    """
    refuse_unknown_policy(model, engine, endpoint, thinking)
    if endpoint:
        from mgpo.policies.endpoint import EndpointPolicy

        return EndpointPolicy(endpoint, model)
    if engine == "vllm":
        from mgpo.policies.vllm_policy import VLLMPolicy

        return VLLMPolicy(model, thinking)
    from mgpo.policies.local import LocalPolicy

    return LocalPolicy.load(model, thinking=thinking)


def refuse_unknown_policy(model: str, engine: str, endpoint: str | None, thinking: bool | None) -> None:
    """Refuse arguments of `load_policy` that name no policy. It imports nothing that takes long.

    Raises:
        ValueError: as there.
        FileNotFoundError: the model is neither a folder with a checkpoint nor a hub id.
    """
    if endpoint and model in SHIPPED:
        raise ValueError(
            f"--endpoint needs --model: the name of the model on that server, and not {model}, which comes with this package."
        )
    if endpoint and thinking is not None:
        raise ValueError(
            "The server of an endpoint decides whether its model thinks. Set that there, not with --thinking."
        )
    if not endpoint and engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown. Choose one of: {', '.join(ENGINES)}.")
    if not endpoint:
        resolve(model)


def protocol_for(
    policy: Policy,
    method: str | None = None,
    max_turns: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    coordinates: str | None = None,
    trained: dict[str, Any] | None = None,
) -> Protocol:
    """The turn protocol that fits a policy. Settings that are not given are its training run's, else the paper's.

    Args:
        policy: the policy that will be asked; its images will be within the protocol's budget.
        method, max_turns, min_pixels, max_pixels, coordinates: the settings that are given.
        trained: see `mgpo.policies.names.trained_with`.

    Raises:
        ValueError: it is not known how the policy writes boxes.
    """
    own = trained or {}  # an endpoint does not know what its model was trained with
    budget = policy.budget.changed(own.get("min_pixels"), own.get("max_pixels")).changed(min_pixels, max_pixels)
    policy.set_budget(budget)
    given = {"method": method, "max_turns": max_turns, "coordinates": coordinates}
    asked = {name: value for name, value in given.items() if value is not None}
    return Protocol.from_settings((trained or {}) | asked, budget, policy.box_form)


def limits_for(trained: dict[str, Any], grounding: int | None = None, answer: int | None = None) -> TurnLimits:
    """Token limits of the turns: those given, else those of the training run, else the defaults of `TurnLimits`."""
    usual = TurnLimits()
    return TurnLimits(
        grounding or trained.get("max_grounding_tokens", usual.grounding),
        answer or trained.get("max_answer_tokens", usual.answer),
    )

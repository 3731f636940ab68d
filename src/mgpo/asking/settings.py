"""Loads a policy and finds the settings to ask it with: those of its training run, unless others are given."""

from __future__ import annotations

from typing import Any

from mgpo.method.protocol import Method, Protocol
from mgpo.policies.client import KEY, refuse_bad_address
from mgpo.policies.names import resolve
from mgpo.policies.turn_loop import Policy, TurnLimits

ENGINES = ("transformers", "vllm")


def load_policy(
    model: str,
    engine: str = "transformers",
    endpoint: str | None = None,
    thinking: bool | None = None,
    seconds: float | None = None,
    keep_going: bool = False,
) -> Policy:
    """A policy by name.

    Args:
        model: `mgpo-tiny`, a folder or a hub id; with an endpoint, the model's name on the server.
        engine: one of `ENGINES`; not used with an endpoint.
        endpoint: base URL of an OpenAI-compatible server, e.g. http://localhost:8000/v1.
        thinking: `enable_thinking` of the chat template; None leaves it as in the training run, else to the template.
        seconds, keep_going: of an endpoint, see `mgpo.policies.endpoint.EndpointPolicy`.

    Raises:
        ValueError: the engine is unknown, what it needs is not installed, or a server decides on thinking or is `mgpo serve`.
        ConnectionError: the endpoint cannot be reached, or refuses access.
        FileNotFoundError: as in `refuse_unknown_policy`.
    """
    refuse_unknown_policy(model, engine, endpoint, thinking)
    if endpoint:
        from mgpo.policies.endpoint import SECONDS, EndpointPolicy
        from mgpo.policies.endpoint_check import check_model

        served = EndpointPolicy(endpoint, model, seconds=seconds or SECONDS, keep_going=keep_going)
        check_model(served)
        return served
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
    if endpoint:
        refuse_bad_address(endpoint, KEY)
        if thinking is not None:
            raise ValueError(
                "The server of an endpoint decides whether its model thinks. Set that there, not with --thinking."
            )
        return
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown. Choose one of: {', '.join(ENGINES)}.")
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
    protocol = Protocol.from_settings((trained or {}) | asked, budget, policy.box_form)
    from mgpo.policies.endpoint import EndpointPolicy

    if isinstance(policy, EndpointPolicy):
        from mgpo.policies.endpoint_check import check_pixels

        check_pixels(policy, protocol)
    return protocol


def limits_for(
    trained: dict[str, Any], protocol: Protocol, grounding: int | None = None, answer: int | None = None
) -> TurnLimits:
    """Token limits of the turns: those given, else those of the training run, else the defaults of `TurnLimits`.

    A model that was trained to box and to answer in two turns may need both limits for both in one.
    """
    usual = TurnLimits()
    grounding = grounding or trained.get("max_grounding_tokens", usual.grounding)
    own = trained.get("max_answer_tokens", usual.answer)
    if protocol.method is Method.GRPO and "max_answer_tokens" in trained and trained.get("method") != Method.GRPO:
        own += grounding
    return TurnLimits(grounding, answer or own)

"""The turn protocol as a tool of TRL's own `GRPOTrainer`: the model decides whether to call `zoom`.

    protocol = zoom_protocol("Qwen/Qwen3-VL-4B-Instruct", processor)
    GRPOTrainer(model, accuracy_reward, GRPOConfig(**zoom_settings(protocol, processor)),
                zoom_dataset(load_questions("my_data.jsonl")), processing_class=processor,
                environment_factory=zoom_factory(protocol))

A call of the tool is a turn of `mgpo.method.episode.Episode`: its arguments are read by the rules of
`mgpo.method.grounding`, a valid box is cut from the original pixels, and any other one gets the sentence and the whole image
that it gets everywhere else. TRL renders the turns, masks the tool's tokens and ends the rollout.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any

from PIL import Image

from mgpo.environments.photographs import SharedPhotographs
from mgpo.method.boxes import IMAGE_KEY, Coordinates
from mgpo.method.episode import Episode, UserTurn
from mgpo.method.prompts import NO_MORE, ask_answer
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.policies.families import form_of
from mgpo.policies.loading import budget_of, model_type_of
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import TurnLimits

IMAGE_COLUMN = "photograph"
"""The column of a question's image. TRL itself shows what stands in a column `image` or `images`, at its full size."""
THEIRS = ("prompt", "images")
"""Columns from which TRL makes a prompt of its own."""


def _with_any_arguments(tool: Callable[..., Any]) -> Callable[..., Any]:
    """Take a call whose arguments do not fit as one without a usable box, so that it is answered like every other such turn.

    TRL would answer it with a Python error and no image.
    """

    @wraps(tool)
    def called(self: ZoomEnvironment, *given: Any, **named: Any) -> Any:
        try:
            signature(tool).bind(self, *given, **named)
        except TypeError:
            return tool(self, bbox_2d=None)
        return tool(self, *given, **named)

    return called


class ZoomEnvironment:
    """One rollout's environment, as `environment_factory` makes them. TRL keeps and resets it; every rollout has its own.

    Args:
        protocol: the settings (`zoom_protocol`).
        photographs: shared with other rollouts.

    Attributes:
        episode: the current rollout's conversation; None before the first one.
    """

    def __init__(self, protocol: Protocol, photographs: SharedPhotographs | None = None) -> None:
        self.protocol = protocol
        self.episode: Episode | None = None
        self._photographs = photographs or SharedPhotographs()

    def reset(self, **row: Any) -> list[dict[str, Any]]:
        """Begin a rollout: what the model is shown of a row of `zoom_dataset`, the overview first.

        Raises:
            ValueError: the row is no question.
            ImageError: its image cannot be used.
        """
        question = Question.from_row(row | {"image": row.get(IMAGE_COLUMN)})
        self.episode = self._photographs.begin(question, self.protocol)
        return as_content(self.episode.user_turns[0])

    # What follows is read by the model: TRL makes the tool's description of it.
    @_with_any_arguments
    def zoom(self, bbox_2d: list[int], label: str = "", image: int | None = None) -> list[dict[str, Any]]:
        """Look at a region of an image close up, cut from the original in full detail.

        Args:
            bbox_2d: The four numbers of the region's box, in the order and the unit that the question gives.
            label: What is there.
            image: The number of the image, if several are shown.
        """
        episode = self.episode
        if episode is None:
            raise RuntimeError("zoom() was called before reset().")
        named = {} if image is None else {IMAGE_KEY: image}
        said = json.dumps([named | {self.protocol.box.form.key: bbox_2d, "label": label}])
        # These mean the same when escaped; as they are, a label could answer, or close a fence or a thinking block.
        for character, code in (("\\\\", "\\u005c"), ("`", "\\u0060"), ("<", "\\u003c")):
            said = said.replace(character, code)
        turn = episode.reply(said) if episode.end is None else None
        if turn is None:
            return [{"type": "text", "text": NO_MORE + ask_answer(episode.question)}]
        return as_content(turn)


def as_content(turn: UserTurn) -> list[dict[str, Any]]:
    """A turn's images and texts as the content of a message."""
    return [
        {"type": "image", "image": part} if isinstance(part, Image.Image) else {"type": "text", "text": part}
        for part in turn.parts
    ]


def zoom_protocol(model: Any, processor: Any, max_turns: int = 2, coordinates: str = "auto") -> Protocol:
    """The settings of the tool for a model.

    Args:
        model: the model, its folder or its hub id; its family decides how boxes are written.
        processor: its processor (`mgpo.policies.loading.load_processor`), whose pixel budget is used.
        max_turns: the largest number of the model's turns: calls and the answer.
        coordinates: how boxes are written, where the family does not decide it.

    Raises:
        ValueError: it is not known how the family writes boxes, or it writes fractions.
    """
    settings = {"method": Method.ADAPTIVE, "max_turns": max_turns, "coordinates": coordinates}
    usual = Protocol.from_settings(settings, budget_of(processor), form_of(model_type_of(model)))
    if usual.box.form.coordinates is Coordinates.RELATIVE_1:
        raise ValueError("The tool takes whole numbers: set coordinates to absolute or relative_1000, not relative_1.")
    return replace(usual, tool=ZoomEnvironment.zoom.__name__)


def zoom_factory(protocol: Protocol) -> Callable[[], ZoomEnvironment]:
    """What `environment_factory` takes: makes environments that share opened photographs."""
    photographs = SharedPhotographs()
    return lambda: ZoomEnvironment(protocol, photographs)


def zoom_dataset(questions: Any) -> Any:
    """Questions (`mgpo.data.loading.load_questions`) as a dataset for `GRPOTrainer`, which makes its prompts by `reset`.

    Raises:
        ValueError: the questions have a column from which TRL would make a prompt of its own.
    """
    if theirs := [column for column in THEIRS if column in questions.column_names]:
        raise ValueError(
            f"The questions have the column {theirs[0]!r}, which TRL would show beside the question. Remove it: the prompt and "
            "the images are made by the environment."
        )
    return questions.rename_column("image", IMAGE_COLUMN)


def zoom_settings(
    protocol: Protocol, processor: Any, limits: TurnLimits = TurnLimits(), text_tokens: int = 256
) -> dict[str, Any]:
    """Settings of `GRPOConfig` that fit the protocol.

    - `max_tool_calling_iterations`: no call is run after the last turn.
    - `max_completion_length`: room for every call, what it returns, and the answer. TRL has this one limit for all turns, and
      ends a rollout whose call does not fit any more.
    - `generation_kwargs`: bans the special tokens that stand for an image. One sampled token of them would make image tokens
      and image features disagree, and TRL would then train on the whole batch without its images. This is the setting for
      transformers; `docs/environments.md` gives the one for vLLM.

    Args:
        protocol, processor: of the model.
        limits: new tokens of a call, and of the answer.
        text_tokens: most tokens of the text beside an image that a call returns: the question with its choices and about a
            hundred more.
    """
    calls = protocol.turns - 1
    return {
        "max_tool_calling_iterations": calls,
        "max_completion_length": calls * (limits.grounding + protocol.budget.max_tokens + text_tokens) + limits.answer,
        "generation_kwargs": {"suppress_tokens": TurnTokens(processor).banned_ids()},
    }

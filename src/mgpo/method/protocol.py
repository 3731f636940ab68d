"""The turn protocol, shared by training, evaluation, inference, serving and every engine.

    question -> opening (overview, request for a box) -> policy -> reply (crop, question) -> policy -> answer

An `Episode` is the environment's side of one rollout. It holds no model and no tokens: it provides the next user turn
with its image, and the caller runs the policy and passes the model's text to `reply`. It supports K turns. With the
default of two, turn 1 always grounds and turn 2 always answers; this fixed template solves the cold start (paper,
Section 3.2). With K > 2, every reply but the last lets the model name a further region or answer (paper, Algorithm 1).

Prompts are built by joining strings, never by formatting, because a question may contain braces or anything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from PIL import Image

from mgpo.images.imaging import PixelBudget
from mgpo.images.photograph import Photograph
from mgpo.method.grounding import (
    BoxForm,
    BoxRules,
    BoxStatus,
    Coordinates,
    Frame,
    Grounding,
    read_grounding,
)
from mgpo.method.question import LETTERS, Question
from mgpo.method.rewards import boxed

UNIT = {
    Coordinates.ABSOLUTE: "in pixels of this image",
    Coordinates.RELATIVE_1000: "in thousandths of the width and height of this image",
    Coordinates.RELATIVE_1: "in fractions of the width and height of this image",
}
SHOW_CROP = "Here is the region that you named, cut from the original image in full detail."
SHOW_AGAIN = "That was no usable box, so here is the whole image again."
ASK_MORE = "If you need to see another region first, reply with its box in the same JSON form. Otherwise answer now. "
ASK_LETTER = "Think about what you see, then put the letter of your answer in \\boxed{}."
ASK_TEXT = "Think about what you see, then put your answer in \\boxed{}."

_SPECIAL = re.compile(
    r"<\|[^\s|<>][^|<>]*\|>|<\|\w+>|<\w+\|>|\[[gs]?MASK\]|◁/?\w+▷"
    r"|</?(?:s|pad|unk|eos|bos|sop|eop|img|IMG_CONTEXT|image|video|box|ref|quad|think|tool_call|tool_response|arg_key|arg_value)>"
    r"|<(?:tts_|start_of_|end_of_|row_\d+_col_)\w+>|<image_soft_token>|<fake_token_around_image>|<global-img>",
)


class Method(StrEnum):
    """How a question is asked."""

    MGPO = "mgpo"
    """Box first, crop, then the answer: two or more turns."""
    GRPO = "grpo"
    """One turn: the box as JSON and the boxed answer (the paper's baseline)."""
    ADAPTIVE = "adaptive"
    """As `mgpo`, but turn 1 may answer at once: it is asked for a box only if it needs one. For evaluation."""
    DIRECT = "direct"
    """One turn: the boxed answer alone (what supervised fine-tuning trains)."""


class CropFrame(StrEnum):
    """Which image a further box (turn 2 and later, K > 2) refers to."""

    LATEST = "latest"
    """The image shown last (paper, Algorithm 1)."""
    ORIGINAL = "original"
    """Always the overview."""


class End(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"
    """The last turn holds a boxed answer."""
    NO_ANSWER = "no_answer"
    """The last turn holds no boxed answer."""
    TRUNCATED = "truncated"
    """The last turn hit its token limit before it held a boxed answer."""


@dataclass(frozen=True)
class Protocol:
    """Settings of the turn protocol.

    Attributes:
        method: how a question is asked.
        max_turns: K, the largest number of model turns; only `mgpo` and `adaptive` use more than one.
        crop_frame: which image a further box refers to, with K > 2.
        box: when a box is valid and how it is written.
        budget: pixel budget of every image shown.
    """

    method: Method = Method.MGPO
    max_turns: int = 2
    crop_frame: CropFrame = CropFrame.LATEST
    box: BoxRules = BoxRules()
    budget: PixelBudget = PixelBudget()

    def __post_init__(self) -> None:
        if self.looks_again and self.max_turns < 2:
            raise ValueError(
                f"MGPO needs max_turns of at least 2 (one to ground, one to answer), not {self.max_turns}."
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], budget: PixelBudget, own_form: BoxForm | None) -> Protocol:
        """Build a protocol from a run's settings (the fields of `MGPOConfig`); missing ones take the paper's values.

        Args:
            settings: settings by name; those that do not concern the protocol are ignored.
            budget: pixel budget of every image shown.
            own_form: how the model's family writes boxes, where the settings say `auto`; None if that is not known.

        Raises:
            ValueError: the method asks for boxes, and neither the settings nor the family say how they are written.
        """
        way, usual = settings.get("method", "mgpo"), BoxRules()
        if way not in (*Method, "sft"):
            raise ValueError(f"protocol {way!r} is unknown. Choose one of: {', '.join(Method)}.")
        method = Method.DIRECT if way == "sft" else Method(way)
        written = settings.get("coordinates", "auto")
        form = own_form if written == "auto" else BoxForm.parse(written, own_form)
        if form is None and method is not Method.DIRECT:
            raise ValueError(
                "It is not known how this model family writes boxes. Set coordinates (on the command line: --coordinates) to "
                "absolute, for pixels of the image that the model was given, relative_1000, for thousandths of its sides, or "
                "relative_1, for fractions of them; add yxyx if it writes top before left, and its JSON key if that is not bbox_2d: "
                "'relative_1000 yxyx box_2d'."
            )
        return cls(
            method=method,
            max_turns=settings.get("max_turns", cls.max_turns),
            crop_frame=CropFrame(settings.get("crop_frame", cls.crop_frame)),
            box=BoxRules(
                settings.get("min_box_side", usual.min_side_px),
                settings.get("max_box_aspect", usual.max_aspect),
                form=form or usual.form,
            ),
            budget=budget,
        )

    @property
    def looks_again(self) -> bool:
        """Whether the model is shown the region that it named and gets another turn."""
        return self.method in (Method.MGPO, Method.ADAPTIVE)

    @property
    def turns(self) -> int:
        """The largest number of turns that the model gets."""
        return self.max_turns if self.looks_again else 1


@dataclass(frozen=True)
class UserTurn:
    """A turn of the environment: at most one image, already at its final size, followed by a text."""

    text: str
    image: Image.Image | None
    frame: Frame | None


@dataclass(frozen=True)
class ModelTurn:
    """A turn of the model: its text, whether it hit its token limit, and the box that was read from it, if any."""

    text: str
    truncated: bool
    grounding: Grounding | None


@dataclass
class Episode:
    """One rollout's conversation. Drive it with `opening()`, then `reply(text)` until that returns None.

    Attributes:
        question: what is asked.
        original: the photograph that crops are cut from; a PIL image is wrapped in a `Photograph`.
        protocol: the settings.
        crops: crops made so far, by box in original pixels. Rollouts of one image may share the dict, so that equal
            boxes share a crop.
        user_turns, model_turns: the turns so far; they alternate, and the user begins.
        end: set when the episode is over.
    """

    question: Question
    original: Photograph = field(compare=False)
    protocol: Protocol
    crops: dict[tuple[int, int, int, int], Image.Image] = field(default_factory=dict)
    user_turns: list[UserTurn] = field(default_factory=list)
    model_turns: list[ModelTurn] = field(default_factory=list)
    end: End | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.original, Photograph):
            self.original = Photograph(self.original)

    def opening(self, shown: Image.Image | None = None) -> UserTurn:
        """The first user turn. Pass the overview as `shown` if it exists already (made with the same budget)."""
        shown = shown or self.original.overview(self.protocol.budget)
        turn = UserTurn(
            opening_text(self.question, self.protocol), shown, Frame(shown.size, (0, 0, *self.original.size))
        )
        self.user_turns.append(turn)
        return turn

    def reply(self, text: str, truncated: bool = False) -> UserTurn | None:
        """Take the model's turn and return the environment's next turn, or None if the episode is over."""
        if self.end is not None or not self.user_turns:
            raise RuntimeError("reply() needs an episode that was opened and has not ended.")
        number, last = len(self.model_turns) + 1, len(self.model_turns) + 1 >= self.protocol.turns
        answered = boxed(text) is not None
        if last or (answered and (number > 1 or self.protocol.method is Method.ADAPTIVE)):
            grounding = read_grounding(text, self._frame(), self.protocol.box) if self._names_box(number) else None
            self.model_turns.append(ModelTurn(text, truncated, grounding))
            self.end = End.ANSWERED if answered else End.TRUNCATED if truncated else End.NO_ANSWER
            return None
        grounding = read_grounding(text, self._frame(), self.protocol.box)
        self.model_turns.append(ModelTurn(text, truncated, grounding))
        turn = self._look_again(grounding, final=number + 1 >= self.protocol.turns)
        self.user_turns.append(turn)
        return turn

    @property
    def first_grounding(self) -> Grounding | None:
        """The grounding of turn 1; None before turn 1, and for a method that asks for no box."""
        return self.model_turns[0].grounding if self.model_turns else None

    def _names_box(self, number: int) -> bool:
        return self.protocol.method is Method.GRPO and number == 1

    def _frame(self) -> Frame:
        latest = self.protocol.crop_frame is CropFrame.LATEST
        frame = self.user_turns[-1 if latest else 0].frame
        assert frame is not None  # every user turn of this protocol shows an image
        return frame

    def _look_again(self, grounding: Grounding, final: bool) -> UserTurn:
        box = grounding.box_px_original
        if grounding.status is BoxStatus.VALID and box is not None:
            if box not in self.crops:
                self.crops[box] = self.original.crop(box, self.protocol.budget)
            shown, frame_box, intro = self.crops[box], box, SHOW_CROP
        else:
            overview_turn = self.user_turns[0]
            assert overview_turn.image is not None
            shown, frame_box, intro = overview_turn.image, (0, 0, *self.original.size), SHOW_AGAIN
        return UserTurn(_reply_text(self.question, intro, final), shown, Frame(shown.size, frame_box))


def neutral(text: str) -> str:
    """Text from data with every special token broken apart, so that the tokenizer cannot recognise it.

    Chat and vision tokens of all supported families are written `<|name|>`, or are one of a few tags. A space after the
    first character is enough to keep a tokenizer from recognising them, and the text stays readable.
    """
    return _SPECIAL.sub(lambda match: match.group(0)[0] + " " + match.group(0)[1:], text)


def opening_text(question: Question, protocol: Protocol) -> str:
    """Text of the first user turn. For `mgpo` the choices are withheld: the box must come from the question alone."""
    form = protocol.box.form
    if protocol.method is Method.MGPO:
        return neutral(question.question.strip()) + "\n" + ask_region(form)
    if protocol.method is Method.GRPO:
        return asked(question) + "\n" + ask_region_and_answer(form) + ask_answer(question)
    if protocol.method is Method.ADAPTIVE:
        return asked(question) + "\n" + ask_region_if_needed(form) + ask_answer(question)
    return asked(question) + "\n" + ask_answer(question)


def ask_region(form: BoxForm) -> str:
    """The request for a box in turn 1 of MGPO."""
    return (
        "You will be given a close-up of one region of this image before you answer. Which region do you need to see? "
        f"Reply with its box, {UNIT[form.coordinates]}, as JSON:\n{form.example}"
    )


def ask_region_and_answer(form: BoxForm) -> str:
    """The request for a box and the answer in one turn."""
    return (
        f"First give the box of the region that holds the answer, {UNIT[form.coordinates]}, as JSON:\n{form.example}\n"
        "Then answer. "
    )


def ask_region_if_needed(form: BoxForm) -> str:
    """The request for a box or an answer."""
    return (
        "If you need to see a region of it close up first, reply with nothing but its box, "
        f"{UNIT[form.coordinates]}, as JSON:\n{form.example}\nOtherwise answer now. "
    )


def user_texts(question: Question, protocol: Protocol) -> list[str]:
    """All texts that the environment may send for this question, the first user turn first."""
    last = [True, False][: protocol.turns - 1]  # with K = 2 the second turn is the last
    return [opening_text(question, protocol)] + [
        _reply_text(question, intro, final) for intro in (SHOW_CROP, SHOW_AGAIN) for final in last
    ]


def _reply_text(question: Question, intro: str, final: bool) -> str:
    return intro + "\n" + asked(question) + "\n" + ("" if final else ASK_MORE) + ask_answer(question)


def asked(question: Question) -> str:
    """The question with its lettered choices."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices)]
    return neutral("\n".join([question.question.strip(), *lines]))


def ask_answer(question: Question) -> str:
    """The request for the final answer."""
    return ASK_LETTER if question.choices else ASK_TEXT

"""The environment's side of one rollout: it gives the user turns and reads the model's.

An `Episode` holds no model and no tokens: it provides the next user turn with its images, and the caller runs the
policy and passes the model's text to `reply`. It supports K turns. With the default of two, turn 1 always grounds and
turn 2 always answers; this fixed template solves the cold start (paper, Section 3.2). With K > 2, every reply but the
last lets the model name a further region or answer (paper, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from PIL import Image

from mgpo.images.photograph import Photograph
from mgpo.method.boxes import BoxStatus, Frame, Grounding
from mgpo.method.grounding import read_grounding
from mgpo.method.prompts import again_intro, crop_intro, image_label, opening_text, reply_text
from mgpo.method.protocol import CropFrame, Method, Protocol
from mgpo.method.question import Question
from mgpo.method.rewards import boxed


class End(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"
    """The last turn holds a boxed answer."""
    NO_ANSWER = "no_answer"
    """The last turn holds no boxed answer."""
    TRUNCATED = "truncated"
    """The last turn hit its token limit before it held a boxed answer."""


@dataclass(frozen=True)
class UserTurn:
    """A turn of the environment: its images, already at their final size, and a text.

    Attributes:
        text: what follows the images.
        images: one; the opening of a question about several shows all of them.
        frames: what each image shows.
    """

    text: str
    images: tuple[Image.Image, ...] = ()
    frames: tuple[Frame, ...] = ()

    @property
    def image(self) -> Image.Image | None:
        """The image shown last in this turn; None if it shows none."""
        return self.images[-1] if self.images else None

    @property
    def parts(self) -> list[str | Image.Image]:
        """Images and texts in the order in which the model reads them; several images are numbered."""
        if len(self.images) < 2:
            return [*self.images, self.text]
        numbered = [part for n, image in enumerate(self.images, 1) for part in (image_label(n), image)]
        return [*numbered, "\n" + self.text]


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
        originals: the photographs that crops are cut from, one for each of the question's images. A single one may be
            given by itself, and a PIL image is wrapped in a `Photograph`. Rollouts that share a photograph share its
            crops.
        protocol: the settings.
        user_turns, model_turns: the turns so far; they alternate, and the user begins.
        end: set when the episode is over.
    """

    question: Question
    originals: tuple[Photograph, ...] = field(compare=False)
    protocol: Protocol
    user_turns: list[UserTurn] = field(default_factory=list)
    model_turns: list[ModelTurn] = field(default_factory=list)
    end: End | None = None

    def __post_init__(self) -> None:
        given = self.originals if isinstance(self.originals, (list, tuple)) else (self.originals,)
        self.originals = tuple(one if isinstance(one, Photograph) else Photograph(one) for one in given)
        if len(self.originals) != len(self.question.images):
            raise ValueError(f"{len(self.originals)} photographs were given for {len(self.question.images)} images.")

    def opening(self, shown: Sequence[Image.Image] = ()) -> UserTurn:
        """The first user turn. Pass the overviews as `shown` if they exist already (made with the same budget)."""
        images = tuple(shown) or tuple(original.overview(self.protocol.budget) for original in self.originals)
        frames = tuple(
            Frame(image.size, (0, 0, *original.size), number)
            for number, (image, original) in enumerate(zip(images, self.originals, strict=True), 1)
        )
        turn = UserTurn(opening_text(self.question, self.protocol), images, frames)
        self.user_turns.append(turn)
        return turn

    def reply(self, text: str, truncated: bool = False) -> UserTurn | None:
        """Take the model's turn and return the environment's next turn, or None if the episode is over."""
        if self.end is not None or not self.user_turns:
            raise RuntimeError("reply() needs an episode that was opened and has not ended.")
        number, last = len(self.model_turns) + 1, len(self.model_turns) + 1 >= self.protocol.turns
        answered = boxed(text) is not None
        if last or (answered and (number > 1 or self.protocol.method is Method.ADAPTIVE)):
            grounding = self._read(text) if self.protocol.method is Method.GRPO and number == 1 else None
            self.model_turns.append(ModelTurn(text, truncated, grounding))
            self.end = End.ANSWERED if answered else End.TRUNCATED if truncated else End.NO_ANSWER
            return None
        grounding = self._read(text)
        self.model_turns.append(ModelTurn(text, truncated, grounding))
        turn = self._look_again(grounding, final=number + 1 >= self.protocol.turns)
        self.user_turns.append(turn)
        return turn

    @property
    def first_grounding(self) -> Grounding | None:
        """The grounding of turn 1; None before turn 1, and for a method that asks for no box."""
        return self.model_turns[0].grounding if self.model_turns else None

    @property
    def overviews(self) -> tuple[Frame, ...]:
        """What the overviews show, which a box may name by number where there are several."""
        return self.user_turns[0].frames

    @property
    def sizes(self) -> dict[str, Any]:
        """Sizes of the photographs as records hold them: `image_size` of the first, and `image_sizes` if there are several."""
        sizes = [list(original.size) for original in self.originals]
        return {"image_size": sizes[0]} | ({"image_sizes": sizes} if len(sizes) > 1 else {})

    def original_of(self, grounding: Grounding) -> Photograph:
        """The photograph that a box is in."""
        return self.originals[grounding.image_number - 1]

    def _read(self, text: str) -> Grounding:
        frame = self.user_turns[-1].frames[-1]
        if self.protocol.crop_frame is CropFrame.ORIGINAL:
            frame = self.overviews[frame.image_number - 1]
        several = self.overviews if len(self.overviews) > 1 else ()
        return read_grounding(text, frame, self.protocol.box, several)

    def _look_again(self, grounding: Grounding, final: bool) -> UserTurn:
        number, box = grounding.image_number, grounding.box_px_original
        if grounding.status is BoxStatus.VALID and box is not None:
            intro = crop_intro(self.question, number)
            image = self.original_of(grounding).crop(box, self.protocol.budget)
            frame = Frame(image.size, box, number)
        else:
            intro = again_intro(self.question, number)
            image, frame = self.user_turns[0].images[number - 1], self.overviews[number - 1]
        return UserTurn(reply_text(self.question, self.protocol, intro, final), (image,), (frame,))

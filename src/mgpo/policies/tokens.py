"""Converts user turns to token ids and images to pixel values, for the trainer and all token-level engines.

A user turn is tokenised once, the model's turn stays as it was sampled, and the next user turn is appended by
concatenation. Nothing is decoded and tokenised again, so the tokens that are trained on are the tokens that were
sampled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from mgpo.method.episode import UserTurn
from mgpo.method.prompts import image_label
from mgpo.method.thinking import BLOCKS
from mgpo.policies.pictures import pictures_of

BANNED_UNLESS_END = (
    "vision", "image", "video", "im_start", "object_ref", "box_", "quad_", "|assistant", "|system", "IMG_CONTEXT",
    "<img>", "</img>", "start_of_",
)  # fmt: skip
"""Parts of the names of special tokens that begin a turn, or stand for an image or a region."""
_EMPTY_BLOCK = re.compile("|".join(rf"{re.escape(start)}\s*{re.escape(end)}\s*" for start, end in BLOCKS))
"""Templates of thinking models write an empty block before the last answer and leave it out of earlier ones."""
SAID = "\u2063said"
"""Stands for what the model said where a template is rendered; no template contains it."""


class TurnTokens:
    """Writes user turns as token ids in a model's chat format.

    Args:
        processor: the family's processor: tokenizer, chat template, image processor (`mgpo.policies.pictures`).
        template_kwargs: variables of the chat template, e.g. `enable_thinking`.

    Attributes:
        turn_end_id: what the model writes to end its turn, and what the template writes after it: `<|im_end|>`, or for GLM
            the `<|user|>` of the turn that follows.
    """

    def __init__(self, processor: Any, template_kwargs: dict[str, Any] | None = None) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.template_kwargs = template_kwargs or {}
        self.pictures = pictures_of(processor)
        self.image_token_id = self.pictures.feature_id
        opening = self._rendered([_text("user", "?")])
        self._thinking = next((block for block in BLOCKS if opening.rstrip().endswith(block[0])), None)
        self.turn_end_id: int = self._after_said([_text("user", "?")])[0]

    @property
    def opens_thinking(self) -> bool:
        """Whether the template opens a thinking block where the model's turn begins."""
        return self._thinking is not None

    @cached_property
    def keeps_order(self) -> bool:
        """Whether the chat template writes images and texts of a turn in the order in which they are given."""
        parts = [{"type": "text", "text": "1:"}, {"type": "image"}, {"type": "text", "text": "2:"}, {"type": "image"}]
        text = self._rendered([{"role": "user", "content": [*parts, {"type": "text", "text": "3:"}]}])
        pieces = text.split(self.pictures.placeholder)
        return len(pieces) == 3 and all(f"{number}:" in piece for number, piece in enumerate(pieces, 1))

    def image_tokens(self, image: Image.Image) -> int:
        """Number of features of an image that has its final size; raises ValueError if that is not one of its grid."""
        return self.pictures.tokens(image)

    def text_tokens_of(self, ids: Sequence[int], turn: UserTurn) -> int:
        """Number of tokens of a user turn with these ids that are not image features."""
        return len(ids) - sum(self.image_tokens(image) for image in turn.images)

    def grid(self, image: Image.Image) -> list[int]:
        """`image_grid_thw` of an image that has its final size: 1, rows and columns of patches."""
        patch = self.processor.image_processor.patch_size
        return [1, image.height // patch, image.width // patch]

    def opening(self, turn: UserTurn) -> list[int]:
        """Ids of a conversation that consists of one user turn, up to where the model's turn begins.

        Raises:
            ValueError: it shows several images, and the template moves them away from their numbers.
        """
        if len(turn.images) > 1 and not self.keeps_order:
            raise ValueError(
                "The chat template of this model moves images away from the texts that number them, so a question can show one "
                "image only."
            )
        return self._ids(self._rendered([as_message(turn)]), turn)

    def reply(self, turn: UserTurn, closed: bool) -> list[int]:
        """Ids to append after the model's turn: an end-of-turn token if it is not `closed` yet, then the user turn.

        Only what the template writes after the model's turn is used, so a template that drops or rewrites earlier thinking
        changes nothing: what the model said stays as it was sampled.
        """
        ids = self._after_said([as_message(turn)], turn)
        return ids[1:] if closed else ids

    def text_tokens(self, text: str, opening: bool, images: int = 1) -> int:
        """An upper bound of a user turn's tokens without its images (the two delimiters of an image count as text).

        Several images stand between their labels, so each label is counted by itself.
        """
        labels = [image_label(number) for number in range(1, images + 1)] if images > 1 else []
        turn = UserTurn("\n" + text if labels else text)
        own = len(self.opening(turn) if opening else self.reply(turn, closed=False))
        return (
            2 * images
            + own
            + sum(len(self.tokenizer(label, add_special_tokens=False)["input_ids"]) for label in labels)
        )

    def banned_ids(self) -> list[int]:
        """Special tokens that must never be sampled: a sampled vision placeholder has no image features."""
        ends = {self.turn_end_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        names = {str(t): i for t, i in self.tokenizer.get_added_vocab().items() if i not in ends}
        return sorted(
            i for name, i in names.items() if _special(name) and any(part in name for part in BANNED_UNLESS_END)
        )

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Model inputs of images that have their final size; raises RuntimeError if the processor resized one."""
        return self.pictures.pixels(images)

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The types of tokens (1: image) under the name that the model takes them; nothing for one that takes none."""
        name = self.pictures.types
        return {} if name is None else {name: (ids == self.image_token_id).int()}

    def check(self, ids: Sequence[int], images: Sequence[Image.Image], name: str) -> None:
        """Check that a sample has as many image tokens as image features.

        Raises:
            RuntimeError: they differ; the message names the sample.
        """
        tokens, features = ids.count(self.image_token_id), sum(self.image_tokens(image) for image in images)
        if tokens != features:
            raise RuntimeError(f"Sample {name!r} holds {tokens} image tokens for {features} image features.")

    def ids_of(self, text: str) -> list[int]:
        """Ids of a turn, or the beginning of one, that says this text; a thinking block that the template opened is closed."""
        close = f"\n{self._thinking[1]}\n\n" if self._thinking else ""
        ids: list[int] = self.tokenizer(close + text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """What a turn of the model says, with the opening of its thinking block where the template wrote that."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return self._thinking[0] + text if self._thinking else text

    def _rendered(self, messages: list[dict[str, Any]], generate: bool = True) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=generate,
            chat_template=self.processor.chat_template,
            **self.template_kwargs,
        )
        return text

    def _after_said(self, messages: list[dict[str, Any]], turn: UserTurn | None = None) -> list[int]:
        """Ids of what the template writes between the model's turn and the next one, if `messages` follow it."""
        said = [_text("user", "?"), _text("assistant", SAID)]
        before, found, _ = self._rendered(said, generate=False).rpartition(SAID)
        head, found_again, after = self._rendered([*said, *messages]).rpartition(SAID)
        if not (found and found_again) or _EMPTY_BLOCK.sub("", before) != _EMPTY_BLOCK.sub("", head):
            raise RuntimeError("The chat template rewrites earlier turns, so turns cannot be appended to a rollout.")
        return self._ids(after, turn)

    def _ids(self, text: str, turn: UserTurn | None) -> list[int]:
        mark, before = self.pictures.placeholder, ""
        for image in turn.images if turn is not None else ():
            head, found, text = text.partition(mark)
            if not found:
                raise RuntimeError(f"The chat template wrote no image placeholder ({mark}) for an image of a turn.")
            before += head + self.pictures.text(image)
        text = before + text
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _special(name: str) -> bool:
    return "|" in name or (name.startswith("<") and name.endswith(">"))


def _text(role: str, text: str) -> dict[str, Any]:
    """A message in parts: the templates of Idefics 3 and SmolVLM write nothing for one that is a plain string."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def as_message(turn: UserTurn) -> dict[str, Any]:
    """A user turn in the message form of chat templates and TRL, without its pixels."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]
    return {"role": "user", "content": parts}

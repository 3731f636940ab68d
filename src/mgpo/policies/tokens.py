"""Converts user turns to token ids and images to pixel values, for the trainer and all token-level engines.

A user turn is tokenised once, the model's turn stays as it was sampled, and the next user turn is appended by
concatenation. Nothing is decoded and tokenised again, so the tokens that are trained on are the tokens that were
sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from mgpo.method.protocol import UserTurn

BANNED_UNLESS_END = ("vision", "image", "video", "im_start", "object_ref", "box_", "quad_")


class TurnTokens:
    """Writes user turns as token ids in a model's chat format.

    Args:
        processor: a Qwen2-VL-like processor (tokenizer, chat template, image processor with patch and merge size).
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.eos_id: int = self.tokenizer.eos_token_id
        self.image_token: str = processor.image_token
        self.image_token_id: int = processor.image_token_id
        self.factor: int = processor.image_processor.patch_size * processor.image_processor.merge_size

    def image_tokens(self, image: Image.Image) -> int:
        """Number of placeholders for an image that has its final size.

        Raises:
            ValueError: the size is no multiple of the patch grid, so the processor would resize it again.
        """
        width, height = image.size
        if width % self.factor or height % self.factor:
            raise ValueError(
                f"An image of {width}x{height} px does not fit the model's grid: both sides must be multiples of "
                f"{self.factor} px."
            )
        return (width // self.factor) * (height // self.factor)

    def grid(self, image: Image.Image) -> list[int]:
        """`image_grid_thw` of an image that has its final size: 1, rows and columns of patches."""
        patch = self.processor.image_processor.patch_size
        return [1, image.height // patch, image.width // patch]

    def opening(self, turn: UserTurn) -> list[int]:
        """Ids of a conversation that consists of one user turn, up to where the model's turn begins."""
        return self._ids([_message(turn)], turn)

    def reply(self, turn: UserTurn, closed: bool) -> list[int]:
        """Ids to append after the model's turn: an end-of-turn token if it is not `closed` yet, then the user turn."""
        spoken = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        before = self._ids(spoken, None, generate=False)
        whole = self._ids([*spoken, _message(turn)], turn)
        end = len(before) - before[::-1].index(self.eos_id)  # templates write "\n" after the end-of-turn token
        if whole[:end] != before[:end]:
            raise RuntimeError("The chat template rewrites earlier turns, so turns cannot be appended to a rollout.")
        return whole[end:] if closed else whole[end - 1 :]

    def text_tokens(self, text: str, opening: bool) -> int:
        """An upper bound of a user turn's tokens without its image (the image's two delimiters count as text)."""
        turn = UserTurn(text, None, None)
        return 2 + len(self.opening(turn) if opening else self.reply(turn, closed=False))

    def banned_ids(self) -> list[int]:
        """Special tokens that must never be sampled: a sampled vision placeholder has no image features."""
        ends = {self.eos_id, self.tokenizer.pad_token_id}
        names = {str(t): i for t, i in self.tokenizer.get_added_vocab().items() if i not in ends}
        return sorted(i for name, i in names.items() if any(part in name for part in BANNED_UNLESS_END) and "|" in name)

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """`pixel_values` and `image_grid_thw` of images that have their final size.

        Raises:
            RuntimeError: the processor resized one of them.
        """
        inputs = self.processor.image_processor(images=list(images), return_tensors="pt")
        grids, patch = inputs["image_grid_thw"], self.processor.image_processor.patch_size
        for image, (_, rows, cols) in zip(images, grids.tolist(), strict=True):
            if (cols * patch, rows * patch) != image.size:
                raise RuntimeError(
                    f"The image processor resized an image of {image.size[0]}x{image.size[1]} px to {cols * patch}x"
                    f"{rows * patch} px, because its pixel budget differs from the protocol's."
                )
        return {"pixel_values": inputs["pixel_values"], "image_grid_thw": grids}

    def check(self, ids: Sequence[int], images: Sequence[Image.Image], name: str) -> None:
        """Check that a sample has as many image tokens as image features.

        Raises:
            RuntimeError: they differ; the message names the sample.
        """
        tokens, features = ids.count(self.image_token_id), sum(self.image_tokens(image) for image in images)
        if tokens != features:
            raise RuntimeError(f"Sample {name!r} holds {tokens} image tokens for {features} image features.")

    def _ids(self, messages: list[dict[str, Any]], turn: UserTurn | None, generate: bool = True) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate, chat_template=self.processor.chat_template
        )
        if turn is not None and turn.image is not None:
            head, found, tail = text.partition(self.image_token)
            if not found:
                raise RuntimeError(
                    f"The chat template wrote no image placeholder ({self.image_token}) for a turn with an image."
                )
            text = head + self.image_token * self.image_tokens(turn.image) + tail
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _message(turn: UserTurn) -> dict[str, Any]:
    image = [{"type": "image"}] if turn.image is not None else []
    return {"role": "user", "content": [*image, {"type": "text", "text": turn.text}]}

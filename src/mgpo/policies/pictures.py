"""How a family turns an image into tokens and model inputs: the one place that knows grids from tiles.

    pictures = pictures_of(processor)
    pictures.text(image), pictures.tokens(image), pictures.pixels([image])

Only Gemma, Idefics, SmolVLM and InternVL are known to cut images by themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

KEPT_BYTES = 2**31
"""Pixels of processed images that are kept, the least recently used being dropped first: an image of InternVL takes up to
31 MB."""


@dataclass(frozen=True)
class Cut:
    """How a processor that cuts images by itself is called, and what it gives.

    Attributes:
        types: the name under which its model takes the types of tokens (1: image); None if it takes none.
        most: most tokens of one image, the tags of its tiles included.
        asked: arguments that its image processor is called with.
    """

    types: str | None
    most: Callable[[Any], int]
    asked: dict[str, Any] = field(default_factory=dict)


def _idefics(processor: Any) -> int:
    images = processor.image_processor
    side = -(-images.size["longest_edge"] // images.max_image_size["longest_edge"])
    return int((processor.image_seq_len + 3) * (side**2 + 1))  # tiles with their tags, and the image as a whole


CUTS = {
    "InternVLProcessor": Cut(
        None, lambda p: p.image_seq_length * (p.image_processor.max_patches + 1), {"crop_to_patches": True}
    ),
    "Gemma3Processor": Cut("token_type_ids", lambda p: p.image_seq_length),
    "Gemma4Processor": Cut("mm_token_type_ids", lambda p: p.image_processor.max_soft_tokens),
    "Idefics3Processor": Cut(None, _idefics, {"return_row_col_info": True}),
    "SmolVLMProcessor": Cut(None, _idefics, {"return_row_col_info": True}),
}
"""Processors that cut images into tiles or bring them to one size; all others give one grid of patches per image."""


class Grid:
    """Images that are one grid of patches, at the size that they are given in (Qwen2-VL and later ones, GLM-4.5V and 4.6V).

    Attributes:
        placeholder: what the chat template writes for an image.
        feature_id: the token that stands for one image feature.
        types: the name under which the model takes the types of tokens (1: image).
        factor: sides of images are multiples of this, in pixels.
    """

    types: str | None = "mm_token_type_ids"

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.placeholder: str = processor.image_token
        self.feature_id: int = processor.image_token_id
        self.patch: int = processor.image_processor.patch_size
        self.factor: int = self.patch * processor.image_processor.merge_size

    def tokens(self, image: Image.Image) -> int:
        """Number of features of an image that has its final size.

        Raises:
            ValueError: the size is not a multiple of the patch grid, so the processor would resize it again.
        """
        width, height = image.size
        if width % self.factor or height % self.factor:
            raise ValueError(
                f"An image of {width}x{height} px does not fit the model's grid: both sides must be multiples of "
                f"{self.factor} px."
            )
        return (width // self.factor) * (height // self.factor)

    def text(self, image: Image.Image) -> str:
        """What replaces the placeholder."""
        return self.placeholder * self.tokens(image)

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """`pixel_values` and `image_grid_thw` of images that have their final size.

        Raises:
            RuntimeError: the processor resized one of them.
        """
        inputs = self.processor.image_processor(images=list(images), return_tensors="pt")
        grids = inputs["image_grid_thw"]
        for image, (_, rows, cols) in zip(images, grids.tolist(), strict=True):
            if (cols * self.patch, rows * self.patch) != image.size:
                raise RuntimeError(
                    f"The image processor resized an image of {image.size[0]}x{image.size[1]} px to {cols * self.patch}x"
                    f"{rows * self.patch} px, because its pixel budget differs from the protocol's."
                )
        return {"pixel_values": inputs["pixel_values"], "image_grid_thw": grids}


@dataclass(frozen=True)
class _Processed:
    """An image, kept alive so that its identity stays its own, and what the processor made of it."""

    image: Image.Image
    inputs: Any
    text: str


class Tiles:
    """Images that the family's processor cuts into tiles (InternVL) or brings to one size (Gemma 3).

    Each image is processed once, by itself. Attributes as of `Grid`, without `factor`.
    """

    def __init__(self, processor: Any) -> None:
        cut = CUTS[type(processor).__name__]
        self.processor, self.types, self._asked = processor, cut.types, cut.asked
        self.placeholder: str = processor.image_token
        own = getattr(processor.tokenizer, "image_token_id", None)  # Gemma 3: another token than the placeholder
        self.feature_id: int = processor.image_token_id if own is None else own
        self._feature: str = processor.tokenizer.convert_ids_to_tokens(self.feature_id)
        self._process = processor.image_processor
        self._made: OrderedDict[int, _Processed] = OrderedDict()
        self._bytes = 0

    def tokens(self, image: Image.Image) -> int:
        """Number of features of an image."""
        return self.text(image).count(self._feature)

    def text(self, image: Image.Image) -> str:
        """What replaces the placeholder, as the processor writes it."""
        return self._processed(image).text

    def inputs(self, image: Image.Image) -> Any:
        """What the family's image processor makes of one image."""
        return self._processed(image).inputs

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Model inputs of all images in order.

        `pixel_values` are tiles (tiles, channels, height, width); for Idefics 3, whose model takes images of equally many
        tiles and leaves out those of zeros, (images, tiles, channels, height, width); for Gemma 4, (images, patches,
        values) beside `image_position_ids` (images, patches, 2).
        """
        made = [self.inputs(image) for image in images]
        tiles = [one["pixel_values"] for one in made]
        if tiles[0].dim() == 5:
            most = max(one.shape[1] for one in tiles)
            tiles = [torch.cat([one, one.new_zeros(1, most - one.shape[1], *one.shape[2:])], 1) for one in tiles]
        found = {"pixel_values": torch.cat(tiles)}
        if "image_position_ids" in made[0]:
            found["image_position_ids"] = torch.cat([one["image_position_ids"] for one in made])
        return found

    def _processed(self, image: Image.Image) -> _Processed:
        known = self._made.get(id(image))
        if known is None:
            inputs = self._process(images=[image], return_tensors="pt", **self._asked)
            known = _Processed(image, inputs, self.processor.replace_image_token(inputs, 0))
            self._made[id(image)] = known
            self._bytes += inputs["pixel_values"].nbytes
        self._made.move_to_end(id(image))
        while self._bytes > KEPT_BYTES and len(self._made) > 1:
            self._bytes -= self._made.popitem(last=False)[1].inputs["pixel_values"].nbytes
        return known


def pictures_of(processor: Any) -> Grid | Tiles:
    """How a processor's family turns images into tokens."""
    return Tiles(processor) if type(processor).__name__ in CUTS else Grid(processor)


def most_tokens(processor: Any) -> int | None:
    """Most tokens of one image where they do not follow from its pixels; None for a grid."""
    cut = CUTS.get(type(processor).__name__)
    return None if cut is None else int(cut.most(processor))

"""How a family turns an image into tokens and model inputs: the one place that knows grids from tiles.

pictures = pictures_of(processor)
pictures.text(image), pictures.tokens(image), pictures.pixels([image])
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

KEPT = 512
"""Processed images that are kept, the least recently used being dropped first."""
CROPS_ITSELF = {
    "InternVLProcessor": None,
    "Gemma3Processor": "token_type_ids",
    "Gemma4Processor": "mm_token_type_ids",
    "Idefics3Processor": None,
}
"""Processors that cut images into tiles or bring them to one size, and the name under which their models take the types of
tokens (None: they take none)."""


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


class Tiles:
    """Images that the family's processor cuts into tiles (InternVL) or brings to one size (Gemma 3).

    Each image is processed once, by itself. Attributes as of `Grid`, without `factor`.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.types = CROPS_ITSELF[type(processor).__name__]
        self.placeholder: str = processor.image_token
        own = getattr(processor.tokenizer, "image_token_id", None)  # Gemma 3: another token than the placeholder
        self.feature_id: int = processor.image_token_id if own is None else own
        self._process = processor.image_processor
        self._asked = {"return_row_col_info": True} if type(processor).__name__ == "Idefics3Processor" else {}
        self._made: OrderedDict[int, tuple[Image.Image, Any]] = OrderedDict()

    def tokens(self, image: Image.Image) -> int:
        """Number of features of an image."""
        ids = self.processor.tokenizer(self.text(image), add_special_tokens=False)["input_ids"]
        count: int = ids.count(self.feature_id)
        return count

    def text(self, image: Image.Image) -> str:
        """What replaces the placeholder, as the processor writes it."""
        text: str = self.processor.replace_image_token(self.processed(image), 0)
        return text

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """`pixel_values`: tiles of all images in order (tiles, channels, height, width); for Idefics 3, whose model takes
        images of equally many tiles and leaves out those of zeros, (images, tiles, channels, height, width); for Gemma 4
        (images, patches, values), and `image_position_ids` (images, patches, 2)."""
        tiles = [self.processed(image)["pixel_values"] for image in images]
        if tiles[0].dim() == 5:
            most = max(one.shape[1] for one in tiles)
            tiles = [torch.cat([one, one.new_zeros(1, most - one.shape[1], *one.shape[2:])], 1) for one in tiles]
        more = [name for name in ("image_position_ids",) if name in self.processed(images[0])]
        return {"pixel_values": torch.cat(tiles)} | {
            name: torch.cat([self.processed(image)[name] for image in images]) for name in more
        }

    def processed(self, image: Image.Image) -> Any:
        """What the family's image processor makes of one image."""
        known = self._made.get(id(image))
        if known is None:
            known = image, self._process(images=[image], return_tensors="pt", **self._asked)
            self._made[id(image)] = known
        self._made.move_to_end(id(image))
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
        return known[1]


def pictures_of(processor: Any) -> Grid | Tiles:
    """How a processor's family turns images into tokens."""
    return Tiles(processor) if type(processor).__name__ in CROPS_ITSELF else Grid(processor)


def refuse_tiles(pictures: Grid | Tiles, method: str) -> None:
    """Refuse to train a family that cuts images by itself in a single turn, where TRL runs its processor by itself.

    Raises:
        ValueError: the method is not `mgpo`.
    """
    if isinstance(pictures, Tiles) and method != "mgpo":
        raise ValueError(
            f"method={method}: models with a {type(pictures.processor).__name__} can only be trained with method=mgpo so far. "
            "They can be evaluated with any protocol."
        )


def most_tokens(processor: Any) -> int | None:
    """Most features of one image where they do not follow from its pixels; None for a grid."""
    kind = type(processor).__name__
    if kind not in CROPS_ITSELF:
        return None
    images = processor.image_processor
    if kind == "Idefics3Processor":
        side = -(-images.size["longest_edge"] // images.max_image_size["longest_edge"])
        return int((processor.image_seq_len + 3) * (side**2 + 1))  # tiles with their tags, and the image as a whole
    if kind == "Gemma4Processor":
        return int(images.max_soft_tokens)
    tiles = images.max_patches + 1 if kind == "InternVLProcessor" else 1
    return int(processor.image_seq_length * tiles)

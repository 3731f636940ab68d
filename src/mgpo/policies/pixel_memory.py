"""Preprocesses each image of a step once, for the rollout, later turns and TRL's own passes alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from mgpo.policies.pictures import Tiles


class PixelMemory:
    """An image processor that caches the patches of images; everything but the call is the wrapped processor's own.

    Images are identified as objects: the rollouts of a question share one overview object, and equal boxes share one
    crop. Images and their patches are kept alive until the memory is dropped at the end of the step.
    """

    def __init__(self, image_processor: Any) -> None:
        self._own = image_processor
        self._seen: dict[int, tuple[Image.Image, torch.Tensor, torch.Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """`pixel_values` (patches of all images, values) and `image_grid_thw` (images, 3), in order."""
        flat = _flat(images)
        new = list({id(image): image for image in flat if id(image) not in self._seen}.values())
        if new:
            made = self._own(images=new, return_tensors="pt")
            patches = made["pixel_values"].split(made["image_grid_thw"].prod(-1).tolist())
            self._seen |= {id(i): (i, p, g) for i, p, g in zip(new, patches, made["image_grid_thw"], strict=True)}
        known = [self._seen[id(image)] for image in flat]
        return BatchFeature(
            {
                "pixel_values": torch.cat([patches for _, patches, _ in known]),
                "image_grid_thw": torch.stack([grid for *_, grid in known]),
            }
        )


class TileMemory:
    """An image processor of a family that cuts images by itself: gives TRL what the model takes, each image made once."""

    def __init__(self, image_processor: Any, tiles: Tiles) -> None:
        self._own, self._tiles = image_processor, tiles

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, images: Any, crop_to_patches: bool = False, **kwargs: Any) -> BatchFeature:
        """`pixel_values` of all images in order; with `crop_to_patches`, as TRL asks, also the number of tiles of each."""
        flat = _flat(images)
        found: dict[str, Any] = dict(self._tiles.pixels(flat))
        if crop_to_patches:
            found["num_patches"] = torch.tensor([len(self._tiles.inputs(image)["pixel_values"]) for image in flat])
        return BatchFeature(found)


@contextmanager
def pixels_once(processor: Any, tiles: Tiles | None = None) -> Iterator[PixelMemory | TileMemory]:
    """Within this context, `processor` preprocesses each image once; `tiles` where the family cuts images by itself."""
    own = processor.image_processor
    processor.image_processor = memory = PixelMemory(own) if tiles is None else TileMemory(own, tiles)
    try:
        yield memory
    finally:
        processor.image_processor = own


def _flat(images: Any) -> list[Image.Image]:
    return [inner for image in images for inner in (_flat(image) if isinstance(image, (list, tuple)) else [image])]

"""One rule for every resize: bicubic, antialiased when shrinking. Large pictures are resized by torch, others by Pillow."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from mgpo.images.decoders import Pixels

WORTH_TORCH = 500_000
"""Pixels of a picture that torch resizes; smaller ones are left to Pillow."""
GAP = 3.0
"""Pillow averages blocks of pixels first as long as this many times the wanted size is left."""


def resize(image: Image.Image | Pixels, size: tuple[int, int]) -> Image.Image:
    """An image at another size, (width, height); in mode RGB if it was RGB or has padding (RGBX).

    torch, if it has been imported, resizes a large picture in a third to an eighth of Pillow's time. Its kernel is made after
    Pillow's: in photographs no value differs by more than 1, and one in 500 does.
    """
    if isinstance(image, np.ndarray):
        if image.shape[2] > 1 and _is_for_torch((image.shape[1], image.shape[0]), size):
            return _by_torch(image, size)
        image = as_picture(image)
    elif image.mode in ("RGB", "RGBX") and _is_for_torch(image.size, size):
        return _by_torch(np.array(image), size)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=GAP)
    return without_padding(image) if image.mode == "RGBX" else image


def _is_for_torch(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether torch is there (importing it for this would take longer than it saves) and is the faster one.

    Pillow is where it may average whole blocks of pixels first, as `GAP` allows when a picture is shrunk very much.
    """
    if old == new or old[0] * old[1] < WORTH_TORCH or any(side >= 2 * GAP * shown for side, shown in zip(old, new)):
        return False
    return hasattr(sys.modules.get("torch.nn.functional"), "interpolate")


def _by_torch(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    import torch

    given = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(given, size=size[::-1], mode="bicubic", antialias=True)
    return Image.fromarray(small[0, :3].permute(1, 2, 0).contiguous().numpy())


def as_picture(pixels: Image.Image | Pixels) -> Image.Image:
    """Pixels as an image, RGB or RGBX."""
    if isinstance(pixels, Image.Image):
        return pixels
    height, width, bands = pixels.shape
    if bands == 4:  # without a copy, which would cost a quarter of the time of decoding
        return Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
    return Image.fromarray(pixels if bands == 3 else pixels[..., 0]).convert("RGB")


def without_padding(image: Image.Image) -> Image.Image:
    """The image in mode RGB."""
    return image if image.mode == "RGB" else image.convert("RGB")

"""One rule for every resize: bicubic, antialiased when shrinking. Large pictures are shrunk by torch, others by Pillow."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from mgpo.images.decoders import Pixels

WORTH_TORCH = 4_000_000
"""Pixels of a picture that torch shrinks; smaller ones, such as most crops, are resized by Pillow in any case."""


def resize(image: Image.Image | Pixels, size: tuple[int, int]) -> Image.Image:
    """An image at another size, (width, height); in mode RGB if it was RGB or has padding (RGBX).

    torch, if it has been imported, shrinks a large picture in an eighth of Pillow's time. Its kernel is made after Pillow's:
    in photographs no value differs by more than 1, and one in 500 does.
    """
    if isinstance(image, np.ndarray):
        if _is_for_torch(image.shape[1], image.shape[0]) and image.shape[2] > 1:
            return _shrunk(image, size)
        image = as_picture(image)
    elif image.mode in ("RGB", "RGBX") and image.size != size and _is_for_torch(*image.size):
        return _shrunk(np.array(image), size)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return without_padding(image) if image.mode == "RGBX" else image


def _is_for_torch(width: int, height: int) -> bool:
    """Whether a picture is large, and torch is there; importing it for this would take longer than it saves."""
    return width * height >= WORTH_TORCH and hasattr(sys.modules.get("torch.nn.functional"), "interpolate")


def _shrunk(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
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

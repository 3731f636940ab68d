"""When two rows show the same image, so that the rollouts of a question share one decoded original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xxhash

from mgpo.images.orientation import ORIENTATION_TAG


def image_key(image: Any) -> Any:
    """A key that is equal for rows with the same image, so that the rollouts of a question share one decoded original.

    A column of `datasets.Image` decodes its file anew for each row, so images in memory are identified by their pixels.
    """
    if isinstance(image, dict):
        return image.get("path"), image.get("bytes")
    if isinstance(image, (str, Path, bytes)):
        return image
    pixels = image.tobytes()
    if image.mode == "P":  # the pixels are indices into a palette
        pixels += bytes(image.getpalette("RGBA") or ())
    more = repr(image.info.get("transparency")), image.getexif().get(ORIENTATION_TAG)
    return image.mode, image.size, xxhash.xxh3_128_digest(pixels), *more

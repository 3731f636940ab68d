"""When two rows show the same image: rollouts of a question share one decoded original, and results name what was asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from mgpo.images.orientation import ORIENTATION_TAG


def file_of(image: Any) -> Any:
    """The path or the bytes of a row's image; an image in memory is itself."""
    if isinstance(image, dict):
        return image["bytes"] if image.get("bytes") is not None else image.get("path")
    return image


def images_digest(images: Sequence[Any]) -> str:
    """A digest of what is in images, files included: equal images have equal digests, wherever they lie.

    Raises:
        OSError: a file cannot be read.
    """
    digest = xxhash.xxh3_128()
    for image in map(file_of, images):
        content = Path(image).read_bytes() if isinstance(image, (str, Path)) else image
        digest.update(content if isinstance(content, (bytes, bytearray)) else repr(image_key(content)).encode())
    return digest.hexdigest()


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

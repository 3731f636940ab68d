"""Pictures as pages embed them: small JPEGs as data URIs, all together within a bound."""

from __future__ import annotations

import base64
import io
import math

from PIL import Image

IMAGE_BYTES = 3_300_000
"""Largest total size of a page's embedded images: base64 adds a third, and the page should stay below 5 MB."""
THUMB_SIDE_PX = 512
SMALLEST_SIDE_PX = 48
QUALITIES = (88, 75, 60, 45, 30)


def thumbnail(image: Image.Image, most_bytes: int, side_px: int = THUMB_SIDE_PX) -> bytes:
    """JPEG of at most `most_bytes`: in the best quality, and if none is small enough, with smaller sides.

    Only a picture with sides of `SMALLEST_SIDE_PX` in the lowest quality is given even if it has more bytes (about 1,000).

    Args:
        image: RGB; it is not changed.
        side_px: longest side at most.
    """
    small = image.copy()
    while True:
        small.thumbnail((side_px, side_px))
        for quality in QUALITIES:
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= most_bytes:
                return buffer.getvalue()
        if side_px <= SMALLEST_SIDE_PX:
            return buffer.getvalue()
        side_px = max(SMALLEST_SIDE_PX, int(side_px * min(0.9, math.sqrt(most_bytes / buffer.tell()))))


def data_uri(content: bytes, kind: str) -> str:
    """What an `img` element embeds a picture by."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

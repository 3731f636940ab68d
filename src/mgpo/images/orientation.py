"""How the pixels of a file lie: EXIF says how to turn them upright, and a box of the upright picture is found in them."""

from __future__ import annotations

import os
from typing import cast

from PIL import Image

Box = tuple[int, int, int, int]

ORIENTATION_TAG = 0x0112
"""The EXIF tag of the orientation."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns the pixels of a file upright, by its orientation."""
ON_THEIR_SIDE = (5, 6, 7, 8)
"""Orientations in which the width of the file is the height of the upright image."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def orientation(image: Image.Image) -> int:
    """How EXIF says that the pixels lie that Pillow will decode: 1 is upright."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself, and gives the size that they then have
    # Pillow decodes a whole PNG to see whether EXIF data stand behind its pixels.
    exif = Image.Image.getexif(image) if _tells_all_first(image) else image.getexif()
    return cast(int, exif.get(ORIENTATION_TAG, 1))


def _tells_all_first(image: Image.Image) -> bool:
    """Whether this is a PNG that has not been decoded, and nothing that may be EXIF data stands behind its pixels."""
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None:
        return False
    here, seen = file.tell(), False
    try:
        file.seek(len(PNG_SIGNATURE))
        while len(chunk := file.read(8)) == 8:
            name = chunk[4:]
            if seen and name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return False
            seen = seen or name == b"IDAT"
            file.seek(int.from_bytes(chunk[:4], "big") + 4, os.SEEK_CUR)
        return True
    finally:
        file.seek(here)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The pixels of a file, turned upright."""
    way = TURNS.get(orientation)
    return image if way is None else image.transpose(way)


def as_stored(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """A box of the upright image of this size, in the frame of the pixels of the file."""
    x1, y1, x2, y2 = box
    width, height = size
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return (y1, x1, y2, x2) if orientation in ON_THEIR_SIDE else (x1, y1, x2, y2)

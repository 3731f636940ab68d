"""Faster decoders than Pillow's, for the files that they decode to the very same pixels: `pip install mgpo[fast-images]`.

simplejpeg decodes JPEGs, whole or at a reduced scale, straight into memory. pyvips decodes PNG and TIFF, and single regions
of all three, for which it reads a file only as far as the region reaches. Both hold no lock of Python while they decode.

`mgpo.images.imaging` opens a file with Pillow, which reads the header, and judges it by its limits; only then is it asked
whether one of these decoders knows better. They decline, and Pillow goes on, if they are not installed, if the kind of
file is one that they would show differently (a palette, transparency, 16 bits, CMYK, ...), and whenever they find
anything wrong with it: so it is Pillow alone that decides what is damaged and what an error says.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgpo.images.identity import file_of
from mgpo.images.orientation import ORIENTATION_TAG

Region = tuple[int, int, int, int]
Pixels = NDArray[np.uint8]
"""Of the shape (height, width, bands): RGB, grey (1 band), or RGB and a fourth byte that means nothing (4 bands)."""
WORTH_PIXELS = 1_000_000
"""Smaller pictures are left to Pillow."""
PHOTOMETRIC, SAMPLES_APART, SAMPLE_BITS, SAMPLE_FORMAT, EXTRA_SAMPLES, TILE_WIDTH = 262, 284, 258, 339, 338, 322
"""Tags of TIFF. Of the first, 1 is grey with 0 for black and 2 is RGB."""
LOSSLESS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")
"""Compressions of TIFF, by Pillow's names, of which every decoder makes the same pixels."""

_process = os.getpid()


@cache
def _library(name: str) -> Any:
    """A library of the extra, imported when it is first needed; None if it is not installed, or finds no libvips."""
    try:
        library = import_module(name)
    except (ImportError, OSError):
        return None
    if name == "pyvips":
        library.cache_set_max(0)  # else it keeps files open and pixels in memory
        library.block_untrusted_set(True)
    return library


def _vips() -> Any:
    """None in a forked process too: libvips' threads do not exist there, so a call would wait for ever."""
    return _library("pyvips") if os.getpid() == _process else None


def whole(image: Image.Image, source: Any) -> Pixels | None:
    """All pixels of an opened file, at the scale that `Image.draft` has set; None if Pillow is to decode it.

    Args:
        image: the file as Pillow opened it: header only.
        source: path, bytes or `{"bytes", "path"}` row that it was opened from.

    Returns:
        The pixels as they are stored, not turned upright. See `Pixels`.
    """
    if image.width * image.height < WORTH_PIXELS:
        return None
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        return _jpeg(source, image.size)
    if image.format != "JPEG" and _is_plain(image):
        return _by_vips(image, source, (0, 0, *image.size))
    return None


def region(image: Image.Image, source: Any, box: Region) -> Pixels | None:
    """The pixels in `box` (x1, y1, x2, y2 in the file's own frame); None if they are not to be had by themselves."""
    return _by_vips(image, source, box) if _is_plain(image) else None


def _jpeg(source: Any, size: tuple[int, int]) -> Pixels | None:
    simplejpeg, file = _library("simplejpeg"), file_of(source)
    if simplejpeg is None:
        return None
    data = file if isinstance(file, (bytes, bytearray)) else Path(file).read_bytes()
    width, height = size
    pixels = np.empty((height, width, 4), np.uint8)  # of the size that Pillow read, whatever the file says elsewhere
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=height, min_width=width, buffer=pixels)
    except ValueError:
        return None
    return decoded if decoded.shape == pixels.shape else None


def _is_plain(image: Image.Image) -> bool:
    """Whether the file holds 8-bit RGB or grey and nothing else, so that all decoders agree on its pixels."""
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return False
    if image.format == "JPEG":  # all of a progressive one must be decoded for any of its rows
        return not image.info.get("progressive")
    if image.format == "PNG":
        return not image.info.get("interlace") and getattr(image, "n_frames", 1) == 1
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or image.info.get("compression") not in LOSSLESS:
        return False
    bands = 3 if image.mode == "RGB" else 1
    return (
        tags.get(ORIENTATION_TAG, 1) == 1
        and tags.get(PHOTOMETRIC) == (2 if bands == 3 else 1)
        and tags.get(SAMPLE_BITS) == (8,) * bands
        and tags.get(SAMPLES_APART, 1) == 1
        and EXTRA_SAMPLES not in tags
        and set(tags.get(SAMPLE_FORMAT, (1,))) == {1}
    )


def _by_vips(image: Image.Image, source: Any, box: Region) -> Pixels | None:
    pyvips, file = _vips(), file_of(source)
    if pyvips is None:
        return None
    kind = str(image.format).lower()  # by its own loader: libvips guesses formats too, and some of those are not safe
    load, given = (
        (f"{kind}load_buffer", bytes(file)) if isinstance(file, (bytes, bytearray)) else (f"{kind}load", str(file))
    )
    in_tiles = kind == "tiff" and TILE_WIDTH in getattr(image, "tag_v2", {})
    access = "random" if in_tiles else "sequential"
    x1, y1, x2, y2 = box
    try:
        found = getattr(pyvips.Image, load)(given, access=access, fail_on="warning")
        if (found.width, found.height) != image.size or found.format != "uchar" or found.bands not in (1, 3):
            return None
        pixels = found.crop(x1, y1, x2 - x1, y2 - y1).write_to_memory()
    except (pyvips.Error, UnicodeError):
        return None
    return np.frombuffer(pixels, np.uint8).reshape(y2 - y1, x2 - x1, found.bands)

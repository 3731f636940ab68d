"""The only place that opens, limits, resizes and crops images.

A vision-language model has a pixel budget: an image with more pixels is shrunk before the model sees it. Here that
shrinking happens *before* the model's own image processor, to a size that the processor leaves unchanged, so that every
engine (transformers, vLLM, a remote endpoint) sees the same pixels and the coordinates of a box mean the same thing.

Sizes are always `(width, height)`, as Pillow gives them. No torch here.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image, UnidentifiedImageError

from mgpo.images import decoders
from mgpo.images.decoders import Pixels
from mgpo.images.identity import file_of
from mgpo.images.orientation import ON_THEIR_SIDE, as_stored, orientation, upright
from mgpo.images.pillow_limit import without_pillow_limit
from mgpo.images.resizing import as_picture, resize, without_padding

DEFAULT_MAX_IMAGE_PIXELS = 300_000_000
"""A 100-megapixel photograph passes with room to spare, a decompression bomb does not."""

Box = tuple[int, int, int, int]

MAX_ASPECT_RATIO = 200
"""Qwen's own limit of the longer side over the shorter; `BoxRules.max_aspect_original` keeps crops within it."""


class ImageError(ValueError):
    """An image that cannot be used. The message says which one, why, and what would be accepted."""


class ImageTooLarge(ImageError):
    """An image with more pixels than `max_image_pixels`."""


@dataclass(frozen=True)
class PixelBudget:
    """How many pixels of one image the model may see.

    Attributes:
        min_pixels: smaller images are enlarged to at least this many pixels.
        max_pixels: larger images are shrunk to at most this many pixels.
        factor: both sides become multiples of this, in pixels (patch size times merge size: 28 for Qwen2.5-VL).
        tokens: most visual tokens of one image, where the family's processor decides that and not the pixels.
    """

    min_pixels: int = 256 * 28 * 28
    max_pixels: int = 1280 * 28 * 28
    factor: int = 28
    tokens: int | None = None

    def __post_init__(self) -> None:
        unit = self.factor**2
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"A pixel budget needs 0 < min_pixels <= max_pixels, but got {self.min_pixels} and {self.max_pixels}."
            )
        if self.max_pixels < 4 * unit:
            raise ValueError(f"max_pixels={self.max_pixels} is below four visual tokens ({4 * unit} pixels). Raise it.")
        fewest = math.ceil(self.min_pixels / unit)
        most = self.max_pixels // unit
        rows = range(1, math.isqrt(most) + 1)
        if not any(math.ceil(fewest / r) <= min(most // r, MAX_ASPECT_RATIO * r) for r in rows):
            raise ValueError(
                f"No image has between {self.min_pixels} and {self.max_pixels} pixels with sides that are multiples of "
                f"{self.factor}. Lower min_pixels, or raise max_pixels."
            )

    @classmethod
    def usual(cls, factor: int = 28) -> PixelBudget:
        """The method's own budget for a model family: 256 to 1280 visual tokens (paper, Section 4.1)."""
        return cls(256 * factor**2, 1280 * factor**2, factor)

    def changed(self, min_pixels: int | None, max_pixels: int | None) -> PixelBudget:
        """This budget with one or both limits set; a limit that is not set gives way to one that is.

        A minimum that does not fit below a new maximum becomes a fifth of it, as in the method's own budget.
        """
        most = max_pixels or max(self.max_pixels, min_pixels or 0)
        least = self.min_pixels if self.min_pixels < most else max(1, most // 5 // self.factor**2) * self.factor**2
        return PixelBudget(min_pixels or least, most, self.factor, self.tokens)

    @property
    def max_tokens(self) -> int:
        """Most visual tokens that one image can cost."""
        return self.max_pixels // self.factor**2 if self.tokens is None else self.tokens

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size in pixels, (width, height), at which an image of `size` is shown to the model.

        The rule of Qwen's `smart_resize`, applied until it changes nothing more: the result is a fixed point, so the
        model's own processor does not resize again. Very long images are the reason to repeat: their short side is
        rounded up to one token, after which the area can be over the budget. Where the rule never settles (a tight
        budget makes it swing between shrinking and growing) or settles beyond Qwen's own aspect limit, the size within
        the budget that is nearest in aspect ratio is taken.

        Raises:
            ImageError: the image is longer than 200 times its width (or the other way round).
        """
        width, height = size
        if min(size) < 1 or max(size) > MAX_ASPECT_RATIO * min(size):
            raise ImageError(
                f"An image of {width}x{height} px is too narrow: at most {MAX_ASPECT_RATIO}:1 is accepted."
            )
        for _ in range(8):
            fitted = self._smart_resize(width, height)
            if fitted == (width, height) and max(fitted) <= MAX_ASPECT_RATIO * min(fitted):
                return fitted
            width, height = fitted
        return self._nearest_in_aspect(*size)

    def _smart_resize(self, width: int, height: int) -> tuple[int, int]:
        f = self.factor
        fitted_w, fitted_h = round(width / f) * f, round(height / f) * f
        if fitted_w * fitted_h > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            fitted_w = max(f, math.floor(width / shrink / f) * f)
            fitted_h = max(f, math.floor(height / shrink / f) * f)
        elif fitted_w * fitted_h < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            fitted_w = math.ceil(width * grow / f) * f
            fitted_h = math.ceil(height * grow / f) * f
        return fitted_w, fitted_h

    def _nearest_in_aspect(self, width: int, height: int) -> tuple[int, int]:
        """Of all sizes within the budget, the one nearest to width:height; the largest where several are."""
        fewest, most = math.ceil(self.min_pixels / self.factor**2), self.max_pixels // self.factor**2
        sizes = []
        for rows in range(1, most + 1):
            low, high = math.ceil(fewest / rows), most // rows
            columns = min(max(round(rows * width / height), low), high)
            if low <= high and max(rows, columns) <= MAX_ASPECT_RATIO * min(rows, columns):
                distortion = abs(math.log(columns * height / (rows * width)))
                sizes.append((round(distortion, 9), -rows * columns, columns * self.factor, rows * self.factor))
        return min(sizes)[2:]


def open_image(source: Any, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> Image.Image:
    """An upright RGB image from a path, bytes, a Hugging Face `{"bytes", "path"}` row or a PIL image.

    The header is read first: an image above the limit is refused before a pixel of it is decoded. EXIF orientation is
    applied, so that coordinates mean what a person sees.

    Args:
        source: `str | Path | bytes | dict | PIL.Image.Image`. URLs are refused: fetch them yourself.
        max_image_pixels: limit for width times height of the file.

    Raises:
        ImageError: the file is missing, is not an image, is truncated, has too many pixels or comes as a URL.
    """
    return without_padding(open_padded(source, max_image_pixels))


def open_padded(source: Any, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> Image.Image:
    """As `open_image`, but perhaps with a fourth byte per pixel (mode RGBX) that `without_padding` takes away.

    Pillow's RGB has that byte too, so that it costs time and no memory to get rid of it; a region needs less of both.

    Raises:
        ImageError: as `open_image`.
    """
    with opened(source, max_image_pixels) as image:
        return upright(as_picture(_pixels(image, source)), orientation(image))


def read_header(source: Any, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> tuple[tuple[int, int], bool]:
    """Upright size in pixels, and whether the file can be decoded at a reduced scale (a JPEG in colour or grey).

    Raises:
        ImageError: as `open_image`, as far as the header shows it.
    """
    with opened(source, max_image_pixels) as image:
        size = image.size[::-1] if orientation(image) in ON_THEIR_SIDE else image.size
        return size, image.format == "JPEG" and image.mode in ("RGB", "L") and not isinstance(source, Image.Image)


def open_reduced(
    source: Any, size: tuple[int, int], ratio: float, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> Image.Image:
    """A JPEG at `size`, decoded at the smallest scale that has at least `ratio` times its sides, upright and RGB.

    Raises:
        ImageError: as `open_image`.
    """
    with opened(source, max_image_pixels) as image:
        lies = orientation(image)
        width, height = size[::-1] if lies in ON_THEIR_SIDE else size
        image.draft(None, (round(ratio * width), round(ratio * height)))
        return upright(resize(_pixels(image, source), (width, height)), lies)


def open_region(
    source: Any, box_px_original: Box, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> Image.Image | None:
    """A region (x1, y1, x2, y2 in pixels of the upright image) without the rest; None where that is not possible.

    Damage that lies behind the region is not found.

    Raises:
        ImageError: as `open_image`, as far as the header shows it.
    """
    if isinstance(source, Image.Image):
        return None
    with opened(source, max_image_pixels) as image:
        lies = orientation(image)
        width, height = image.size[::-1] if lies in ON_THEIR_SIDE else image.size
        x1, y1, x2, y2 = box_px_original
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            return None
        region = decoders.region(image, source, as_stored(box_px_original, (width, height), lies))
        return None if region is None else upright(without_padding(as_picture(region)), lies)


def overview(image: Image.Image, budget: PixelBudget) -> Image.Image:
    """The whole image, at the size at which the model sees it."""
    return resize(image, budget.fit(image.size))


def crop(image: Image.Image, box_px_original: Box, budget: PixelBudget) -> Image.Image:
    """The region `box_px_original` (x1, y1, x2, y2 in pixels of `image`), resized into the budget."""
    with without_pillow_limit():  # Pillow would refuse a region of over 179 megapixels
        return overview(image.crop(box_px_original), budget)


@contextmanager
def _readable(source: Any) -> Iterator[str]:
    """Turn errors that Pillow raises about a source into an `ImageError` that names the source."""
    name = _name_of(source)
    try:
        yield name
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} could not be read as an image: its format is unknown.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name} could not be read as an image: {error}") from error


@contextmanager
def opened(source: Any, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> Iterator[Image.Image]:
    """The file as Pillow opens it, within the limit but not decoded; its errors name it while it is used.

    Raises:
        ImageError: as `open_image`, as far as the header shows it; and whatever Pillow raises about it in the meantime.
    """
    with _readable(source) as name:
        image = _within_limit(_lazy_open(source, name), name, max_image_pixels)
        with without_pillow_limit():  # some formats (TIFF) check it again while decoding
            yield image


def _within_limit(image: Image.Image, name: str, max_image_pixels: int) -> Image.Image:
    if image.width * image.height > max_image_pixels:
        raise ImageTooLarge(
            f"{name} has {image.width}x{image.height} px, over the limit of {max_image_pixels:,} pixels. "
            "Raise max_image_pixels if you trust it."
        )
    return image


def _pixels(image: Image.Image, source: Any) -> Image.Image | Pixels:
    """The pixels of an opened file, decoded by whatever does it fastest."""
    fast = None if isinstance(source, Image.Image) else decoders.whole(image, source)
    return _to_rgb(image) if fast is None else fast


def _name_of(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return f"Image {str(source)!r}"
    if isinstance(source, dict) and source.get("path"):
        return f"Image {source['path']!r}"
    return "The image"


def _lazy_open(source: Any, name: str) -> Image.Image:
    """Open without decoding."""
    if isinstance(source, Image.Image):
        return source
    source = file_of(source)
    if isinstance(source, (bytes, bytearray)):
        if not source:
            raise ImageError(f"{name} is empty (zero bytes).")
        return _open_limited(io.BytesIO(source))
    if isinstance(source, (str, os.PathLike)):
        if str(source).split(":", 1)[0].lower() in {"http", "https", "ftp", "s3", "gs"}:
            raise ImageError(f"{name} is a URL. URLs are not fetched: download the file and give its path.")
        if not Path(source).is_file():
            raise ImageError(f"{name} does not exist.")
        return _open_limited(source)
    raise ImageError(f"An image must be a path, bytes or a PIL image, not {type(source).__name__}.")


def _open_limited(file: Any) -> Image.Image:
    with without_pillow_limit():
        return Image.open(file)


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB, with transparency laid on white and 16-bit grey scaled instead of clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith(("I;16", "I", "F")):
        low, high = cast(tuple[float, float], image.getextrema())  # one band
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ImageError("An image has values that are not finite. Save it with 8-bit values, 0 to 255.")
        unit = image.mode == "F" and high <= 2  # floats in 0..1 are shares of white; a filter may overshoot
        if low < (-0.5 if unit else 0):
            raise ImageError(f"An image has values from {low} to {high}. Save it with 8-bit values, 0 to 255.")
        scale = 255.0 if unit else 255.0 / max(high, 255)
        return image.point(lambda value: value * scale).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")

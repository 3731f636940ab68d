"""A photograph that is shown shrunk first and cropped in full detail later, and decoded no more than that needs.

A JPEG can be decoded at a half, a quarter or an eighth of its size for far less than the whole. The overview is made
from such a reduced picture wherever that still has twice the overview's size. The full picture is decoded once, when
the first region is cut out of it, or before that in the background (`decode_ahead`) while the model generates.

Decoded pictures take a hundred times the memory of their files, and a batch may hold hundreds. Together they are
bounded by `DECODED_BYTES` per process: beyond it the least recently used one is dropped, and decoded again if it is
needed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from mgpo.images import imaging
from mgpo.images.imaging import DEFAULT_MAX_IMAGE_PIXELS, PixelBudget

KEPT_RATIO = 2
"""The reduced picture that an overview is made from has at least this many times its width and height."""
WORTH_PIXELS = 4_000_000
"""Smaller pictures are decoded whole at once: there is little to save."""
DECODED_BYTES = 2 * 1024**3
"""Bound per process of decoded pictures that can be decoded again: sixteen 8K photographs."""
BYTES_PER_PIXEL = 4
"""Bytes per pixel of a decoded RGB picture in Pillow."""


class DecodedPictures:
    """The photographs that hold their decoded picture, the least recently used first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders: WeakKeyDictionary[Photograph, None] = WeakKeyDictionary()

    def used(self, photograph: Photograph) -> None:
        """Record a use, and drop the pictures of others until the total is within the bound."""
        with self._lock:
            self._holders.pop(photograph, None)
            self._holders[photograph] = None
            for other in list(self._holders):
                if self._total() <= DECODED_BYTES or other is photograph:
                    break
                self._holders.pop(other, None)
                other.drop()

    def has_room_for(self, photograph: Photograph) -> bool:
        """Whether its picture can be held without dropping another."""
        with self._lock:
            return self._total() + photograph.decoded_bytes <= DECODED_BYTES

    def _total(self) -> int:
        return sum(holder.decoded_bytes for holder in list(self._holders))


_decoded = DecodedPictures()
_ahead: ThreadPoolExecutor | None = None


class Photograph:
    """An upright picture: its size, overviews, and regions in full detail.

    Args:
        source: whatever `mgpo.images.imaging.open_image` takes.
        max_image_pixels: limit for width times height.

    Raises:
        ImageError: the header cannot be read, or the picture is over the limit. Damage further in is found when it is
            decoded, by `overview` at the latest.
    """

    def __init__(self, source: Any, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> None:
        self.source, self.max_image_pixels = source, max_image_pixels
        self.size, reducible = imaging.read_header(source, max_image_pixels)
        self.reducible = reducible and self.width * self.height >= WORTH_PIXELS
        self._decoding = Lock()
        self._image: Image.Image | None = None
        self._crops: dict[tuple[Any, PixelBudget], Image.Image] = {}

    @property
    def width(self) -> int:
        """Width of the upright picture, in pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Height of the upright picture, in pixels."""
        return self.size[1]

    @property
    def decoded_bytes(self) -> int:
        """Memory that its decoded picture takes."""
        return self.width * self.height * BYTES_PER_PIXEL

    @property
    def image(self) -> Image.Image:
        """The whole picture, RGB and upright; waits if it is being decoded."""
        with self._decoding:
            image = self._image
            if image is None:
                image = self._image = imaging.open_image(self.source, self.max_image_pixels)
        if not isinstance(self.source, Image.Image):
            _decoded.used(self)
        return image

    def drop(self) -> None:
        """Forget the decoded picture; it is decoded again when it is needed."""
        self._image = None

    def decode_ahead(self) -> None:
        """Begin to decode the whole picture in the background if there is room: a region of it will be needed."""
        if self.reducible:
            global _ahead
            _ahead = _ahead or ThreadPoolExecutor(2, thread_name_prefix="decode")
            _ahead.submit(self._try)

    def _try(self) -> None:
        try:
            if _decoded.has_room_for(self):
                _ = self.image
        except imaging.ImageError:
            pass  # raised again for the caller that needs the picture

    def overview(self, budget: PixelBudget) -> Image.Image:
        """The whole picture at the size at which a model with this budget sees it."""
        size = budget.fit(self.size)
        if self.reducible and all(side >= 2 * KEPT_RATIO * shown for side, shown in zip(self.size, size)):
            return imaging.open_reduced(self.source, size, KEPT_RATIO, self.max_image_pixels)
        return imaging.resize(self.image, size)

    def crop(self, box_px_original: tuple[int, int, int, int], budget: PixelBudget) -> Image.Image:
        """The region (x1, y1, x2, y2 in pixels of the picture), cut from the original and resized into the budget.

        Rollouts that name the same region are given the same image, so that it is encoded once. It must not be changed, and
        is kept as long as the photograph.
        """
        key = (box_px_original, budget)
        if key not in self._crops:
            self._crops.setdefault(key, imaging.crop(self.image, box_px_original, budget))
        return self._crops[key]

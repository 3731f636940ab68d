"""One photograph of a question: shown shrunk first, cut from in full detail later, decoded as little as that takes.

A JPEG can be decoded at a half, a quarter or an eighth of its size for far less than the whole. The overview is made from
such a reduced picture wherever that still has twice the overview's size; the full picture is decoded once, when the first
region is cut out of it, or ahead of that in a thread of its own (`decode_ahead`) while the model speaks.
"""

from __future__ import annotations

from threading import Lock, Thread
from typing import Any

from PIL import Image

from mgpo import imaging
from mgpo.imaging import DEFAULT_MAX_IMAGE_PIXELS, PixelBudget

KEPT_RATIO = 2
"""The reduced picture that an overview is made from has at least this many times its width and height."""
WORTH_PIXELS = 4_000_000
"""Smaller pictures are decoded whole at once: there is little to save."""


class Photograph:
    """An upright picture: its size, overviews, and regions in full detail.

    Args:
        source: whatever `mgpo.imaging.open_image` takes.
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

    @property
    def width(self) -> int:
        """Of the upright picture, in pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Of the upright picture, in pixels."""
        return self.size[1]

    @property
    def image(self) -> Image.Image:
        """The whole picture, RGB and upright, decoded once; waits for one that is being decoded."""
        with self._decoding:
            if self._image is None:
                self._image = imaging.open_image(self.source, self.max_image_pixels)
            return self._image

    def decode_ahead(self) -> None:
        """Begin to decode the whole picture in the background: a region of it will be asked for."""
        if self.reducible:
            Thread(target=self._try, daemon=True).start()

    def _try(self) -> None:
        try:
            _ = self.image
        except imaging.ImageError:
            pass  # whoever asks for the picture is told

    def overview(self, budget: PixelBudget) -> Image.Image:
        """The whole picture at the size at which a model with this budget sees it."""
        size = budget.fit(self.size)
        if self.reducible and all(side >= 2 * KEPT_RATIO * shown for side, shown in zip(self.size, size)):
            return imaging.open_reduced(self.source, size, KEPT_RATIO, self.max_image_pixels)
        return imaging.resize(self.image, size)

    def crop(self, box_px_original: tuple[int, int, int, int], budget: PixelBudget) -> Image.Image:
        """The region (x1, y1, x2, y2 in pixels of the picture), cut from the original pixels, resized into the budget."""
        return imaging.crop(self.image, box_px_original, budget)

"""A photograph that is shown shrunk first and cropped in full detail later, and decoded no more than that needs.

A JPEG can be decoded at a half, a quarter or an eighth of its size for far less than the whole. The overview is made
from such a reduced picture wherever that still has twice the overview's size. The whole picture is decoded in the background
(`decode_ahead`) while the model generates; where it is not, the first region is decoded by itself if a decoder can
(`mgpo.images.decoders`), and the second one pays for the whole.

Decoded pictures take a hundred times the memory of their files, and a batch may hold hundreds. Together they are
bounded per process (`DecodedPictures.most`): beyond it the least recently used one is dropped, and decoded again if it is
needed. What is decoded ahead of time drops only what nobody is going to need (`Photograph.done_with`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from mgpo.images import imaging
from mgpo.images.imaging import DEFAULT_MAX_IMAGE_PIXELS, Box, PixelBudget
from mgpo.images.resizing import resize, without_padding

KEPT_RATIO = 2
"""The reduced picture that an overview is made from has at least this many times its width and height."""
WORTH_PIXELS = 4_000_000
"""Smaller pictures are decoded whole at once: there is little to save."""
DECODED_BYTES = 2 * 1024**3
"""Bound per process of decoded pictures that can be decoded again, unless `keep_at_most` sets another: sixteen 8K
photographs."""
BYTES_PER_PIXEL = 4
"""Bytes per pixel of a decoded RGB picture in Pillow."""


class DecodedPictures:
    """The photographs that hold their decoded picture, or have room reserved for it; the least recently used first."""

    def __init__(self) -> None:
        self.most = DECODED_BYTES
        self._lock = Lock()
        self._holders: WeakKeyDictionary[Photograph, None] = WeakKeyDictionary()

    def make_room(self, photograph: Photograph) -> None:
        """Record a use, and drop the pictures of others until all are within the bound with this one."""
        with self._lock:
            self._holders.pop(photograph, None)
            self._drop_until_it_fits(photograph, list(self._holders))
            self._holders[photograph] = None

    def reserve(self, photograph: Photograph) -> bool:
        """Reserve room for its picture, if there is room without dropping one that may still be needed."""
        with self._lock:
            if photograph not in self._holders:
                self._drop_until_it_fits(photograph, [other for other in self._holders if other.done_with])
                if not self._fits(photograph):
                    return False
                self._holders[photograph] = None
            return True

    def _drop_until_it_fits(self, photograph: Photograph, others: list[Photograph]) -> None:
        for other in others:
            if self._fits(photograph):
                break
            self._holders.pop(other, None)
            other._image = None

    def _fits(self, photograph: Photograph) -> bool:
        return sum(holder.decoded_bytes for holder in list(self._holders)) + photograph.decoded_bytes <= self.most

    def keep(self, photograph: Photograph, image: Image.Image) -> None:
        """Let it hold its picture, unless others took its room while it was decoded."""
        with self._lock:
            photograph._image = image if photograph in self._holders else None

    def drop(self, photograph: Photograph) -> None:
        """Take its picture and its room away."""
        with self._lock:
            self._holders.pop(photograph, None)
            photograph._image = None


_decoded = DecodedPictures()
_threads: ThreadPoolExecutor | None = None


def keep_at_most(size: int) -> None:
    """Bound the memory that decoded pictures take in this process, in bytes. One picture is always kept."""
    _decoded.most = size


def in_background(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Have a thread do something with pictures, after all that it was given before. Decoders hold no lock of Python."""
    global _threads
    _threads = _threads or ThreadPoolExecutor(max(2, min(8, (os.cpu_count() or 2) // 2)), thread_name_prefix="decode")
    return _threads.submit(work, *arguments)


class Photograph:
    """An upright picture: its size, overviews, and regions in full detail.

    Args:
        source: whatever `mgpo.images.imaging.open_image` takes.
        max_image_pixels: limit for width times height.

    Attributes:
        done_with: whether no region will be needed any more, so that its decoded picture may be dropped for others.
        seconds_waited: time that `crop` waited for pixels so far, in seconds.

    Raises:
        ImageError: the header cannot be read, or the picture is over the limit. Damage further in is found when it is
            decoded, by `overview` at the latest.
    """

    def __init__(self, source: Any, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> None:
        self.source, self.max_image_pixels = source, max_image_pixels
        self.size, reducible = imaging.read_header(source, max_image_pixels)
        self.reducible = reducible and self.width * self.height >= WORTH_PIXELS
        self.done_with, self.seconds_waited = False, 0.0
        self._decoding = Lock()
        self._image: Image.Image | None = None
        self._crops: dict[tuple[Any, PixelBudget], Image.Image] = {}
        self._read_to_its_end = self._region_was_cut = False

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
        return without_padding(self._whole())

    def drop(self) -> None:
        """Forget the decoded picture; it is decoded again when it is needed."""
        _decoded.drop(self)

    def decode_ahead(self) -> None:
        """Begin to decode the whole picture in the background if there is room: a region of it will be needed."""
        if self.reducible:
            in_background(self.decode_if_room)

    def decode_if_room(self) -> None:
        """Decode the whole picture now, unless others would have to be dropped for it; damage is left for later."""
        try:
            self._hold_if_room()
        except imaging.ImageError:
            pass  # raised again for the caller that needs the picture

    def overview(self, budget: PixelBudget) -> Image.Image:
        """The whole picture at the size at which a model with this budget sees it."""
        size = budget.fit(self.size)
        if self._reduces_to(size):
            shown = imaging.open_reduced(self.source, size, KEPT_RATIO, self.max_image_pixels)
        else:
            shown = resize(self._whole(), size)
        self._read_to_its_end = True
        return shown

    def overview_if_room(self, budget: PixelBudget) -> Image.Image | None:
        """The overview; None if that takes a whole picture for which others would have to be dropped."""
        if self._reduces_to(budget.fit(self.size)) or self._hold_if_room():
            return self.overview(budget)
        return None

    def crop(self, box_px_original: Box, budget: PixelBudget) -> Image.Image:
        """The region (x1, y1, x2, y2 in pixels of the picture), cut from the original and resized into the budget.

        Rollouts that name the same region are given the same image, so that it is encoded once. It must not be changed, and
        is kept as long as the photograph.
        """
        key = (box_px_original, budget)
        if key not in self._crops:
            self._crops.setdefault(key, self._cut(box_px_original, budget))
        return self._crops[key]

    def _cut(self, box_px_original: Box, budget: PixelBudget) -> Image.Image:
        start = time.perf_counter()
        region = self._region(box_px_original)
        if region is None:
            whole = self._whole()
            self.seconds_waited += time.perf_counter() - start
            return imaging.crop(whole, box_px_original, budget)
        self.seconds_waited += time.perf_counter() - start
        return imaging.overview(region, budget)

    def _reduces_to(self, size: tuple[int, int]) -> bool:
        return self.reducible and all(side >= 2 * KEPT_RATIO * shown for side, shown in zip(self.size, size))

    def _region(self, box_px_original: Box) -> Image.Image | None:
        """The region by itself, where that is cheaper than the whole picture."""
        at_hand = self._image is not None or self._decoding.locked()
        if at_hand or self._region_was_cut or not self._read_to_its_end:  # else damage behind it would not be found
            return None
        self._region_was_cut = True
        return imaging.open_region(self.source, box_px_original, self.max_image_pixels)

    def _whole(self) -> Image.Image:
        """The whole picture, perhaps with padding."""
        with self._decoding:
            if not isinstance(self.source, Image.Image):
                _decoded.make_room(self)
            return self._decode()

    def _hold_if_room(self) -> bool:
        with self._decoding:
            if isinstance(self.source, Image.Image):
                return True
            if not _decoded.reserve(self):
                return False
            self._decode()
            return True

    def _decode(self) -> Image.Image:
        image = self._image
        if image is not None:
            return image
        try:
            image = imaging.open_padded(self.source, self.max_image_pixels)
        except BaseException:
            _decoded.drop(self)
            raise
        if isinstance(self.source, Image.Image):
            self._image = image
        else:
            _decoded.keep(self, image)
        return image

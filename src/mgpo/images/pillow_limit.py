"""Pillow's own limit of pixels, a global by which it warns or raises: ours is explicit and comes from the caller."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_lock, _inside = threading.Lock(), 0
_limit: int | None = None


@contextmanager
def without_pillow_limit() -> Iterator[None]:
    """Switch Pillow's limit off for a while.

    The first to enter takes it away and the last to leave puts it back, so that threads do not restore it under one
    another.
    """
    global _inside, _limit
    with _lock:
        if not _inside:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _limit


def _forget_threads() -> None:
    """In a forked process: threads that were inside are not there any more."""
    global _lock, _inside
    if _inside:
        Image.MAX_IMAGE_PIXELS = _limit
    _lock, _inside = threading.Lock(), 0


os.register_at_fork(after_in_child=_forget_threads)

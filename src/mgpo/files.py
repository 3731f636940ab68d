"""Writes files so that they are complete or absent, whatever kills the process or fills the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path to write to. The file appears under its own name once all of it is on disk, and not if writing fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".part")
    try:
        yield aside
        flush(aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text file so that it is never seen half-written."""
    with whole(file) as aside:
        aside.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk and would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

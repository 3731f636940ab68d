"""Writes files so that they are complete or absent, whatever kills the process or fills the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
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


@contextmanager
def whole_folder(folder: Path, prefix: str, last: str) -> Iterator[Path]:
    """A folder to write to, inside `folder`. What is in it replaces what `folder` holds once all of it is there.

    If writing fails, `folder` is as it was. The file called `last` comes last, so that whoever finds it finds all of it.

    Args:
        folder: where everything ends up; what it holds is removed in the end. The caller has made sure that it may be.
        prefix: begins the name of the folder that is written to.
        last: name of a file.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()
        yield new
        old.mkdir()
        try:
            for path in sorted(folder.iterdir(), key=lambda path: path.name != last):
                if path != aside:
                    os.replace(path, old / path.name)
            for path in sorted(new.iterdir(), key=lambda path: path.name == last):
                os.replace(path, folder / path.name)
        except BaseException:  # what was there before comes back, in place of what is there in part
            for path in old.iterdir():
                if (folder / path.name).exists():
                    os.replace(folder / path.name, new / path.name)
                os.replace(path, folder / path.name)
            raise
        flush(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()

"""How `mgpo data convert` writes the picture of a row for other programs: the file's own bytes wherever they will do.

A file is copied byte for byte if it holds exactly the picture that `mgpo` shows: a JPEG, PNG or WebP of one frame that is stored
upright, without transparency and with 8 bits per value. Whoever opens such a file sees the same pixels, in the same frame of
coordinates. Any other picture (turned by EXIF, transparent, of 16 bits, a TIFF, an animation, or drawn in memory) is written anew: as PNG,
which loses nothing, or as JPEG if that was asked for. `Written.notes` counts each of these, and why.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from mgpo.data.admitting import LOOK
from mgpo.images.identity import file_of
from mgpo.images.imaging import ImageError, open_image, opened
from mgpo.images.orientation import TURNS, orientation
from mgpo.images.photograph import Photograph

COPIED = ("JPEG", "PNG", "WEBP")
"""Formats that any program reads, and reads alike."""
LIKE_RGB = ("RGB", "L", "P", "1", "CMYK")
"""Pillow's modes of 8 bits or less, which `convert("RGB")` shows as `mgpo.images.imaging` does if nothing is transparent."""
QUALITIES = range(50, 101)


class Written:
    """Makes pictures ready to be written, and counts what became of them.

    Args:
        jpeg: quality (50 to 100) of the JPEGs as which pictures are written that cannot be copied; PNG if None.

    Raises:
        ValueError: the quality is out of range.
    """

    def __init__(self, jpeg: int | None = None) -> None:
        if jpeg is not None and jpeg not in QUALITIES:
            raise ValueError(f"--jpeg {jpeg}: the quality of a JPEG is 50 to 100. 95 shows hardly any difference.")
        self.jpeg = jpeg
        self.copied, self.anew = 0, Counter[str]()

    def for_others(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows, each picture either as it was, to be copied, or as the bytes of a new file.

        Raises:
            ValueError: a picture cannot be decoded; the message names its row.
        """
        for row in rows:
            try:
                ready = {"image": self._ready(row["image"])}
                if row.get("more_images"):
                    ready["more_images"] = [self._ready(image) for image in row["more_images"]]
            except (ImageError, OSError) as error:
                raise ValueError(f"{row.get('source') or row.get('id') or 'A row'}: {error}") from error
            yield row | ready

    def for_mgpo(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows, with pictures in memory as the bytes of a new file. All that is a file already, `mgpo` reads as it is."""
        for row in rows:
            ready = {"image": self._file(row["image"])}
            if row.get("more_images"):
                ready["more_images"] = [self._file(image) for image in row["more_images"]]
            yield row | ready

    def notes(self) -> list[str]:
        """At most two lines: how many files were copied, and how many pictures were written anew, as what and why."""
        lines = [f"{_pictures(self.copied)} copied byte for byte"] if self.copied else []
        if self.anew:
            how = f"as JPEG of quality {self.jpeg}, which loses detail" if self.jpeg else "as PNG, which loses nothing"
            why = ", ".join(f"{count} {reason}" for reason, count in self.anew.most_common())
            lines.append(f"{_pictures(self.anew.total())} written anew {how}: {why}")
        return lines

    def _file(self, image: Any) -> Any:
        return self._encoded(image, "drawn in memory") if isinstance(image, Image.Image) else image

    def _ready(self, image: Any) -> Any:
        why = not_exact(image)
        if why:
            return self._encoded(image, why)
        Photograph(image).overview(LOOK)  # a file that is cut off must not be copied on
        self.copied += 1
        return image

    def _encoded(self, image: Any, why: str) -> dict[str, Any]:
        out, picture = io.BytesIO(), open_image(image)
        if self.jpeg is None:
            picture.save(out, "PNG")
        else:
            picture.save(
                out, "JPEG", quality=self.jpeg, subsampling=0
            )  # colours at full scale: fine print is often coloured
        self.anew[why] += 1
        return {"bytes": out.getvalue(), "path": None}


def not_exact(image: Any) -> str:
    """Why a row's image is not a file that holds exactly the picture; empty if it is one. Reads the header only.

    Raises:
        ImageError: the header cannot be read.
    """
    if isinstance(file_of(image), Image.Image):
        return "drawn in memory"
    with opened(image) as file:
        if file.format not in COPIED:
            return f"a {file.format}"
        if getattr(file, "n_frames", 1) > 1:
            return "animated"
        if orientation(file) in TURNS:
            return "turned by EXIF"
        if "transparency" in file.info or file.mode in ("RGBA", "LA", "PA"):
            return "transparent"
        return "" if file.mode in LIKE_RGB else "of more than 8 bits"


def _pictures(count: int) -> str:
    return "1 picture was" if count == 1 else f"{count} pictures were"

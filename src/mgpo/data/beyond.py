"""Notes on gold boxes that reach beyond their image, which `mgpo data check` and `mgpo train` print in the same words.

Such rows are used: gold boxes are for metrics alone, so that training learns the same from them. But a hit means that the centre of a
gold box lies in the model's box, and no valid box can hold a centre outside the image. Often the boxes of such rows are those of a
picture of another size, or x, y, width, height.
"""

from __future__ import annotations

from collections.abc import Sequence

from mgpo.data.repeats import first_of
from mgpo.method.question import Box, Question

TOLERANCE_PX = 1
"""Boxes reach so far beyond their image where a dataset rounded up."""


def beyond(question: Question, sizes: Sequence[tuple[int, int]]) -> str:
    """Which gold boxes of a question reach beyond their image, and how far in pixels; empty if none does.

    Args:
        question: its boxes are in pixels of the upright original of image `gold_image`.
        sizes: (width, height) of each of its images, in the same frame.
    """
    size = sizes[question.gold_image - 1]
    which = f"image {question.gold_image}" if len(sizes) > 1 else "the image"
    found = [f"{list(box)} {far}" for box in question.gold_boxes_px_original if (far := how_far(box, size, which))]
    return "; ".join(found)


def how_far(box: Box, size: tuple[int, int], which: str = "the image") -> str:
    """How far a box (x1, y1, x2, y2) reaches beyond an image of this size, all in its pixels; empty if it does not."""
    (x1, y1, x2, y2), (width, height) = box, size
    edges = {"left": -x1, "upper": -y1, "right": x2 - width, "lower": y2 - height}
    past = [f"{far} px beyond the {edge} edge" for edge, far in edges.items() if far > TOLERANCE_PX]
    if not past:
        return ""
    outside = x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0
    verb = "lies wholly outside, up to" if outside else "reaches"
    return f"{verb} {' and '.join(past)} of {which}, which has {width} x {height} pixels"


def beyond_note(rows: Sequence[str]) -> list[str]:
    """A line that counts these rows and names the first, each "place: what `beyond` says"; no line without any."""
    if not rows:
        return []
    have = "1 row has" if len(rows) == 1 else f"{len(rows)} rows have"
    return [
        f"note: {have} a gold box that reaches beyond its image. Such rows are used, since gold boxes are for metrics only; a box "
        f"whose centre is outside can never be hit: {first_of(rows)}"
    ]

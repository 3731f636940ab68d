"""Dense labels: what each merged vision token of a view shows. Pure, for the first stage of making `mgpo-tiny`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgpo.tiny.views import View
from mgpo.worlds.scene import COLOURS, DIRECTIONS, PRINT, neighbour

PRINTS = [(kind, value) for kind, values in PRINT.items() for value in values]
NO_COLOUR, NO_PRINT, SKIP = len(COLOURS), len(PRINTS), -100
NEIGHBOURS = len(DIRECTIONS) * len(COLOURS)


@dataclass(frozen=True)
class Labels:
    """What each of T merged tokens shows. `edges` are (x1, y1, x2, y2) minus the token's centre, in tokens."""

    colour: np.ndarray  # (T,) int, NO_COLOUR off any plate
    print: np.ndarray  # (T,) int, SKIP in overviews
    edges: np.ndarray  # (T, 4) float, NaN off any plate
    neighbours: np.ndarray  # (T, NEIGHBOURS) 0/1, NaN off any plate
    box: np.ndarray  # (T, 4) int pixels of the view, -1 off any plate


def box_in_view(box_px_original: tuple[float, ...], view: View) -> tuple[float, float, float, float]:
    """A box of the canvas in pixels of the view (not clipped)."""
    left, top, right, bottom = view.frame_px_original
    sx, sy = view.size[0] / (right - left), view.size[1] / (bottom - top)
    x1, y1, x2, y2 = box_px_original
    return (x1 - left) * sx, (y1 - top) * sy, (x2 - left) * sx, (y2 - top) * sy


def labels_of(view: View, is_overview: bool) -> Labels:
    """Dense labels of one view."""
    cols, rows = view.size[0] // 28, view.size[1] // 28
    cx, cy = np.meshgrid((np.arange(cols) + 0.5) * 28, (np.arange(rows) + 0.5) * 28)
    cx, cy = cx.reshape(-1), cy.reshape(-1)
    count = cx.size
    colour, prints = np.full(count, NO_COLOUR), np.full(count, SKIP if is_overview else NO_PRINT)
    edges, near = np.full((count, 4), np.nan), np.full((count, NEIGHBOURS), np.nan)
    boxes = np.full((count, 4), -1)
    for sign in view.scene.signs:
        x1, y1, x2, y2 = box_in_view(sign.box_px_original, view)
        inside = (cx > x1) & (cx < x2) & (cy > y1) & (cy < y2)
        colour[inside] = COLOURS.index(sign.colour)
        shown = np.clip([x1, y1, x2, y2], 0, [*view.size, *view.size])
        edges[inside] = (shown[None] - np.stack([cx, cy, cx, cy], 1)[inside]) / 28
        boxes[inside] = np.round(shown).astype(int)
        if is_overview:
            near[inside] = 0
            for d, direction in enumerate(DIRECTIONS):
                for other in view.scene.signs:
                    if neighbour(view.scene, other, direction) is sign:
                        near[inside, d * len(COLOURS) + COLOURS.index(other.colour)] = 1
        else:
            px, py = box_in_view((*sign.print_px, *sign.print_px), view)[:2]
            token = (abs(cx - px) <= 14) & (abs(cy - py) <= 14)
            prints[token] = PRINTS.index((sign.kind, sign.value))
    return Labels(colour, prints, edges, near, boxes)

"""What `mgpo-tiny` is shown while it is made: one overview and a few crops of each scene, at their budgeted sizes.

Everything about a view (signs, boxes, crops) follows from the seed and the number of its scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mgpo.images.imaging import PixelBudget, crop, overview
from mgpo.worlds.render import render
from mgpo.worlds.scene import LOOKS, Scene, sample_scene

BUDGET = PixelBudget(min_pixels=20 * 28 * 28, max_pixels=36 * 28 * 28)
ROW_BYTES = BUDGET.max_pixels * 3
CROPS = 4
SEED = 20_000
"""Seed of the scenes that the base model is made from. Training and evaluation use others, and other splits."""


@dataclass(frozen=True)
class View:
    """One image as the model sees it. `frame_px_original` is the region of the canvas it shows (x1, y1, x2, y2)."""

    scene: Scene
    frame_px_original: tuple[int, int, int, int]
    size: tuple[int, int]


def views_of(index: int, print_style: str = "fine") -> list[View]:
    """The overview of scene `index`, then `CROPS` crops around random signs with loose, uneven margins."""
    scene = sample_scene("pretrain", SEED, index, replace(LOOKS["pretrain"], print_style=print_style))
    rng = scene.rng("views")
    frames = [(0, 0, *scene.size_px)]
    for _ in range(CROPS):
        x1, y1, x2, y2 = scene.signs[rng.integers(len(scene.signs))].box_px_original
        side = math.sqrt((x2 - x1) * (y2 - y1))
        margins = rng.uniform(-0.02, 0.16, 4) * side
        if rng.uniform() < 0.2:
            margins += rng.normal(0, 0.08, 4) * side
        raw = (x1 - margins[0], y1 - margins[1], x2 + margins[2], y2 + margins[3])
        left, top = (max(0, round(v)) for v in raw[:2])
        right, bottom = min(scene.size_px[0], round(raw[2])), min(scene.size_px[1], round(raw[3]))
        frames.append((left, top, right, bottom))
    return [View(scene, f, BUDGET.fit((f[2] - f[0], f[3] - f[1]))) for f in frames]


def draw_views(index: int, print_style: str = "fine") -> np.ndarray:
    """Pixels of all views of scene `index`: uint8 (1 + CROPS, ROW_BYTES), each row padded with zeros."""
    rows = np.zeros((1 + CROPS, ROW_BYTES), np.uint8)
    views = views_of(index, print_style)
    canvas = render(views[0].scene)
    for row, view in zip(rows, views):
        shown = overview(canvas, BUDGET) if view is views[0] else crop(canvas, view.frame_px_original, BUDGET)
        pixels = np.asarray(shown).reshape(-1)
        row[: pixels.size] = pixels
    return rows


def view_pixels(row: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A stored row back as uint8 (height, width, 3)."""
    return row[: size[0] * size[1] * 3].reshape(size[1], size[0], 3)

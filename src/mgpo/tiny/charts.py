"""Eye charts: views full of fine print, for teaching `mgpo-tiny` to read.

A crop of the world holds one print; a chart holds sixteen, of the same size and drawing, so that reading is learned
from a tenth of the images.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mgpo.images.resizing import resize
from mgpo.tiny.labels import NEIGHBOURS, NO_PRINT, PRINTS, SKIP, Labels
from mgpo.worlds.render import panel
from mgpo.worlds.scene import LOOKS

SIZE = 168
CELLS = 4
OFTEN = np.array([2.5 if kind == "dots" else 1.0 for kind, _ in PRINTS])
OFTEN /= OFTEN.sum()
"""How often each print stands on a chart: counting comes slowest."""


def draw_chart(index: int, print_style: str = "fine") -> tuple[np.ndarray, np.ndarray]:
    """Chart `index`: pixels uint8 (168, 168, 3), and its prints: rows of (number, x, y), the centre in pixels."""
    rng = np.random.default_rng([77, index])
    look = replace(LOOKS["pretrain"], print_style=print_style)
    scale = rng.uniform(1.0, 1.45)  # a crop is drawn at the canvas' scale and shrunk
    stretch = rng.uniform(0.85, 1.18)  # and its sides are rounded to whole tokens, each for itself
    side = np.round(SIZE * scale * np.array([stretch**0.5, stretch**-0.5])).astype(int)
    canvas = Image.new("RGB", tuple(side.tolist()), tuple(int(v) for v in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(canvas)
    prints = []
    cell = side / CELLS
    for row in range(CELLS):
        for col in range(CELLS):
            x, y = np.array([col + 0.5, row + 0.5]) * cell + rng.uniform(-3, 3, 2)
            plate = tuple(int(v) for v in rng.integers(0, 256, 3))
            draw.rectangle((*(cell * [col, row]), *(cell * [col + 1, row + 1])), fill=plate)
            half = rng.uniform(12.5, 19.0) * scale
            number, light = int(rng.choice(len(PRINTS), p=OFTEN)), bool(rng.integers(2))
            shades = (int(rng.integers(205, 256)), int(rng.integers(0, 40)))
            height = half / rng.uniform(1.25, 1.7)
            panel(rng, canvas, draw, (x, y), half, shades if light else shades[::-1], look, *PRINTS[number], height)
            prints.append((number, x * SIZE / side[0], y * SIZE / side[1]))
    return np.asarray(resize(canvas, (SIZE, SIZE))), np.array(prints)


def rolled(pixels: np.ndarray, prints: np.ndarray, shift: tuple[int, int]) -> tuple[np.ndarray, Labels]:
    """A chart moved by `shift` (x, y) pixels, round its edges, and its dense labels (only prints are labelled).

    A crop holds its print anywhere; a chart's prints stand on a grid. What lies across an edge is not asked for.
    """
    side = SIZE // 28
    asked = np.full((side, side), NO_PRINT)
    for number, x, y in prints:
        x, y = (x + shift[0]) % SIZE, (y + shift[1]) % SIZE
        whole = min(x, y, SIZE - x, SIZE - y) > 9
        asked[int(y // 28), int(x // 28)] = number if whole else SKIP
    nothing = np.full((asked.size, 4), np.nan)
    labels = Labels(
        colour=np.full(asked.size, SKIP),
        print=asked.reshape(-1),
        edges=nothing,
        neighbours=np.full((asked.size, NEIGHBOURS), np.nan),
        box=np.full((asked.size, 4), -1),
    )
    return np.roll(pixels, (shift[1], shift[0]), (0, 1)), labels


def write_charts(folder: Path, count: int, workers: int, print_style: str = "fine") -> None:
    """Draw `count` charts into `folder` (charts.npy, chart_prints.npy)."""
    with ProcessPoolExecutor(workers) as pool:
        drawn = list(pool.map(draw_chart, range(count), repeat(print_style), chunksize=64))
    np.save(folder / "charts.npy", np.stack([pixels for pixels, _ in drawn]))
    np.save(folder / "chart_prints.npy", np.stack([prints for _, prints in drawn]))

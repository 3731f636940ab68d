"""Scenes of the `needle` world: where the signs are, before anything is drawn or asked.

Split, seed and index determine a scene: the same three always give the same scene. A scene holds signs: plates of a
saturated colour that can be seen in the overview, each with fine print (a letter, some dots or a shape) that cannot.
All lengths are fractions of the canvas' geometric mean side unless a name ends in `_px`.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
LETTERS = tuple("HKLNPRSTUXYZ")
"""None of them is also the letter of a choice (A to D), so that an answer can be read in one way only."""
SHAPES = ("circle", "square", "triangle", "star", "cross", "moon", "arrow", "diamond")
DOTS = ("2", "3", "4", "5")
PRINT = {"letter": LETTERS, "dots": DOTS, "shape": SHAPES}
"""What can be printed on a sign: kind -> values."""

DIRECTIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Look:
    """What the scenes of a split look like. Every `ood_` split changes one field of the `train` look.

    Attributes:
        aspects: canvas width over height, one is drawn per scene.
        megapixels: canvas area (range), in millions of pixels.
        signs: number of signs (inclusive range).
        side: side of a sign's plate (range), as a fraction of the canvas' geometric mean side.
        fonts: font families for letters, see `render.FONT_FILES`.
        background: `haze` (soft muted field with clutter) or `texture` (photograph-like fractal texture).
        print_style: `fine` (cannot be read in an overview) or `clear` (for a reader's first lessons).
    """

    aspects: tuple[float, ...] = (1.0, 4 / 3, 3 / 4, 7 / 5)
    megapixels: tuple[float, float] = (0.9, 1.2)
    signs: tuple[int, int] = (3, 5)
    side: tuple[float, float] = (0.187, 0.222)
    fonts: tuple[str, ...] = ("sans", "mono", "wide")
    background: str = "haze"
    print_style: str = "fine"


LOOKS = {
    "train": Look(),
    "test": Look(),
    "ood_fonts": Look(fonts=("serif", "roman", "stix")),
    "ood_texture": Look(background="texture"),
    "ood_crowded": Look(signs=(6, 7)),
    "ood_small": Look(side=(0.15, 0.175)),
    "ood_shapes": Look(aspects=(2.0, 0.5, 1.9)),
    # The base model is trained on this: wider canvases and one to five signs. Not an evaluation split.
    "pretrain": Look(aspects=(1.0, 1.0, 4 / 3, 3 / 4, 7 / 5, 5 / 7, 1.7, 0.6), signs=(1, 5), side=(0.182, 0.235)),
}
EVAL_SPLITS = ("test", "ood_fonts", "ood_texture", "ood_crowded", "ood_small", "ood_shapes")
IN_THE_OVERVIEW = {
    "ood_fonts": "nothing visible: only a crop shows that the letters have serifs",
    "ood_texture": "a photograph-like texture lies behind the signs, instead of a soft field with clutter",
    "ood_crowded": "six or seven signs of the usual size, instead of three to five",
    "ood_small": "plates take 15 to 17.5 % of the side, instead of 18.7 to 22.2",
    "ood_shapes": "twice as wide as high, or the reverse, at the same number of pixels",
}
"""What each split changes in the image that the model sees first; everything else is as in `train`."""


@dataclass(frozen=True)
class Sign:
    """One plate: `box_px_original` is its (x1, y1, x2, y2), `print_px` the centre of its print, in canvas pixels."""

    colour: str
    kind: str
    value: str
    box_px_original: tuple[int, int, int, int]
    print_px: tuple[float, float]

    @property
    def centre_px(self) -> tuple[float, float]:
        """The plate's centre (x, y) in pixels of the canvas."""
        x1, y1, x2, y2 = self.box_px_original
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Scene:
    """A canvas with signs; `key` seeds everything that is drawn."""

    key: tuple[int, int, int]
    look: Look
    size_px: tuple[int, int]
    signs: tuple[Sign, ...]

    def rng(self, purpose: str) -> np.random.Generator:
        """An independent random stream of this scene for one purpose."""
        return np.random.default_rng([*self.key, zlib.crc32(purpose.encode())])


def sample_scene(split: str, seed: int, index: int, look: Look | None = None) -> Scene:
    """The scene of (split, seed, index).

    Raises:
        ValueError: unknown split.
    """
    if split not in LOOKS:
        raise ValueError(f"Unknown split {split!r} of needle. Choose one of: {', '.join(LOOKS)}.")
    look = look or LOOKS[split]
    key = (zlib.crc32(split.encode()), seed, index)
    rng = np.random.default_rng([*key, 0])
    area = rng.uniform(*look.megapixels) * 1e6
    aspect = look.aspects[rng.integers(len(look.aspects))]
    size = (round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect)))
    boxes = _place(rng, look, size)
    colours = rng.permutation(len(COLOURS))[: len(boxes)]
    signs = []
    for box, colour in zip(boxes, colours):
        kind = ("letter", "letter", "dots", "shape")[rng.integers(4)]
        value = PRINT[kind][rng.integers(len(PRINT[kind]))]
        across, down = rng.uniform(0.3, 0.7, 2)
        print_px = (box[0] + across * (box[2] - box[0]), box[1] + down * (box[3] - box[1]))
        signs.append(Sign(COLOURS[colour], kind, value, box, print_px))
    return Scene(key, look, size, tuple(signs))


def _place(rng: np.random.Generator, look: Look, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes that do not touch, by rejection sampling; starts over when a layout cannot be completed."""
    unit = math.sqrt(size[0] * size[1])
    gap = 0.03 * unit
    wanted = int(rng.integers(look.signs[0], look.signs[1] + 1))
    for _ in range(200):
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(60):
            w, h = (round(rng.uniform(*look.side) * unit) for _ in range(2))
            x, y = int(rng.integers(4, size[0] - w - 4)), int(rng.integers(4, size[1] - h - 4))
            if all(x + w + gap < a or c + gap < x or y + h + gap < b or d + gap < y for a, b, c, d in boxes):
                boxes.append((x, y, x + w, y + h))
                if len(boxes) == wanted:
                    return boxes
    raise RuntimeError(f"{wanted} signs do not fit on a canvas of {size[0]}x{size[1]} px.")


def neighbour(scene: Scene, sign: Sign, direction: str) -> Sign | None:
    """The sign that stands `direction` (e.g. 'left of') `sign`: the nearest one in that quadrant.

    None if there is none, or if a second one could be meant (it lies near the quadrant's edge or is about as near).
    """
    candidates = []
    for other in scene.signs:
        if other is sign:
            continue
        dx = other.centre_px[0] - sign.centre_px[0]
        dy = other.centre_px[1] - sign.centre_px[1]
        along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[direction]
        if along > 0 and abs(across) < 1.3 * along:
            candidates.append((math.hypot(dx, dy), abs(across) < 0.75 * along, other))
    candidates.sort(key=lambda row: row[0])
    if not candidates or not candidates[0][1]:
        return None
    if len(candidates) > 1 and candidates[1][0] < 1.25 * candidates[0][0]:
        return None
    return candidates[0][2]

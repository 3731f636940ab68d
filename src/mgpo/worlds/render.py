"""Draws `needle` scenes with Pillow. One function matters: `render(scene)` -> RGB image at full resolution.

Fine print is drawn so that the overview does not give it away: all dots and shapes have the same amount of ink, and
letters turn, vary in weight and stand anywhere on the plate. `tests/worlds/test_needle.py` measures that a probe which
knows where to look stays near chance on the overview.
"""

from __future__ import annotations

import colorsys
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mgpo.images.imaging import open_image
from mgpo.worlds.scene import Look, Scene, Sign

HUES = {
    "red": 0.0, "orange": 0.075, "yellow": 0.15, "green": 0.35, "cyan": 0.5, "blue": 0.62, "purple": 0.77, "pink": 0.9,
}  # fmt: skip
FONT_FILES = {
    "sans": "DejaVuSans-Bold.ttf",
    "mono": "DejaVuSansMono-Bold.ttf",
    "wide": "DejaVuSans.ttf",
    "serif": "DejaVuSerif-Bold.ttf",
    "roman": "cmb10.ttf",
    "stix": "STIXGeneralBol.ttf",
}
"""Font families that matplotlib ships, so that a scene looks the same on every machine."""

FINE_GAIN, FINE_GRAIN = 0.75, 0.45
"""Contrast of a fine print's outline, and of the grain of its panel, as shares of the range from paper to ink."""
FINE_BLUR, FINE_CELL = 0.15, 0.34
"""Width of the blur that is taken off a fine print, and of a grain, as shares of the print's height."""
PRINT_HEIGHT = 0.08
"""Height of a letter, as a fraction of its plate's side: about 2.7 px in a 168-pixel overview, 12 px in a crop."""


def render(scene: Scene, backgrounds: str | Path | None = None) -> Image.Image:
    """Draw the scene.

    Args:
        backgrounds: a folder of photographs to stand behind the signs instead of the scene's own background.

    Returns:
        RGB image of `scene.size_px`.
    """
    rng = scene.rng("draw")
    canvas = _photo(rng, scene, backgrounds) if backgrounds else _background(rng, scene)
    draw = ImageDraw.Draw(canvas)
    if scene.look.background == "haze" and not backgrounds:
        _clutter(rng, draw, scene.size_px)
    for sign in scene.signs:
        _sign(rng, canvas, draw, scene, sign)
    return canvas


def _background(rng: np.random.Generator, scene: Scene) -> Image.Image:
    """A soft, muted field; with `texture`, octaves of noise in a natural palette."""
    octaves = (3, 7) if scene.look.background == "haze" else (3, 8, 24, 64, 160)
    saturation = 0.22 if scene.look.background == "haze" else 0.38
    base = np.array(_rgb(rng.uniform(), rng.uniform(0.05, saturation), rng.uniform(0.35, 0.8)), float)
    field = Image.new("RGB", scene.size_px, tuple(int(v) for v in base))
    for octave in octaves:
        strength = 26 / math.sqrt(octaves.index(octave) + 1)
        grain = base + rng.normal(0, strength, (octave, octave, 1)) + rng.normal(0, strength / 4, (octave, octave, 3))
        layer = Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).resize(
            scene.size_px, Image.Resampling.BILINEAR
        )
        field = layer if octave == octaves[0] else Image.blend(field, layer, 0.45)
    return field


def _photo(rng: np.random.Generator, scene: Scene, folder: str | Path) -> Image.Image:
    files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    if not files:
        raise FileNotFoundError(f"{folder} has no photographs (jpg, png, webp).")
    photo = open_image(files[rng.integers(len(files))])
    width, height = scene.size_px
    scale = max(width / photo.width, height / photo.height)
    photo = photo.resize((math.ceil(photo.width * scale), math.ceil(photo.height * scale)), Image.Resampling.BICUBIC)
    return photo.crop((0, 0, width, height))


def _clutter(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    """Muted boxes, discs, cables and specks: things to look at that are no signs."""
    unit = math.sqrt(size[0] * size[1])
    for _ in range(int(rng.integers(10, 22))):
        grey = tuple(int(v) for v in _rgb(rng.uniform(), rng.uniform(0, 0.2), rng.uniform(0.25, 0.85)))
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        w, h = rng.uniform(0.01, 0.12, 2) * unit
        form = rng.integers(3)
        if form == 0:
            draw.rectangle((x, y, x + w, y + h), fill=grey)
        elif form == 1:
            draw.ellipse((x, y, x + w, y + w), fill=grey)
        else:
            end = (x + rng.normal(0, 0.3) * unit, y + rng.normal(0, 0.3) * unit)
            draw.line((x, y, *end), fill=grey, width=max(1, round(0.006 * unit)))
    for _ in range(60):
        x, y, s = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(0.002, 0.008) * unit
        shade = int(rng.integers(30, 225))
        draw.rectangle((x, y, x + s, y + s), fill=(shade, shade, shade))


def _sign(rng: np.random.Generator, canvas: Image.Image, draw: ImageDraw.ImageDraw, scene: Scene, sign: Sign) -> None:
    """Plate, rim, small panel and the fine print on it."""
    x1, y1, x2, y2 = sign.box_px_original
    side = min(x2 - x1, y2 - y1)
    plate = _plate_colour(rng, sign.colour)
    rim = (25, 25, 25) if sign.colour != "black" else (200, 200, 200)
    draw.rounded_rectangle(
        (x1, y1, x2 - 1, y2 - 1),
        radius=side * rng.uniform(0.02, 0.15),
        fill=plate,
        outline=rim,
        width=max(1, side // 40),
    )
    light = bool(rng.integers(2)) if sign.colour not in ("white", "black") else sign.colour == "black"
    ink = int(rng.integers(0, 40)) if light else int(rng.integers(215, 256))
    paper = int(rng.integers(205, 256)) if light else int(rng.integers(0, 60))
    cx, cy = sign.print_px
    half = side * rng.uniform(0.085, 0.12)
    height = PRINT_HEIGHT * side * rng.uniform(0.95, 1.15)
    panel(rng, canvas, draw, (cx, cy), half, (paper, ink), scene.look, sign.kind, sign.value, height)


def panel(
    rng: np.random.Generator,
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    half: float,
    shades: tuple[int, int],
    look: Look,
    kind: str,
    value: str,
    height: float,
) -> None:
    """A small panel (`half` its side, in pixels) with one print of `height` pixels on it.

    `clear` print is ink on paper. `fine` print is an outline on a grained panel: the print minus its own blur, so that
    it has no tone of its own, under grain about as coarse as its strokes. Shrinking to the overview averages the
    outline away and leaves the grain; a crop keeps both.
    """
    paper, ink = shades
    (cx, cy), size = centre, round(2 * half)
    mask = print_mask(rng, look.fonts, kind, value, height)
    place = (round(cx - half), round(cy - half))
    inner = (round((size - mask.width) / 2 + rng.normal(0, 0.06) * half), round((size - mask.height) / 2))
    sheet = Image.new("L", (size, size))
    sheet.paste(mask, inner)
    if look.print_style == "fine":
        cells = max(3, round(size / (FINE_CELL * height)))
        cell = Image.fromarray(rng.integers(0, 256, (cells, cells)).astype(np.uint8))
        grain = np.asarray(cell.resize((size, size), Image.Resampling.BICUBIC), float) / 255
        ink_in = np.asarray(sheet, float) / 255
        outline = ink_in - np.asarray(sheet.filter(ImageFilter.GaussianBlur(FINE_BLUR * height)), float) / 255
        tone = np.clip(0.5 + FINE_GAIN * outline + FINE_GRAIN * (grain - 0.5), 0, 1)
        sheet = Image.fromarray((255 * tone).astype(np.uint8))
    corners = Image.new("L", (size, size))
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, size - 1, size - 1), radius=half * 0.2, fill=255)
    shade = Image.composite(Image.new("L", (size, size), ink), Image.new("L", (size, size), paper), sheet)
    canvas.paste(shade.convert("RGB"), place, corners)


def _plate_colour(rng: np.random.Generator, name: str) -> tuple[int, int, int]:
    if name == "white":
        return (int(rng.integers(238, 256)),) * 3
    if name == "black":
        return (int(rng.integers(0, 22)),) * 3
    hue = HUES[name] + rng.uniform(-0.014, 0.014)
    red, green, blue = _rgb(hue % 1.0, rng.uniform(0.82, 1.0), rng.uniform(0.8, 1.0))
    return int(red), int(green), int(blue)


def print_mask(rng: np.random.Generator, fonts: tuple[str, ...], kind: str, value: str, height: float) -> Image.Image:
    """Greyscale mask of one fine print `height` pixels high: drawn four times too large, turned, shrunk."""
    big = 4
    edge = round(height * 1.9)
    mask = Image.new("L", (edge * big, edge * big))
    draw = ImageDraw.Draw(mask)
    centre, radius = edge * big / 2, height * big / 2
    if kind == "letter":
        font = _font(fonts[rng.integers(len(fonts))], round(height * big * 1.36))
        draw.text((centre, centre), value, fill=255, font=font, anchor="mm")
        turn = rng.uniform(-12, 12)
    elif kind == "dots":
        _dots(rng, draw, centre, radius * 1.5, int(value))
        turn = rng.uniform(0, 360)
    else:
        _shape(draw, centre, radius * 0.78, value)
        turn = rng.uniform(-12, 12)
    return mask.rotate(turn, Image.Resampling.BICUBIC).resize((edge, edge), Image.Resampling.LANCZOS)


def _dots(rng: np.random.Generator, draw: ImageDraw.ImageDraw, centre: float, reach: float, count: int) -> None:
    """`count` dots with the same total ink, about evenly spread on a ring: its size says nothing of their number."""
    r = reach * 0.50 / math.sqrt(count)
    angles = 2 * math.pi * np.arange(count) / count + rng.normal(0, 0.06, count)
    rings = reach * 0.85 * (1 + rng.normal(0, 0.03, count))
    spots = zip(rings * np.cos(angles), rings * np.sin(angles))
    for x, y in spots:
        draw.ellipse((centre + x - r, centre + y - r, centre + x + r, centre + y + r), fill=255)


def _shape(draw: ImageDraw.ImageDraw, c: float, radius: float, name: str) -> None:
    """A shape with the same area as every other one."""
    area = 2.1 * radius**2
    if name == "circle":
        r = math.sqrt(area / math.pi)
        draw.ellipse((c - r, c - r, c + r, c + r), fill=255)
    elif name == "moon":
        r = math.sqrt(area / math.pi / 0.62)
        draw.ellipse((c - r, c - r, c + r, c + r), fill=255)
        draw.ellipse((c - r * 0.35, c - r * 0.9, c + r * 1.35, c + r * 0.8), fill=0)
    elif name == "cross":
        a = math.sqrt(area / 5)
        draw.rectangle((c - 1.5 * a, c - a / 2, c + 1.5 * a, c + a / 2), fill=255)
        draw.rectangle((c - a / 2, c - 1.5 * a, c + a / 2, c + 1.5 * a), fill=255)
    else:
        polygons: dict[str, list[tuple[float, float]]] = {
            "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
            "diamond": [(0, -1.25), (0.9, 0), (0, 1.25), (-0.9, 0)],
            "triangle": [(0, -1.1), (1.15, 0.9), (-1.15, 0.9)],
            "arrow": [(-1.2, -0.35), (0, -0.35), (0, -1), (1.2, 0), (0, 1), (0, 0.35), (-1.2, 0.35)],
            "star": [
                (math.sin(i * math.pi / 5) * (1.3 if i % 2 == 0 else 0.55), -math.cos(i * math.pi / 5) * (1.3 if i % 2 == 0 else 0.55))
                for i in range(10)
            ],
        }  # fmt: skip
        corners = polygons[name]
        own = 0.5 * abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, corners[1:] + corners[:1])))
        scale = math.sqrt(area / own)
        draw.polygon([(c + x * scale, c + y * scale) for x, y in corners], fill=255)


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, ...]:
    return tuple(255 * v for v in colorsys.hsv_to_rgb(hue, saturation, value))


@lru_cache(maxsize=64)
def _font(family: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONT_FILES[family]), size)

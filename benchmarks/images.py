"""Time from a file to an overview and one crop, against decoding it whole with Pillow.

    python -m benchmarks.images --out images.json

The peer does what one writes first: `Image.open`, `convert("RGB")`, a bicubic resize to the overview, a crop and its
resize. Ours is `mgpo.images.photograph.Photograph`, which decodes a JPEG reduced for the overview and whole for the crop, the latter
in the background. Ratios are peer / ours of wall-clock time, medians over pairs, file cache warm; the difference is the mean
of absolute differences of both overviews, in steps of 1/255. Pictures are made here by enlarging a photograph (or noise, if
there is none) and adding grain, so that files have the size of camera files; `--photos` adds real ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from mgpo.images.imaging import PixelBudget
from mgpo.images.photograph import Photograph

SIZES = {
    "2 MP": (1920, 1080),
    "8 MP": (3840, 2160),
    "24 MP": (6000, 4000),
    "33 MP (8K)": (7680, 4320),
    "100 MP": (11648, 8736),
}
FORMATS = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 1}, "WEBP": {"quality": 85, "method": 0}}
BUDGET = PixelBudget(256 * 784, 1280 * 784)
PHOTOS = Path("../shared/photos")


def make_pictures(folder: Path, photos: list[Path], formats: list[str], most: int) -> dict[str, Path]:
    """A file of each format and size up to `most` pixels."""
    rng = np.random.default_rng(0)
    if photos:
        base = Image.open(photos[0]).convert("RGB")
    else:
        base = Image.fromarray(rng.integers(0, 256, (90, 160, 3), np.uint8)).resize(
            (1920, 1080), Image.Resampling.BICUBIC
        )
    files = {}
    for label, size in SIZES.items():
        if size[0] * size[1] > most:
            continue
        pixels = np.asarray(base.resize(size, Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-6, 7, (*pixels.shape[:2], 1), np.int16)
        picture = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
        for kind in formats:
            if kind == "WEBP" and max(size) > 16_383:
                continue
            files[f"{kind} {label}"] = folder / f"{size[0]}.{kind.lower()}"
            picture.save(files[f"{kind} {label}"], kind, **FORMATS[kind])
    return files


def region_of(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A region of a sixth of each side, past the middle."""
    width, height = size
    return width // 2, height // 2, width // 2 + width // 6, height // 2 + height // 6


def ours(file: Path) -> Image.Image:
    photograph = Photograph(file)
    photograph.decode_ahead()
    shown = photograph.overview(BUDGET)
    photograph.crop(region_of(photograph.size), BUDGET)
    return shown


def pillow(file: Path) -> Image.Image:
    image = Image.open(file).convert("RGB")
    shown = image.resize(BUDGET.fit(image.size), Image.Resampling.BICUBIC)
    region = image.crop(region_of(image.size))
    region.resize(BUDGET.fit(region.size), Image.Resampling.BICUBIC)
    return shown


def measure(label: str, file: Path, pairs: int) -> dict[str, Any]:
    Image.MAX_IMAGE_PIXELS = None  # the peer's own limit; ours is explicit
    seconds: dict[str, list[float]] = {"ours": [], "pillow": []}
    shown = {}
    for _ in range(pairs + 1):
        for name, make in (("ours", ours), ("pillow", pillow)):
            start = time.perf_counter()
            shown[name] = make(file)
            seconds[name].append(time.perf_counter() - start)
    ratios = [p / o for o, p in zip(seconds["ours"][1:], seconds["pillow"][1:])]
    pixels = [np.asarray(shown[name], np.int16) for name in ("ours", "pillow")]
    same = pixels[0].shape == pixels[1].shape  # a turned photograph (EXIF) is shown upright by ours only
    return {
        "file": label,
        "megabytes": round(file.stat().st_size / 1e6, 1),
        "ratio": statistics.median(ratios),
        "mean_abs_diff": float(np.abs(pixels[0] - pixels[1]).mean()) if same else None,
        "ms": round(1000 * statistics.median(seconds["ours"][1:])),
        "pillow_ms": round(1000 * statistics.median(seconds["pillow"][1:])),
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("images.json"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of real photographs")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--most", type=float, default=100e6, help="skip sizes of more pixels than this")
    args = parser.parse_args()
    photos = sorted(p for p in args.photos.glob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as name:
        files = make_pictures(Path(name), photos, args.formats, int(args.most * 1.05))
        for label, file in {**files, **{f"photograph {p.name}": p for p in photos}}.items():
            rows.append(measure(label, file, args.pairs))
            console.print(f"{label}: {rows[-1]['ratio']:.2f}")
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    table = Table("file", "MB", "ms", "Pillow ms", "ratio", "mean abs. diff. / 255")
    for row in rows:
        diff = "-" if row["mean_abs_diff"] is None else f"{row['mean_abs_diff']:.2f}"
        table.add_row(
            row["file"], str(row["megabytes"]), str(row["ms"]), str(row["pillow_ms"]), f"{row['ratio']:.2f}", diff
        )
    console.print(table)


if __name__ == "__main__":
    main()

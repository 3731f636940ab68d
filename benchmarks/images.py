"""Time from a file to an overview and then to one crop, against decoding it whole with Pillow.

    python -m benchmarks.images --out images.json
    taskset -c 1 python -m benchmarks.images --out one_core.json --think 0

The peer does what one writes first: `Image.open`, `convert("RGB")`, a bicubic resize to the overview, a crop and its
resize. Ours is `mgpo.images.photograph.Photograph` as `GroundedVQA` uses it, once with the decoders of the extra `fast-images`
and once without (`plain`): a JPEG is decoded reduced for the overview and then whole in the background. Between the
overview and the crop a model would think; `--think` waits for that many seconds, in which ours may go on decoding, and does
not count them. Figures are medians of wall-clock time, file cache warm, the three taking turns; the difference is the mean of
absolute differences of both overviews, in steps of 1/255. Pictures are made here by enlarging a photograph (or noise, if there
is none) and adding grain, so that files have the size of camera files; `--photos` adds real ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch  # noqa: F401  # as in every program that runs a model; large pictures are shrunk by it
from PIL import Image
from rich.console import Console
from rich.table import Table

from mgpo.images import decoders
from mgpo.images.imaging import PixelBudget
from mgpo.images.photograph import Photograph

SIZES = {
    "2 MP": (1920, 1080),
    "8 MP": (3840, 2160),
    "24 MP": (6000, 4000),
    "33 MP (8K)": (7680, 4320),
    "100 MP": (11648, 8736),
}
FORMATS = {
    "JPEG": {"quality": 90},
    "PNG": {"compress_level": 1},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"quality": 85, "method": 0},
}
BUDGET = PixelBudget(256 * 784, 1280 * 784)
PHOTOS = Path("../shared/photos")


def make_pictures(folder: Path, photos: list[Path], formats: list[str], least: int, most: int) -> dict[str, Path]:
    """A file of each format and size of `least` to `most` pixels."""
    rng = np.random.default_rng(0)
    if photos:
        base = Image.open(photos[0]).convert("RGB")
    else:
        base = Image.fromarray(rng.integers(0, 256, (90, 160, 3), np.uint8)).resize(
            (1920, 1080), Image.Resampling.BICUBIC
        )
    files = {}
    for label, size in SIZES.items():
        if not least <= size[0] * size[1] <= most:
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


def ours(file: Path, think: float) -> tuple[Image.Image, float, float]:
    """The overview, and seconds until it and until the crop after it."""
    start = time.perf_counter()
    photograph = Photograph(file)
    shown = photograph.overview(BUDGET)
    first = time.perf_counter() - start
    photograph.decode_ahead()
    time.sleep(think)
    start = time.perf_counter()
    photograph.crop(region_of(photograph.size), BUDGET)
    return shown, first, time.perf_counter() - start


def plain(file: Path, think: float) -> tuple[Image.Image, float, float]:
    with patch.object(decoders, "_library", lambda name: None):
        return ours(file, think)


def pillow(file: Path, think: float) -> tuple[Image.Image, float, float]:
    start = time.perf_counter()
    image = Image.open(file).convert("RGB")
    shown = image.resize(BUDGET.fit(image.size), Image.Resampling.BICUBIC)
    first = time.perf_counter() - start
    start = time.perf_counter()
    region = image.crop(region_of(image.size))
    region.resize(BUDGET.fit(region.size), Image.Resampling.BICUBIC)
    return shown, first, time.perf_counter() - start


def measure(label: str, file: Path, pairs: int, think: float) -> dict[str, Any]:
    Image.MAX_IMAGE_PIXELS = None  # the peer's own limit; ours is explicit
    seconds: dict[str, list[tuple[float, float]]] = {way.__name__: [] for way in (ours, plain, pillow)}
    shown = {}
    for _ in range(pairs + 1):
        for way in (ours, plain, pillow):
            image, *took = way(file, think)
            shown[way.__name__] = np.asarray(image, np.int16)
            seconds[way.__name__].append((took[0], took[1]))
    row: dict[str, Any] = {"file": label, "megabytes": round(file.stat().st_size / 1e6, 1), "pairs": pairs}
    for name, pair in seconds.items():
        first, second = (1000 * statistics.median(times) for times in zip(*pair[1:]))
        row |= {f"{name}_overview_ms": round(first), f"{name}_crop_ms": round(second)}
        row[f"{name}_ratio"] = statistics.median(sum(p) / sum(o) for p, o in zip(seconds["pillow"][1:], pair[1:]))
    same = shown["ours"].shape == shown["pillow"].shape  # a turned photograph (EXIF) is shown upright by ours only
    row["mean_abs_diff"] = float(np.abs(shown["ours"] - shown["pillow"]).mean()) if same else None
    row["equal_without_extra"] = bool(np.array_equal(shown["ours"], shown["plain"]))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("images.json"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of real photographs")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--most", type=float, default=100e6, help="skip sizes of more pixels than this")
    parser.add_argument("--least", type=float, default=0, help="skip sizes of fewer pixels than this")
    parser.add_argument("--think", type=float, default=0.0, help="seconds between overview and crop, not counted")
    args = parser.parse_args()
    if decoders._library("simplejpeg") is None or decoders._library("pyvips") is None:
        parser.error("pip install mgpo[fast-images] first")
    photos = sorted(p for p in args.photos.glob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as name:
        files = make_pictures(Path(name), photos, args.formats, int(args.least), int(args.most * 1.05))
        for label, file in {**files, **{f"photograph {p.name}": p for p in photos}}.items():
            rows.append(measure(label, file, args.pairs, args.think))
            console.print(f"{label}: {rows[-1]['ours_ratio']:.2f}")
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    table = Table(
        "file", "MB", *(f"{name}: overview, crop ms" for name in ("ours", "plain", "Pillow")), "ratio", "plain", "diff."
    )
    for row in rows:
        diff = "-" if row["mean_abs_diff"] is None else f"{row['mean_abs_diff']:.2f}"
        times = [f"{row[f'{name}_overview_ms']}, {row[f'{name}_crop_ms']}" for name in ("ours", "plain", "pillow")]
        ratios = f"{row['ours_ratio']:.2f}", f"{row['plain_ratio']:.2f}"
        table.add_row(row["file"], str(row["megabytes"]), *times, *ratios, diff)
    console.print(table)


if __name__ == "__main__":
    main()

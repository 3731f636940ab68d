"""Rendered views for making `mgpo-tiny`: one overview and a few crops per scene, written once and read many times.

    python -m mgpo.tiny.pool --out /tmp/pool --scenes 5000 --workers 2

Only pixels are stored, as fixed-size rows of bytes in a memory-mapped file: the rest follows from the number of the scene
(`views`).
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np

from mgpo.tiny.charts import write_charts
from mgpo.tiny.views import CROPS, ROW_BYTES, draw_views


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=5_000)
    parser.add_argument("--charts", type=int, default=6_000)
    parser.add_argument("--print-style", choices=("clear", "fine"), default="fine")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    from rich.progress import track

    args.out.mkdir(parents=True, exist_ok=True)
    shape = (args.scenes, 1 + CROPS, ROW_BYTES)
    pixels = np.lib.format.open_memmap(args.out / "views.npy", "w+", np.uint8, shape)
    with ProcessPoolExecutor(args.workers) as workers:
        drawn = workers.map(draw_views, range(args.scenes), repeat(args.print_style), chunksize=32)
        for index, rows in enumerate(track(drawn, total=args.scenes, description="rendering views")):
            pixels[index] = rows
    pixels.flush()
    write_charts(args.out, args.charts, args.workers, args.print_style)


if __name__ == "__main__":
    main()

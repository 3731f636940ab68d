"""How long a training step waits for its photographs: 16 questions of 8 rollouts on 33-megapixel JPEGs.

    python -m benchmarks.waiting --out waiting.json

The same training four times, as `mgpo train` would run it: with the next step's photographs opened ahead or not, and with the
decoders of the extra `fast-images` or with Pillow's. The model is `mgpo-tiny`, whose steps are the shortest that there are, so
that least time is left to decode in; it computes with one thread, and decoding has the other cores. `waited` is the metric
`pictures/wait_time`: opening photographs, making overviews, and waiting for the pixels of regions. `cut` is the time in which
regions are then cut and resized, which can only begin when a model has named them. The first step, before which nothing can be
opened, is not counted, nor are steps at which an epoch begins.

Files are gradients, soft shapes and grain, and photographs enlarged with grain, of 8 to 20 MB; names differ, so that none is
recognised. Boxes are set as in `benchmarks.step`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from benchmarks.images import PHOTOS
from benchmarks.workload import ROLLOUTS, TINY_BUDGET, set_boxes
from mgpo.config import MGPOConfig
from mgpo.images import decoders
from mgpo.images.photograph import Photograph
from mgpo.policies.loading import load_model, load_processor
from mgpo.policies.shipped import TINY
from mgpo.training.ahead import PicturesAhead
from mgpo.training.trainer import MGPOTrainer

QUESTIONS, SIZE = 16, (7680, 4320)


def make_files(folder: Path, count: int, photos: list[Path]) -> list[str]:
    """JPEGs of 33 megapixels, the fourth of them from photographs if there are any; `count` names for them."""
    rng, made = np.random.default_rng(0), []
    for number in range(4):
        if number == 3 and photos:
            base = Image.open(photos[0]).convert("RGB")
        else:
            base = Image.fromarray(rng.integers(0, 256, (27 * (number + 1), 48 * (number + 1), 3), np.uint8))
        pixels = np.asarray(base.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
        slope = np.linspace(-40, 40, SIZE[0]).astype(np.int16)[None, :, None]
        grain = rng.integers(-8, 9, (SIZE[1], SIZE[0], 1), np.int16)
        made.append(folder / f"base{number}.jpg")
        Image.fromarray(np.clip(pixels + slope + grain, 0, 255).astype(np.uint8)).save(made[-1], quality=90)
    names = [folder / f"{number}.jpg" for number in range(count)]
    for name, file in zip(names, itertools.cycle(made)):
        os.link(file, name)
    return [str(name) for name in names]


class StepTimes(TrainerCallback):
    """Seconds of each step, from when its batch is asked for to the update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter())


def train(files: list[str], steps: int, folder: Path) -> dict[str, float]:
    """Medians over the steps after the first."""
    rows = [
        {
            "image": file,
            "question": f"Which letter is on sign {i}?",
            "choices": list("HKLN"),
            "answer": "A",
            "id": str(i),
        }
        for i, file in enumerate(files)
    ]
    settings = MGPOConfig(
        output_dir=str(folder), per_device_train_batch_size=QUESTIONS * ROLLOUTS, num_generations=ROLLOUTS, max_steps=steps,
        learning_rate=1e-5, beta=0.0, loss_type="grpo", max_grounding_tokens=28, max_answer_tokens=12, max_reply_tokens=200,
        gradient_checkpointing=False, use_cpu=True, save_strategy="no", trajectories_every=0, disable_tqdm=True,
        freeze_vision_tower=True, min_box_side=8, seed=0, logging_steps=1, extra_reward_funcs=["benchmarks.step.varied"],
        reward_weights=[0.0, 1.0],
    )  # fmt: skip
    times, crop, cutting = StepTimes(), Photograph.crop, [0.0]

    def timed(photograph: Photograph, *arguments: Any) -> Image.Image:
        start, waited = time.perf_counter(), photograph.seconds_waited
        region = crop(photograph, *arguments)
        cutting[0] += time.perf_counter() - start - (photograph.seconds_waited - waited)
        return region

    data = datasets.Dataset.from_list(rows)
    trainer = MGPOTrainer(
        load_model(TINY, "float32", "cpu"), settings, data, load_processor(TINY, TINY_BUDGET), callbacks=[times]
    )
    with set_boxes(0), patch.object(Photograph, "crop", timed), patch.object(trainer, "log_completions", False):
        trainer.train()
    waited = [row["pictures/wait_time"] for row in trainer.state.log_history if "pictures/wait_time" in row]
    seconds = [after - before for before, after in zip(times.seconds, times.seconds[1:])]
    return {
        "step": statistics.median(seconds),
        "waited": statistics.median(waited[1:]),
        "first_waited": waited[0],
        "share": sum(waited[1:]) / sum(seconds),
        "cut": cutting[0] / steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("waiting.json"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of real photographs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    photos = sorted(p for p in args.photos.glob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as name:
        files = make_files(Path(name), args.steps * QUESTIONS, photos)
        for ahead, extra in itertools.product((True, False), (True, False)):
            with ExitStack() as patches:
                if not ahead:
                    patches.enter_context(patch.object(PicturesAhead, "look", lambda self, batches, last_step: batches))
                if not extra:
                    patches.enter_context(patch.object(decoders, "_library", lambda name: None))
                found = train(files, args.steps, Path(name) / f"run_{ahead}_{extra}")
            rows.append({"ahead": ahead, "extra": extra, **{key: round(value, 4) for key, value in found.items()}})
            console.print(rows[-1])
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    table = Table(
        "opened", "decoders", "step, s", "waited, s", "waited in the first step, s", "waited, share", "cut, s"
    )
    for row in rows:
        where = "during the step before" if row["ahead"] else "in the step", "extra" if row["extra"] else "Pillow"
        times = (f"{row[key]:.2f}" for key in ("step", "waited", "first_waited"))
        table.add_row(*where, *times, f"{100 * row['share']:.1f} %", f"{row['cut']:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()

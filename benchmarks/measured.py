"""Steps of random Qwen2.5-VL models of different shapes, timed by phase: what `benchmarks.scale` is calibrated on and tested with.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.measured --out benchmarks/measured.json

Each shape is a process of its own, on one thread, whose own time counts (`benchmarks.phases.now`), so that other programs on the
core do not. A point holds medians of the steps after the first, the mean lengths of its episodes, and the operations that
its phases needed by what was sampled. Points of `HELD_OUT` differ from those of `FITTED` in size, rollouts of a question, or pixels; no
factor is fitted to them. All of it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.phases import PHASES, Seconds, matmul_rate, needed, now
from benchmarks.workload import Random, Shape, begin_step, make_rows, make_trainer, set_boxes
from mgpo.images.imaging import PixelBudget

FILE = Path(__file__).with_name("measured.json")


def _budget(least: int, most: int) -> PixelBudget:
    """Between so many visual tokens of 28 x 28 pixels."""
    return PixelBudget(least * 784, most * 784)


def _shape(random: Random, least: int, most: int, questions: int, rollouts: int, frozen: bool = True) -> Shape:
    name = f"{random.hidden} x {random.layers}"
    return Shape(name, _budget(least, most), (2048, 1536), questions, frozen, rollouts=rollouts, random=random)


NARROW = Random(256, 768, 4, heads=4, tower=192, tower_inner=512, depth=4, whole=(1, 3))
DEEP = Random(192, 576, 12, heads=3, key_value_heads=1, tower=192, tower_inner=512, depth=6, whole=(2, 5))
FLAT = Random(512, 1536, 4, tower=256, tower_inner=704, depth=4, whole=(1, 3))
MIDDLE = Random(384, 1152, 8, heads=6, tower=256, tower_inner=704, depth=6, whole=(2, 5))
WIDE = Random()
LARGE = Random(768, 2304, 8, heads=12, key_value_heads=4, tower=384, tower_inner=1024, depth=6, whole=(2, 5))

FITTED = (
    _shape(NARROW, 100, 150, 2, 8),
    _shape(NARROW, 100, 150, 2, 8, frozen=False),
    _shape(NARROW, 20, 36, 6, 8),
    _shape(DEEP, 64, 100, 2, 8),
    _shape(FLAT, 100, 150, 2, 4),
    _shape(MIDDLE, 150, 200, 1, 16),
    _shape(MIDDLE, 200, 256, 1, 8, frozen=False),
)
HELD_OUT = (
    _shape(NARROW, 400, 640, 1, 8),
    _shape(MIDDLE, 64, 100, 1, 32),
    _shape(DEEP, 200, 256, 2, 4, frozen=False),
    _shape(WIDE, 256, 400, 1, 8),
    _shape(WIDE, 256, 400, 1, 8, frozen=False),
    _shape(LARGE, 100, 150, 1, 4),
)
"""More pixels; more rollouts; deep with other pixels and a trained tower; and two larger models."""


def lengths(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Mean lengths of the episodes of a step, in tokens, and how many tokens the longest turns have."""
    factor = 28**2
    shown = [[turn.image.width * turn.image.height // factor for turn in e.user_turns] for e in trainer._episodes]
    said, replies = [], []
    for mask, learned in zip(inputs["completion_mask"].bool(), inputs["tool_mask"]):
        own = learned[mask].bool().tolist()
        first, last = own.index(False), own[::-1].index(False)
        said.append((first, last))
        replies.append(len(own) - first - last)
    overview, crop = (statistics.mean(row[turn] for row in shown) for turn in range(2))
    crops = {id(turn.image) for e in trainer._episodes for turn in e.user_turns[1:]}
    overviews = {id(e.user_turns[0].image) for e in trainer._episodes}
    return {
        "question": float(inputs["prompt_mask"].sum(1).float().mean()) - overview,
        "overview": overview,
        "reply": statistics.mean(replies) - crop,
        "crop": crop,
        "said": [statistics.mean(turns) for turns in zip(*said)],
        "longest": [max(turns) for turns in zip(*said)],
        "new_crops": len(crops - overviews) / len(shown),
    }


def read_rate(megabytes: int = 512, repeats: int = 5) -> float:
    """Bytes per second that a sum over memory reads."""
    values = torch.ones(megabytes * 2**18)
    values.sum()
    start = now()
    for _ in range(repeats):
        values.sum()
    return repeats * values.nbytes / (now() - start)


def measure(shape: Shape, steps: int, held_out: bool) -> dict[str, Any]:
    """One point: the shape, its episodes, and the seconds and needed operations of each phase."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        rows = make_rows(shape, Path(name))
        trainer = make_trainer(shape, rows, True, Path(name) / "run")
        spent, seconds, operations, episodes = Seconds(trainer), [], [], []
        for seed in range(steps + 1):
            begin_step(trainer, seed)
            spent.clear()
            with set_boxes(seed):
                start = now()
                inputs = trainer._prepare_inputs(rows)
                rollout = now() - start
            start = now()
            spent.update(trainer, inputs)
            update, found = now() - start, dict(spent.spent)
            found["optimizer"] = update - found["update_forward"] - found["update_backward"]
            found["host"] = rollout - found["prefill"] - found["sampling"]
            seconds.append(found | {"step": rollout + update})
            operations.append(needed(trainer, inputs, shape.frozen))
            episodes.append(lengths(trainer, inputs))
        model, config = trainer.model, trainer.model.config
        vision = sum(p.numel() for p in model.model.visual.parameters())
        return {
            "name": shape.label, "held_out": held_out, "random": vars(shape.random) | {"whole": list(shape.random.whole)},
            "vocabulary": config.get_text_config().vocab_size,
            "parameters": sum(p.numel() for p in model.parameters()), "vision": vision, "frozen": shape.frozen,
            "questions": shape.questions, "rollouts": shape.rollouts, "episode": _medians(episodes[1:]),
            "operations": _medians(operations[1:]), "seconds": _medians(seconds[1:]),
            "matmul_rate": matmul_rate(config, torch.float32), "read_rate": read_rate(),
        }  # fmt: skip


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: [statistics.median(row[name][i] for row in rows) for i in range(len(rows[0][name]))]
        if isinstance(rows[0][name], list)
        else statistics.median(row[name] for row in rows)
        for name in rows[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--steps", type=int, default=2, help="measured steps per shape, after one that warms up")
    args = parser.parse_args()
    points = []
    for shape in FITTED + HELD_OUT:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            points.append(process.submit(measure, shape, args.steps, shape in HELD_OUT).result())
        args.out.write_text(json.dumps(points, indent=1) + "\n")
        spent = points[-1]["seconds"]
        print(
            points[-1]["name"],
            {name: round(spent[name], 2) for name in (*PHASES, "optimizer", "host", "step")},
            flush=True,
        )


if __name__ == "__main__":
    main()

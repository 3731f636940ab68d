"""One training step, with shared prompts and without, as ratios.

    python -m benchmarks.step --out step.json

The peer is TRL's stock machinery running the same two turns (`shared_prefix: false`): same model, same questions, same
boxes, same seed, same process, the two taking turns. Ratios are peer / ours, so 2.0 is twice as fast; memory is ours / peer.

Shapes: `mgpo-tiny`, and `35M`, a random Qwen2.5-VL with overviews and crops of 256 to 400 tokens. Random weights name no
boxes, so boxes are set (one in eight is rejected), and the reward varies in every group, so no rollout is skipped: what
is skipped in training comes on top, and is shown for `35M` with half of the groups silent.

The second table shows how near our path comes to the machine's rate of matrix products, phase by phase (`benchmarks.phases`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.phases import Seconds, shares, table_of_shares
from benchmarks.workload import ROLLOUTS, SHAPES, Shape, begin_step, decodings, make_rows, make_trainer, set_boxes
from mgpo.policies.shared.packed import base_of
from mgpo.training.trainer import MGPOTrainer


class Counts:
    """What went through a model: tokens of its language half, and patches of its tower."""

    def __init__(self, model: Any) -> None:
        self.tokens = self.patches = 0
        base = base_of(model)

        def language(module: Any, args: Any, kwargs: Any) -> None:
            rows, columns = kwargs["inputs_embeds"].shape[:2]
            self.tokens += rows * columns if columns > 1 else 0

        base.language_model.register_forward_pre_hook(language, with_kwargs=True)
        patches = base.visual.patch_embed
        patches.register_forward_pre_hook(lambda module, args: setattr(self, "patches", self.patches + len(args[0])))

    def take(self) -> tuple[int, int]:
        """Tokens and patches since the last call."""
        found = self.tokens, self.patches
        self.tokens = self.patches = 0
        return found


@dataclass
class Measured:
    """One step of one path: seconds, memory in bytes, tokens, and the share of the machine's rate by phase (ours only)."""

    rollout_s: float
    update_s: float
    update_bytes: int
    decoded_over_unique: float
    prefill_tokens: int
    update_tokens: int
    patches: int
    unique_prefill: int
    unique_update: int
    unique_patches: int
    shares: dict[str, float]


def step(trainer: MGPOTrainer, counts: Counts, spent: Seconds, rows: list, seed: int) -> Measured:
    """Rollout and update of one batch."""
    begin_step(trainer, seed)
    counts.take()
    spent.clear()
    with set_boxes(seed), decodings() as decoded:
        start = time.perf_counter()
        inputs = trainer._prepare_inputs(rows)
        rollout_s = time.perf_counter() - start
    prefill, patches = counts.take()

    def update() -> None:
        spent.update(trainer, inputs)

    update_s, peak = with_peak_memory(update)
    tokens, more_patches = counts.take()
    prompts = inputs["prompt_mask"].sum(1)
    own = inputs["completion_mask"].sum(1)
    scored = torch.ones_like(own, dtype=torch.bool) if trainer.sharing.sampler is None else inputs["advantages"] != 0

    def of_prompts(rows: torch.Tensor) -> int:
        ids = inputs["prompt_ids"][rows].tolist()
        return sum({tuple(row): int(n) for row, n in zip(ids, prompts[rows])}.values())

    context = int((inputs["completion_mask"] * (1 - inputs["tool_mask"])).sum())
    images = {id(t.image): t.image for e in trainer._episodes for t in e.user_turns}
    return Measured(
        rollout_s, update_s, peak, decoded.call_count / len(rows) * ROLLOUTS, prefill, tokens, patches + more_patches,
        of_prompts(own >= 0) + context, of_prompts(scored) + int(own[scored].sum()),
        sum(image.width * image.height // 196 for image in images.values()), shares(trainer, inputs, spent),
    )  # fmt: skip


def with_peak_memory(work: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and how far the resident memory of this process rose above where it stood (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return seconds, _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def measure(shape: Shape, repeats: int, threads: int) -> dict[str, Any]:
    """Both paths, step by step in turn; medians over the pairs."""
    torch.set_num_threads(threads)
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(shape, folder)
        paths = {kind: make_trainer(shape, rows, kind == "shared", folder / kind) for kind in ("shared", "stock")}
        counts = {kind: Counts(trainer.model) for kind, trainer in paths.items()}
        spent = {kind: Seconds(trainer) for kind, trainer in paths.items()}
        found: dict[str, list[Measured]] = {kind: [] for kind in paths}
        for repeat in range(repeats + 1):
            for kind, trainer in paths.items():
                found[kind].append(step(trainer, counts[kind], spent[kind], rows, repeat))
            console.print(f"{shape.label}: pair {repeat} of {repeats}" + (" (warm-up)" if not repeat else ""))
    ours, stock = found["shared"][1:], found["stock"][1:]

    def ratio(value: Callable[[Measured], float]) -> float:
        return statistics.median(value(s) / value(o) for o, s in zip(ours, stock))

    def mean(value: Callable[[Measured], float], of: list[Measured] = ours) -> float:
        return statistics.median(map(value, of))

    return {
        "shape": shape.label,
        "parameters": sum(p.numel() for p in paths["stock"].model.parameters()),
        "questions": shape.questions,
        "rollouts": ROLLOUTS,
        "pairs": repeats,
        "whole_step_ratio": ratio(lambda m: m.rollout_s + m.update_s),
        "rollout_ratio": ratio(lambda m: m.rollout_s),
        "update_ratio": ratio(lambda m: m.update_s),
        "update_memory_ratio": 1 / ratio(lambda m: m.update_bytes),
        "update_tokens_over_unique": mean(lambda m: m.update_tokens / m.unique_update),
        "prefill_tokens_over_unique": mean(lambda m: m.prefill_tokens / m.unique_prefill),
        "patches_over_unique": mean(lambda m: m.patches / m.unique_patches),
        "decoded_over_unique": mean(lambda m: m.decoded_over_unique),
        "shares": {name: statistics.median(m.shares[name] for m in ours) for name in ours[0].shares},
        "update_peak_mb": mean(lambda m: m.update_bytes / 1e6),
        "stock_update_peak_mb": mean(lambda m: m.update_bytes / 1e6, stock),
        "stock_update_tokens_over_unique": mean(lambda m: m.update_tokens / m.unique_update, stock),
        "stock_prefill_tokens_over_unique": mean(lambda m: m.prefill_tokens / m.unique_prefill, stock),
        "stock_patches_over_unique": mean(lambda m: m.patches / m.unique_patches, stock),
        "seconds": {"rollout": mean(lambda m: m.rollout_s), "update": mean(lambda m: m.update_s)},
        "stock_seconds": {"rollout": mean(lambda m: m.rollout_s, stock), "update": mean(lambda m: m.update_s, stock)},
    }


def table(results: list[dict[str, Any]]) -> Table:
    made = Table(title="ratios of stock TRL to shared prompts (higher is better; for memory, lower)")
    columns = (
        "whole_step_ratio", "rollout_ratio", "update_ratio", "update_memory_ratio", "update_tokens_over_unique",
        "prefill_tokens_over_unique", "patches_over_unique", "decoded_over_unique", "update_peak_mb",
    )  # fmt: skip
    for name in ("shape", *columns):
        made.add_column(name.replace("_", " "))
    for row in results:
        made.add_row(row["shape"], *(f"{row[name]:.{0 if name.endswith('mb') else 2}f}" for name in columns))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("step.json"))
    parser.add_argument("--pairs", type=int, default=5, help="paired runs per shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="run only the shapes whose label contains this text")
    args = parser.parse_args()
    results = []
    for shape in SHAPES:
        if not args.only or args.only in shape.label:
            # A process per shape, so that the memory of one does not weigh on the next; both paths share it.
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                results.append(process.submit(measure, shape, args.pairs, args.threads).result())
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    Console().print(table(results), table_of_shares(results))


if __name__ == "__main__":
    main()

"""One training step, with shared prompts and without, as ratios.

    python -m benchmarks.step --out step.json

The peer is TRL's stock machinery running the same two turns (`shared_prefix: false`): same model, same questions, same
boxes, same seed, same process, the two taking turns. Ratios are peer / ours, so 2.0 is twice as fast; memory is ours / peer.

Shapes: `mgpo-tiny`, and `35M`, a random Qwen2.5-VL with overviews and crops of 256 to 400 tokens. Random weights name no
boxes, so boxes are set (one in eight is rejected), and the reward varies in every group, so no rollout is skipped: what
is skipped in training comes on top, and is shown for `35M` with half of the groups silent.
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
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mgpo.config import MGPOConfig
from mgpo.images import imaging
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxStatus, Grounding
from mgpo.policies.loading import TINY, load_model, load_processor
from mgpo.policies.shared.packed import base_of
from mgpo.training.trainer import MGPOTrainer

ROLLOUTS = 8


@dataclass(frozen=True)
class Shape:
    """What is measured: a model, the size of its images, and how many questions a step has."""

    name: str
    budget: PixelBudget
    canvas: tuple[int, int]
    questions: int
    frozen: bool
    silent: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}, tower {'frozen' if self.frozen else 'trained'}" + (", half silent" if self.silent else "")


TINY_BUDGET, WIDE_BUDGET = PixelBudget(20 * 784, 36 * 784), PixelBudget(256 * 784, 400 * 784)
SHAPES = (
    Shape("mgpo-tiny", TINY_BUDGET, (1200, 900), 8, True),
    Shape("35M", WIDE_BUDGET, (2048, 1536), 2, True),
    Shape("35M", WIDE_BUDGET, (2048, 1536), 2, False),
    Shape("35M", WIDE_BUDGET, (2048, 1536), 2, True, silent=True),
)


def build_model(shape: Shape) -> Any:
    """The shipped model, or a random one of about 35 million parameters with its tokenizer."""
    tiny = load_model(TINY, "float32", "cpu")
    if shape.name == "mgpo-tiny":
        return tiny
    config = tiny.config.to_dict()
    config["text_config"] |= {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 2, "max_position_embeddings": 32_768, "layer_types": ["full_attention"] * 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 12, 12]},
    }  # fmt: skip
    config["vision_config"] |= {
        "hidden_size": 384, "intermediate_size": 1024, "depth": 6, "num_heads": 6, "out_hidden_size": 512,
        "fullatt_block_indexes": [2, 5], "window_size": 112,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    model.generation_config = tiny.generation_config
    model.config._name_or_path = "random"
    return model


def make_rows(shape: Shape, folder: Path) -> list[dict[str, Any]]:
    """Questions over pictures of their own, each once per rollout, as TRL hands them to the trainer."""
    rng, rows = np.random.default_rng(0), []
    for i in range(shape.questions):
        width, height = shape.canvas
        small = rng.integers(0, 256, (height // 24, width // 24, 3), np.uint8)
        file = folder / f"{i}.jpg"
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, quality=90)
        question = "Which letter is on the " + "very " * i + "small red sign?"
        rows.append({"image": str(file), "question": question, "choices": list("HKLN"), "answer": "A", "id": str(i)})
    return [row for row in rows for _ in range(ROLLOUTS)]


def varied(completion_ids: list, **_: Any) -> list[float]:
    """A reward that differs within every group."""
    return [float(i % 2) for i in range(len(completion_ids))]


def half_silent(completion_ids: list, **_: Any) -> list[float]:
    """As `varied`, with every other group all right."""
    return [float(i % 2 or (i // ROLLOUTS) % 2) for i in range(len(completion_ids))]


def make_trainer(shape: Shape, rows: list, shared: bool, folder: Path) -> MGPOTrainer:
    processor = load_processor(TINY, shape.budget)
    settings = MGPOConfig(
        output_dir=str(folder), per_device_train_batch_size=len(rows), num_generations=ROLLOUTS, max_steps=1000,
        learning_rate=1e-5, beta=0.0, loss_type="grpo", max_grounding_tokens=28, max_answer_tokens=12,
        max_reply_tokens=200, gradient_checkpointing=False, use_cpu=True, save_strategy="no", trajectories_every=0,
        disable_tqdm=True, freeze_vision_tower=shape.frozen, shared_prefix=shared, min_box_side=8, seed=0,
        extra_reward_funcs=[f"benchmarks.step.{'half_silent' if shape.silent else 'varied'}"], reward_weights=[0.0, 1.0],
    )  # fmt: skip
    trainer = MGPOTrainer(build_model(shape), settings, datasets.Dataset.from_list(rows[:1]), processor)
    trainer.create_optimizer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@contextmanager
def set_boxes(seed: int) -> Any:
    """Random weights name no boxes: read these instead, the same for both paths. One in eight is rejected."""
    rng = np.random.default_rng(seed)

    def read(text: str, frame: Any, rules: Any, numbered: Any) -> Grounding:
        width, height = frame.input_size
        side = rng.uniform(0.25, 0.4, 2) * (width, height)
        corner = rng.uniform(0, 1, 2) * ((width, height) - side)
        box = tuple(int(v) for v in (*corner, *(corner + side)))
        if rng.integers(8) == 0:
            return Grounding(BoxStatus.NO_JSON)
        return Grounding(BoxStatus.VALID, box, frame.to_original(box))

    with patch("mgpo.method.episode.read_grounding", read):
        yield


@contextmanager
def decodings() -> Any:
    """Counts the pictures that are decoded (these are small enough to be decoded whole)."""
    with patch.object(imaging, "open_padded", wraps=imaging.open_padded) as decoded:
        yield decoded


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
    """One step of one path: seconds, memory in bytes, and tokens."""

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


def step(trainer: MGPOTrainer, counts: Counts, rows: list, seed: int) -> Measured:
    """Rollout and update of one batch."""
    torch.manual_seed(seed)
    trainer._buffered_inputs, trainer._step = None, 0
    counts.take()
    with set_boxes(seed), decodings() as decoded:
        start = time.perf_counter()
        inputs = trainer._prepare_inputs(rows)
        rollout_s = time.perf_counter() - start
    prefill, patches = counts.take()

    def update() -> None:
        trainer.compute_loss(trainer.model, inputs).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

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
        sum(image.width * image.height // 196 for image in images.values()),
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
        found: dict[str, list[Measured]] = {kind: [] for kind in paths}
        for repeat in range(repeats + 1):
            for kind, trainer in paths.items():
                found[kind].append(step(trainer, counts[kind], rows, repeat))
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
    Console().print(table(results))


if __name__ == "__main__":
    main()

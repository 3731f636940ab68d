"""What the benchmarks of a training step have in common: shapes, models with random weights, questions, trainers, boxes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mgpo.config import MGPOConfig
from mgpo.images import imaging
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxStatus, Grounding
from mgpo.policies.loading import load_model, load_processor
from mgpo.policies.shared.vision_cache import towers
from mgpo.policies.shipped import TINY
from mgpo.training.trainer import MGPOTrainer

ROLLOUTS = 8


@dataclass(frozen=True)
class Random:
    """Widths and depths of a random Qwen2.5-VL: its language half, whose heads are a multiple of 16 wide, and its tower."""

    hidden: int = 512
    inner: int = 1536
    layers: int = 8
    heads: int = 8
    key_value_heads: int = 2
    tower: int = 384
    tower_inner: int = 1024
    depth: int = 6
    whole: tuple[int, ...] = (2, 5)

    @property
    def head(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Shape:
    """What is measured: a model, the size of its images, and how many questions a step has, each of so many rollouts.

    `mgpo-tiny` is the shipped model; any other name has random weights of the shape `random`.
    """

    name: str
    budget: PixelBudget
    canvas: tuple[int, int]
    questions: int
    frozen: bool
    silent: bool = False
    rollouts: int = ROLLOUTS
    random: Random = Random()

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
    """The shipped model, or a random one with its tokenizer."""
    tiny = load_model(TINY, "float32", "cpu")
    if shape.name == "mgpo-tiny":
        return tiny
    config, random = tiny.config.to_dict(), shape.random
    config["text_config"] |= {
        "hidden_size": random.hidden, "intermediate_size": random.inner, "num_hidden_layers": random.layers,
        "num_attention_heads": random.heads, "num_key_value_heads": random.key_value_heads, "max_position_embeddings": 32_768,
        "layer_types": ["full_attention"] * random.layers,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10_000.0,
            "mrope_section": [random.head // 8, random.head * 3 // 16, random.head * 3 // 16],
        },
    }  # fmt: skip
    config["vision_config"] |= {
        "hidden_size": random.tower, "intermediate_size": random.tower_inner, "depth": random.depth,
        "num_heads": random.tower // 64, "out_hidden_size": random.hidden,
        "fullatt_block_indexes": list(random.whole), "window_size": 112,
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
    return [row for row in rows for _ in range(shape.rollouts)]


def varied(completion_ids: list, **_: Any) -> list[float]:
    """A reward that differs within every group."""
    return [float(i % 2) for i in range(len(completion_ids))]


def half_silent(completion_ids: list, **_: Any) -> list[float]:
    """As `varied`, with every other group all right."""
    return [float(i % 2 or (i // ROLLOUTS) % 2) for i in range(len(completion_ids))]


def make_trainer(
    shape: Shape, rows: list, shared: bool, folder: Path, model: Any = None, **changes: Any
) -> MGPOTrainer:
    """A trainer of the shape's model, or of a given one, that is ready for its first step."""
    processor = load_processor(TINY, shape.budget)
    settings: dict[str, Any] = dict(
        output_dir=str(folder), per_device_train_batch_size=len(rows), num_generations=shape.rollouts, max_steps=1000,
        learning_rate=1e-5, beta=0.0, loss_type="grpo", max_grounding_tokens=28, max_answer_tokens=12,
        max_reply_tokens=200, gradient_checkpointing=False, use_cpu=True, save_strategy="no", trajectories_every=0,
        disable_tqdm=True, freeze_vision_tower=shape.frozen, shared_prefix=shared, min_box_side=8, seed=0,
        min_pixels=shape.budget.min_pixels, max_pixels=shape.budget.max_pixels,  # a random model has no budget of its own
        extra_reward_funcs=[f"benchmarks.workload.{'half_silent' if shape.silent else 'varied'}"], reward_weights=[0.0, 1.0],
    )  # fmt: skip
    args = MGPOConfig(**(settings | changes))
    trainer = MGPOTrainer(model or build_model(shape), args, datasets.Dataset.from_list(rows[:1]), processor)
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


def begin_step(trainer: MGPOTrainer, seed: int) -> None:
    """Let the trainer's next step sample anew, from this seed, as the first step of a training does."""
    torch.manual_seed(seed)
    trainer._buffered_inputs, trainer._step = None, 0
    forget_images(trainer)


@torch.no_grad()
def forget_images(trainer: MGPOTrainer) -> None:
    """Make a frozen tower encode the overviews anew, as it must in training, where the next step has other questions."""
    for tower in towers(trainer.accelerator.unwrap_model(trainer.model)):
        next(tower.parameters()).mul_(1)  # the cache notices that weights were written

"""`mgpo recipe`: writes a recipe that fits the GPUs at hand by the estimate of `mgpo.planning.estimate`, and says why.

    mgpo recipe --model Qwen/Qwen3-VL-4B-Instruct --gpus 1x24 --data my_data.jsonl --out mine.yaml

Training all weights comes before LoRA, and LoRA before LoRA on weights in 4 bits; more visual tokens come before larger
batches. Nothing is downloaded, and nothing is measured.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpo.config import DataArguments, MGPOConfig
from mgpo.files import write_whole
from mgpo.images.imaging import PixelBudget
from mgpo.method.methods import SFT
from mgpo.planning.early import refuse_request, size_to_train
from mgpo.planning.estimate import GIB, Estimate, estimate
from mgpo.planning.gpus import Gpus
from mgpo.planning.growing import lines_on
from mgpo.planning.sizes import SIZES, Size
from mgpo.policies.families import family_of_name

GROUP = 8
"""Rollouts of a question."""
UPDATE = 16
"""Questions of an update, where the GPUs are few enough."""
TOKENS = ((1280, 640), (320,))
"""Visual tokens of an image at most: the paper's, half of them; and fewer only if nothing else fits."""
BATCHES = ((8, False), (4, False), (8, True), (4, True), (2, True), (1, True))
"""Rollouts of a pass, and gradient checkpointing."""
PAPER_DATA, PAPER_HUB = "data/mme_realworld_train", "xinyu1205/mme_realworld_train_21690"
"""The folder of training data that the shipped recipes name, and the hub's dataset of which it is made (docs/data.md)."""
LINEAR_TARGETS = (
    r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|in_proj_qkv|in_proj_z|out_proj|gate_proj|up_proj|down_proj)"
)
"""LoRA's modules of a model with linear attention, whose projections have names of their own."""


@dataclass(frozen=True)
class Way:
    """Which weights are trained, by which settings, and whether they are split over the GPUs (ZeRO-3)."""

    name: str
    settings: dict[str, Any]
    sharded: bool = False


def ways(size: Size, gpus: Gpus) -> list[Way]:
    """The ways of training in order of preference."""
    lora: dict[str, Any] = {
        "dtype": "bfloat16",
        "use_peft": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "learning_rate": 2e-5,
    }
    if size.linear:
        lora["lora_target_modules"] = LINEAR_TARGETS
    full: dict[str, Any] = {"dtype": "float32", "learning_rate": 1e-6}
    found = [
        Way("full training", full),
        Way("training of all weights but the vision tower's", full | {"freeze_vision_tower": True}),
    ]
    if gpus.count > 1:
        found.append(Way("full training, sharded by ZeRO-3", full | {"dtype": "bfloat16"}, sharded=True))
    return [*found, Way("LoRA", lora), Way("4-bit LoRA", lora | {"load_in_4bit": True})]


@dataclass(frozen=True)
class Choice:
    """A way of training a model of this size, with its batches and visual tokens, and the estimate for it."""

    size: Size
    way: Way
    settings: dict[str, Any]
    tokens: int
    estimate: Estimate

    def fits(self, gpus: Gpus) -> bool:
        """Whether a GPU has the memory that the estimate asks for."""
        return self.estimate.needed <= gpus.gib * GIB


def choices(model: str, size: Size, way: Way, gpus: Gpus, method: str, tokens: int, images: int) -> Iterator[Choice]:
    """What can be set for a way, the preferred first: many rollouts at a time, then large passes."""
    side, form = 2 * size.patch, family_of_name(model)
    pixels = {"min_pixels": 256 * side**2, "max_pixels": tokens * side**2}
    if images > 1:
        pixels["max_images"] = images
    own = {name: value for name, value in way.settings.items() if name in DataArguments.__dataclass_fields__}
    data = DataArguments(model_name_or_path=model, attn_implementation="sdpa", **own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames fields that its own defaults still use
        config = MGPOConfig(
            use_cpu=True, method=method, beta=0.0, num_generations=GROUP, per_device_train_batch_size=GROUP, **pixels,
            freeze_vision_tower=way.settings.get("freeze_vision_tower", False),
        )  # fmt: skip
    protocol = config.protocol(PixelBudget.usual(side), form.form if form else None)
    most = max(1, UPDATE // gpus.count)
    questions = [q for q in (16, 8, 4, 2, 1) if q <= most] if method != SFT else [1]
    for at_once in questions:
        for batch, checkpointing in BATCHES:
            steps = GROUP * at_once // batch
            batches = {
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": steps * max(1, most // at_once),
                "steps_per_generation": steps,
                "gradient_checkpointing": checkpointing,
            }
            trial = copy.copy(config)
            for name, value in batches.items():
                setattr(trial, name, value)
            parts = config.episode_parts(protocol)
            found = estimate(size, data, trial, parts, tokens, gpus.count, way.sharded)
            yield Choice(size, way, {**way.settings, **pixels, **batches}, tokens, found)


def choose(model: str, gpus: Gpus, method: str = "mgpo", images: int = 1) -> tuple[Choice, list[str]]:
    """The preferred recipe that fits, and why what is preferred to it does not; `images` is the most of a question.

    Raises:
        ValueError: the model's size is not known, the method is not, or nothing fits; the message says what would.
    """
    size = size_to_train(model, method)
    refused: list[str] = []
    least: list[Choice] = []
    for tokens in TOKENS:
        refused.clear()
        for way in ways(size, gpus):
            last = None
            for count in tokens:
                for last in choices(model, size, way, gpus, method, count, images):
                    if last.fits(gpus):
                        return last, refused
            assert last is not None
            least.append(last)
            refused.append(f"{way.name} needs at least {_gib(last)} GiB, more than {gpus.gib:g}")
    nearest = min(least, key=lambda choice: choice.estimate.needed)
    smaller = _smaller_that_fit(model, size, gpus, method, images)
    raise ValueError(
        f"Nothing fits {model} on {gpus}. The least is {nearest.way.name} with {nearest.tokens} visual tokens, which needs "
        f"{_gib(nearest)} GiB. {f'What would fit: {smaller}.' if smaller else 'No smaller model of its family fits either.'}"
    )


def _smaller_that_fit(model: str, size: Size, gpus: Gpus, method: str, images: int) -> str:
    """Smaller models of the family for which some way fits."""
    family = next(name for name, known in SIZES.items() if known is size).rpartition("-")[0]
    others = [name for name, o in SIZES.items() if name.startswith(family + "-") and o.parameters < size.parameters]
    return " or ".join(
        name
        for name in others
        if any(
            choice.fits(gpus)
            for way in ways(SIZES[name], gpus)
            for choice in choices(model, SIZES[name], way, gpus, method, 320, images)
        )
    )


def reasons(choice: Choice, refused: list[str], model: str, gpus: Gpus) -> list[str]:
    """Why this recipe: what did not fit, what does, and what it takes."""
    found = choice.estimate
    return [
        f"{model} on {gpus}, by a rough estimate (not measured):",
        *(f"- {reason}" for reason in refused),
        f"- {choice.way.name} fits: {_gib(choice)} of {gpus.gib:g} GiB, {found.stays / GIB:.1f} at all times, the larger of "
        f"{sum(found.update.values()) / GIB:.1f} in an update and {sum(found.sampling.values()) / GIB:.1f} in sampling, and a reserve",
    ]


def write_recipe(model: str, gpus: Gpus, method: str, data: str, out: Path, images: int = 1) -> list[str]:
    """Choose a recipe and write it to a new file.

    Returns:
        Why it was chosen, in lines to print.

    Raises:
        ValueError: nothing fits, or the file exists.
    """
    refuse_request(model, method, out)
    choice, refused = choose(model, gpus, method, images)
    why = reasons(choice, refused, model, gpus)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, recipe_text(choice, why, model, gpus, method, data, out.name))
    if Path(data).suffix and not Path(data).exists():
        why.append(f"note: the data {data} does not exist yet")
    why += gpus.note()
    check = f"mgpo validate {out}" + (f" --num_gpus {gpus.count}" if gpus.count > 1 else "")
    return [*why, f"recipe: {out}; check it, and see what the estimate assumes: {check}"]


def recipe_text(choice: Choice, why: list[str], model: str, gpus: Gpus, method: str, data: str, name: str) -> str:
    """The recipe as YAML with comments."""
    s, size = choice.settings, choice.size
    batch, steps, accumulated = (
        s[key] for key in ("per_device_train_batch_size", "steps_per_generation", "gradient_accumulation_steps")
    )
    start, more = f"mgpo train --config {name}", []
    if gpus.count > 1:
        split = "zero3" if choice.way.sharded else "multi_gpu"
        start = f"mgpo train --accelerate_config {split} --num_processes {gpus.count} --config {name}"
    else:
        rounds = None if method == SFT else steps
        more = lines_on("multi_gpu", name, batch, accumulated, rounds, 1 if method == SFT else GROUP)
    together = batch * accumulated * gpus.count
    unit = "" if gpus.count == 1 else f" x {gpus.count} GPUs"
    numbers = [
        f"per_device_train_batch_size: {batch}",
        f"gradient_accumulation_steps: {accumulated}   # x {batch}{unit} = {together} "
        + ("questions per update" if method == SFT else f"rollouts = {together // GROUP} questions per update"),
    ]
    if method != SFT:
        at_once = batch * steps * gpus.count
        numbers.append(f"steps_per_generation: {steps}   # x {batch}{unit} = {at_once} rollouts are sampled at a time")
    own = {"freeze_vision_tower": "", "use_peft": "", "load_in_4bit": "   # needs bitsandbytes: pip install \"mgpo[qlora]\"",
           "lora_r": "", "lora_alpha": "", "lora_target_modules": "   # the default leaves linear attention out"}  # fmt: skip
    chosen = [f"{key}: {_yaml(s[key])}{note}" for key, note in own.items() if key in s]
    side = 2 * size.patch
    if size.linear:
        chosen.append(
            "chat_template_kwargs: {enable_thinking: false}   # the answer's 512 tokens hold no thinking block"
        )
    lines = [
        f"# {start}",
        *(f"# {line}" for line in more),
        f"# Written by: mgpo recipe --model {model} --gpus {gpus.written} --method {method} --data {data}"
        + (f" --images {s['max_images']}" if "max_images" in s else ""),
        *(f"# {line}" for line in why),
        *(["# ZeRO-3 needs DeepSpeed: pip install deepspeed"] if choice.way.sharded else []),
        *([f"# The data: mgpo data convert {PAPER_HUB} {PAPER_DATA}"] if data == PAPER_DATA else []),
        "# It has not been run on a GPU. mgpo validate prints the estimate with everything that it assumes.",
        f"model_name_or_path: {model}",
        f"output_dir: runs/{name.removesuffix('.yaml')}",
        f"dtype: {s['dtype']}" + ("           # computed in bfloat16 (bf16: true)" if s["dtype"] == "float32" else ""),
        "attn_implementation: sdpa",
        f"method: {method}",
        f"dataset_name: {data}",
        "bf16: true",
        *chosen,
        f"min_pixels: {s['min_pixels']}      # 256 x {side}^2",
        f"max_pixels: {s['max_pixels']}      # {choice.tokens} x {side}^2",
        *([f"max_images: {s['max_images']}"] if "max_images" in s else []),
        "max_steps: 300",
        f"learning_rate: {_yaml(1e-5 if method == SFT else s['learning_rate'])}",
        "lr_scheduler_type: constant",
        *([] if method == SFT else [f"num_generations: {GROUP}"]),
        *numbers,
        *([] if method == SFT else ["temperature: 1.0", "epsilon: 0.2", "beta: 0.0", "max_grounding_tokens: 128"]),
        *([] if method == SFT else ["max_answer_tokens: 512"]),
        f"gradient_checkpointing: {_yaml(s['gradient_checkpointing'])}",
        "logging_steps: 1",
        "save_steps: 50",
        "seed: 0",
    ]
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.1e}" if isinstance(value, float) else f"'{value}'" if isinstance(value, str) else str(value)


def _gib(choice: Choice) -> str:
    return f"{choice.estimate.needed / GIB:.1f}"

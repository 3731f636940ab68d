"""`mgpo validate RECIPE`: says in numbers what a recipe will do, and whether it can run.

    mgpo validate recipes/qwen2_5_vl_7b_mgpo.yaml --num_gpus 32

It loads no weights and uses no network. The recipe is parsed as `mgpo train` parses it, with two differences. It is
assumed to run on `num_gpus` devices (1 unless given; a setting of this command only), since TRL derives the generation
batch from their number. And it is built with `use_cpu`, so that a recipe for GPUs can be checked on a laptop:
transformers refuses `bf16` and `tf32` without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

from mgpo.config import DataArguments, MGPOConfig
from mgpo.data.loading import load_rows, refused
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm
from mgpo.method.groups import ignore_groups, refuse_small_groups, refuse_split_groups
from mgpo.method.methods import SFT
from mgpo.method.protocol import Protocol
from mgpo.planning.memory import memory_lines
from mgpo.planning.sizes import known_size
from mgpo.policies.families import family_of_name, form_of
from mgpo.policies.loading import budget_of, load_processor
from mgpo.policies.names import resolve
from mgpo.training.run import enough_questions, parse

QWEN2_5_VL_CONTEXT = 128_000
"""Context of the hub's Qwen2.5-VL checkpoints, as they state it, so that nothing needs to be fetched."""


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Facts about a checkpoint; None where they are not known without fetching it.

    Attributes:
        context: `max_position_embeddings`, in tokens.
        budget: its pixel budget where the recipe sets none (`mgpo.policies.loading.own_budget`).
        form: how its family writes boxes.
    """

    context: int | None = None
    budget: PixelBudget | None = None
    form: BoxForm | None = None


def validate_recipe(recipe: Path, overrides: list[str]) -> list[str]:
    """Check a recipe.

    Args:
        recipe: a YAML file.
        overrides: further settings as on the command line of `mgpo train`, and `--num_gpus N`.

    Returns:
        Lines to read: batches, tokens, memory, data. A line that starts with "note:" deserves attention.

    Raises:
        ValueError: the recipe cannot run; the message is a sentence that says why and what would.
    """
    devices, data, config = read_recipe(recipe, overrides)
    facts = model_facts(data.model_name_or_path)
    protocol = config.protocol(facts.budget or PixelBudget(), facts.form)
    images_known = facts.budget is not None or config.max_pixels is not None
    given = any(word.split("=")[0] in ("--num_gpus", "--num-gpus") for word in overrides)
    hint = "" if given else " (--num_gpus N checks it for another number)"
    lines = [f"{recipe}: {config.method} from {data.model_name_or_path} on {_count(devices, 'device')}{hint}"]
    if config.method == SFT:
        lines += _sft_lines(config, devices)
    else:
        lines += _batch_lines(config, devices)
    lines += _pixel_lines(protocol, images_known)
    parts = config.episode_parts(protocol)
    if config.method != SFT:
        config.check_vllm_length(protocol)
        lines += _token_lines(parts, config, protocol, facts.context, images_known)
    lines += memory_lines(data, config, devices, parts, protocol.budget.max_tokens)
    lines += _dataset_lines(data, config)
    if config.bf16 or config.fp16:
        lines.append("note: mixed precision (bf16, fp16) was not checked: your GPU must support it")
    return lines


def model_facts(name: str) -> ModelFacts:
    """Context and pixel budget of a policy: read from a folder; of a hub's model what its family and size tell.

    Raises:
        ValueError: the folder is no checkpoint.
    """
    try:
        folder = Path(resolve(name))
    except FileNotFoundError as error:
        raise ValueError(f"model_name_or_path: {error}") from error
    if not folder.is_dir():
        family, size = family_of_name(name), known_size(name)
        context = QWEN2_5_VL_CONTEXT if re.search(r"Qwen2\.5-VL-\d+B", name) else size.context if size else None
        budget = PixelBudget.usual(family.factor) if family is not None and family.factor is not None else None
        return ModelFacts(context, budget, family.form if family else BoxForm())  # training asks its config
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        budget = budget_of(load_processor(name))
    except ImportError:  # a family whose processor needs torchvision, on a machine without it
        budget = None
    except (OSError, ValueError) as error:
        raise ValueError(f"model_name_or_path: {name} is not a checkpoint with a processor ({error}).") from error
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return ModelFacts(context, budget, form_of(config.model_type))


def read_recipe(recipe: Path, overrides: list[str]) -> tuple[int, DataArguments, MGPOConfig]:
    """Number of devices and settings."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--num_gpus", "--num-gpus", type=int, default=1)
    try:
        mine, others = own.parse_known_args(overrides)
    except argparse.ArgumentError as error:
        raise ValueError(f"num_gpus must be a whole number: {error.message}.") from error
    if mine.num_gpus < 1:
        raise ValueError(f"num_gpus={mine.num_gpus}: at least one device is needed.")
    try:
        data, config = parse(["--config", str(recipe), *others], _config_on(mine.num_gpus))
    except TypeError as error:
        raise ValueError(f"{recipe} cannot be read: {error}") from error
    return mine.num_gpus, data, config


def _config_on(devices: int) -> type[MGPOConfig]:
    """`MGPOConfig` as on so many devices, whatever this machine has; the checks of this module come first."""

    class ConfigOn(MGPOConfig):
        world_size = property(lambda self: devices)

        def __post_init__(self) -> None:
            refuse_small_groups(self)
            if self.method == "sft":
                ignore_groups(self)
            try:
                refuse_split_groups(self, devices, "device")
            except ValueError as error:
                raise ValueError(f"{error} (--num_gpus sets the number of devices of this check.)") from error
            self.use_cpu, self.tf32 = True, None
            super().__post_init__()

    return ConfigOn


def _batch_lines(config: MGPOConfig, devices: int) -> list[str]:
    """Rollouts per generation and per update, and what follows from their ratio."""
    size, group = config.per_device_train_batch_size, config.num_generations
    steps, accumulated = config.steps_per_generation, config.gradient_accumulation_steps
    generated, updated = size * steps * devices, size * accumulated * devices
    updates = steps * config.num_iterations / accumulated  # per generation
    lines = [
        f"rollouts per generation: {_product(size, steps, devices)} = "
        f"{_count(generated // group, 'question')} x {group}",
        f"rollouts per update: {_product(size, accumulated, devices)} = "
        f"{_count(updated / group, 'question')} x {group}; {_count(updates, 'update')} per generation",
    ]
    # TRL's own condition (GRPOTrainer._generate_and_score_completions).
    if config.use_vllm and config.vllm_importance_sampling_correction:
        lines.append("old log-probabilities: recomputed, to be compared with vLLM's own")
    elif accumulated % (steps * config.num_iterations):
        lines.append("old log-probabilities: recomputed, since later updates see rollouts of an older policy")
    else:
        lines.append("old log-probabilities: not recomputed, since every update uses rollouts of the current policy")
    if (steps * config.num_iterations) % accumulated and accumulated % (steps * config.num_iterations):
        lines.append(
            f"note: some updates mix old and new rollouts; make steps_per_generation={steps} a multiple of "
            f"gradient_accumulation_steps={accumulated}"
        )
    if config.max_steps > 0:
        asked = config.max_steps * updated / config.num_iterations / group
        lines.append(
            f"in total: {_count(config.max_steps, 'update')} = "
            f"{_count(config.max_steps / updates, 'generation')} = {_count(asked, 'question')}"
        )
    return lines


def _sft_lines(config: MGPOConfig, devices: int) -> list[str]:
    size, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    batch = size * accumulated * devices
    lines = [f"questions per update: {_product(size, accumulated, devices)}; no rollouts"]
    if config.max_steps > 0:
        lines.append(f"in total: {_count(config.max_steps, 'update')} = {_count(config.max_steps * batch, 'question')}")
    return lines


def _pixel_lines(protocol: Protocol, known: bool) -> list[str]:
    if not known:
        return [
            "note: the model's pixel budget is not known here; set max_pixels to see how many tokens an image takes"
        ]
    budget, side = protocol.budget, protocol.budget.factor
    low = -(-budget.min_pixels // side**2)
    return [
        f"visual tokens: {low} to {budget.max_tokens} per image ({budget.min_pixels} to {budget.max_pixels} pixels, "
        f"{side} x {side} pixels each)"
    ]


def _token_lines(
    parts: dict[str, int], config: MGPOConfig, protocol: Protocol, context: int | None, images_known: bool
) -> list[str]:
    """The longest episode against `max_completion_length` and the model's context."""
    if not images_known:
        parts = {name: count for name, count in parts.items() if name not in ("overview", "crop")}
    words = " + ".join(f"{count} {name}" for name, count in parts.items())
    total = sum(parts.values())
    after = total - parts["question"] - parts.get("overview", 0)
    if 0 < (config.max_completion_length or 0) < after:
        raise ValueError(
            f"max_completion_length={config.max_completion_length} cannot hold the longest episode, {words}: {after} "
            f"tokens come after the first user turn. Set max_completion_length to {after}, or leave it out to have it "
            "computed."
        )
    if images_known:
        config.fit_context(protocol, context)
    images = "" if images_known else f" and {_count(config.max_images + protocol.turns - 1, 'image')}"
    holds = "the model's context is not known here" if context is None else f"the model's context holds {context}"
    return [f"longest episode: {words} = {total} tokens{images}, {after} after the first user turn; {holds}"]


def _dataset_lines(data: DataArguments, config: MGPOConfig) -> list[str]:
    """Where the questions are, and whether they suffice for one generation (TRL drops an incomplete one)."""
    name, split = data.dataset_name, data.dataset_split
    path = Path(name)
    if name == "needle":
        rows, lines = data.dataset_size, [f"dataset: needle, {data.dataset_size} questions, seed {data.dataset_seed}"]
    elif path.exists():
        try:
            loaded = load_rows(name, split)
        except FileNotFoundError as error:
            return [f"note: dataset: {error}"]
        rows = len(loaded.places)
        if loaded.bad and data.on_bad_row == "fail":
            raise refused(loaded.bad, rows, name)
        lines = [f"dataset: {name}, {rows} questions"]
        if "more_images" in loaded.questions.column_names:
            most = 1 + max(len(more or ()) for more in loaded.questions["more_images"])
            if most > config.max_images:
                raise ValueError(
                    f"{name} has questions about {most} images, more than max_images={config.max_images}. Set max_images to {most}."
                )
        if loaded.bad:
            lines.append(
                f"note: dataset: {_count(len(loaded.bad), 'row')} cannot be used and will be skipped; the first is "
                f"{loaded.bad[0]}"
            )
    else:
        return [f"note: dataset: {name} is not a file or folder here, so training will look for it on the hub"]
    enough_questions(config, rows, name)
    return lines


def _product(size: int, batches: int, devices: int) -> str:
    per_device = f"{size} per device x {_count(batches, 'batch')} x {_count(devices, 'device')}"
    return f"{per_device} = {size * batches * devices}"


def _count(number: float, what: str) -> str:
    number = int(number) if number == int(number) else round(number, 2)
    plural = what + ("es" if what.endswith("ch") else "s")
    return f"{number} {what if number == 1 else plural}"

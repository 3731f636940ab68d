"""Loads the model and the processor of a policy, with or without torchvision.

    model, processor = load_model("runs/mine"), load_processor("runs/mine")

`mgpo.policies.names` says what a name may be.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from mgpo.images.imaging import PixelBudget
from mgpo.policies.families import processor_of
from mgpo.policies.names import fetched_model, resolve, trained_with
from mgpo.policies.pictures import most_tokens
from mgpo.policies.processors import build_without_video, video_settings


def has_torchvision() -> bool:
    """Whether torchvision is installed and works (a CUDA build beside a CPU torch is installed but does not work)."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def load_processor(name_or_path: str, budget: PixelBudget | None = None) -> Any:
    """The processor of a policy.

    Args:
        name_or_path: `mgpo-tiny`, a folder or a hub id. A LoRA folder without a processor falls back to its base's.
        budget: pixel budget to set in the processor, so that a processor that is called directly agrees with
            `mgpo.images.imaging`; None takes that of `own_budget`.
    """
    path = base = resolve(name_or_path)
    adapter = Path(path) / "adapter_config.json"
    if adapter.is_file():
        base = resolve(json.loads(adapter.read_text())["base_model_name_or_path"])
        if not (Path(path) / "tokenizer_config.json").is_file():
            path = base
    config = path if (Path(path) / "config.json").is_file() else base
    with fetched_model(base):
        processor = _whole_processor(path, config) or _processor_without_video(path, config)
    if not hasattr(processor.image_processor, "merge_size") and most_tokens(processor) is None:
        raise ValueError(
            f"The processor of {name_or_path} ({type(processor).__name__}) does not cut an image into one grid of patches, so "
            "its images cannot be sized and counted here. Models of this family can be asked and evaluated behind an endpoint "
            "(--endpoint); docs/models.md lists those that can be trained."
        )
    processor.tokenizer.padding_side = "left"  # Qwen's default is "right"; generation and TRL's token types need "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    set_budget(processor, budget or own_budget(name_or_path, processor))
    return processor


def _whole_processor(path: str, config_path: str) -> Any:
    """transformers' own processor; None where torchvision is missing, or the video half of a known family.

    Args:
        path: folder or hub id of the processor.
        config_path: that of `config.json`, which a folder of adapters does not have.
    """
    if not has_torchvision():
        return None
    try:
        return AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except OSError:
        known = processor_of(AutoConfig.from_pretrained(config_path, trust_remote_code=False).model_type)
        if known is None or video_settings(path) is not None:
            raise
        return None  # the folder was saved without one, by an earlier version or by hand


def _processor_without_video(path: str, config_path: str) -> Any:
    config = AutoConfig.from_pretrained(config_path, trust_remote_code=False)
    model_type = config.model_type
    if processor_of(model_type) is None:
        raise ImportError(
            f"The processor of a {model_type} model needs torchvision, which is missing or does not work with "
            "the installed torch. Install the torchvision build that matches your torch."
        )
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    images = AutoImageProcessor.from_pretrained(path, trust_remote_code=False, backend="pil")
    return build_without_video(model_type, images, tokenizer, tokenizer.chat_template, config, video_settings(path))


def load_model(name_or_path: str, dtype: str | torch.dtype = "auto", device: str | None = None) -> PreTrainedModel:
    """The model of a policy, in evaluation mode; a LoRA folder is merged into its base.

    Only safetensors are read: a pickled checkpoint is refused.
    """
    logging.disable_progress_bar()  # a bar per checkpoint would break the caller's progress bar
    path = resolve(name_or_path)
    adapter = Path(path) / "adapter_config.json"
    base = resolve(json.loads(adapter.read_text())["base_model_name_or_path"]) if adapter.is_file() else path
    with fetched_model(base):
        model: Any = AutoModelForImageTextToText.from_pretrained(
            base, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    if adapter.is_file():
        from peft import PeftModel

        if not adapter.with_name("adapter_model.safetensors").is_file():  # peft would fall back to a pickle
            raise OSError(
                f"{path} has no adapter_model.safetensors. Only safetensors are read: convert the adapter to that format."
            )
        model = PeftModel.from_pretrained(model, path, use_safetensors=True).merge_and_unload()
    placed: PreTrainedModel = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return placed


def own_budget(name_or_path: str, processor: Any) -> PixelBudget:
    """The default pixel budget of a policy: that of its training run, else the method's 256 to 1280 visual tokens.

    The processor's own numbers are not used, because they are limits of the family: the hub's Qwen2.5-VL allows 4 to
    16,384 tokens, at which a crop would not be enlarged and an overview hardly shrunk.
    """
    images, settings = processor.image_processor, trained_with(name_or_path)
    tokens = most_tokens(processor)
    usual = PixelBudget.usual(images.patch_size * images.merge_size) if tokens is None else PixelBudget(tokens=tokens)
    return usual.changed(settings.get("min_pixels"), settings.get("max_pixels"))


def budget_of(processor: Any) -> PixelBudget:
    """The pixel budget that a processor is set to."""
    if (tokens := most_tokens(processor)) is not None:
        return getattr(processor, "given_budget", PixelBudget(tokens=tokens))
    size, images = dict(processor.image_processor.size), processor.image_processor
    counted = _counted(images)
    least, most = size["shortest_edge"] // counted, size["longest_edge"] // counted
    return PixelBudget(least, most, images.patch_size * images.merge_size)


def set_budget(processor: Any, budget: PixelBudget) -> None:
    """Set a processor to a pixel budget.

    A processor that cuts images by itself keeps its own rule; the budget is that of the images that it is given.
    """
    if most_tokens(processor) is not None:
        processor.given_budget = budget
        return
    counted = _counted(processor.image_processor)
    size = {"shortest_edge": budget.min_pixels * counted, "longest_edge": budget.max_pixels * counted}
    processor.image_processor.size = size


def _counted(images: Any) -> int:
    """How often an image processor counts each pixel against its limits: GLM's counts an image as two frames."""
    return int(images.temporal_patch_size) if type(images).__name__.startswith("Glm") else 1


def model_type_of(model: Any) -> str:
    """Model type of a loaded model, a folder or a hub id."""
    if not isinstance(model, str):
        return str(model.config.model_type)
    with fetched_model(model):
        return str(AutoConfig.from_pretrained(resolve(model), trust_remote_code=False).model_type)

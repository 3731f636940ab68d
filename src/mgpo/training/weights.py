"""How the model is loaded, and which weights are trained: all, LoRA's adapters, or all but the vision tower."""

from __future__ import annotations

from typing import Any

from mgpo.config import DataArguments
from mgpo.policies.shared.vision_cache import towers


def model_kwargs(data: DataArguments) -> dict[str, Any]:
    """Arguments for loading the model, which TRL passes to transformers."""
    kwargs: dict[str, Any] = {"dtype": data.dtype, "use_safetensors": True}
    if data.attn_implementation:
        kwargs["attn_implementation"] = data.attn_implementation
    return kwargs


def peft_config(data: DataArguments) -> Any:
    """LoRA's configuration, None if all weights are trained."""
    if not data.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=data.lora_r,
        lora_alpha=data.lora_alpha,
        lora_dropout=data.lora_dropout,
        target_modules=data.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def freeze_vision_tower(model: Any) -> None:
    """Train the language model only: the vision tower, which turns pixels into tokens, gets no gradients."""
    found = towers(model)
    if not found:
        raise ValueError(f"freeze_vision_tower: {type(model).__name__} has no module named visual or vision_tower.")
    for module in found:
        module.requires_grad_(False)

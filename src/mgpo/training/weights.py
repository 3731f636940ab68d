"""How the model is loaded, and which weights are trained: all, LoRA's adapters, or all but the vision tower.

`load_in_4bit` is QLoRA (arXiv 2305.14314): the frozen weights of the language model's linear layers are kept in 4 bits.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from mgpo.config import DataArguments
from mgpo.policies.shared.vision_cache import TOWERS, towers

logger = logging.getLogger(__name__)

NOT_QUANTIZED = [r".*\.visual", r".*\.vision_tower", r".*\.multi_modal_projector", "lm_head"]
"""Modules that stay in 16 bits, as transformers matches them: from the start of a module's name to a dot or its end. TRL's
log-probabilities read the head's weight directly, and the tower is small and sees every pixel."""


def model_kwargs(data: DataArguments) -> dict[str, Any]:
    """Arguments for loading the model, which TRL passes to transformers."""
    kwargs: dict[str, Any] = {"dtype": data.dtype, "use_safetensors": True}
    if data.attn_implementation:
        kwargs["attn_implementation"] = data.attn_implementation
    if data.load_in_4bit:
        kwargs["quantization_config"] = quantization()
    return kwargs


def quantization() -> Any:
    """4-bit NormalFloat with quantised scales, computed in bfloat16 (QLoRA), for all linear layers but `NOT_QUANTIZED`.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError('load_in_4bit needs bitsandbytes, which is not installed: pip install "mgpo[qlora]".')
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )


def restore_float32_adapters(model: Any) -> None:
    """Make the adapters of a 4-bit model float32, as those of every other model are: TRL makes them bfloat16.

    In bfloat16 most updates would be rounded away (`mgpo.training.precision`). Call it before the optimizer is made.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


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
        raise ValueError(f"freeze_vision_tower: {type(model).__name__} has no module named {' or '.join(TOWERS)}.")
    for module in found:
        module.requires_grad_(False)


def leave_out_router_loss(trainer: Any) -> None:
    """Train a mixture of experts without the router's loss where TRL cannot compute it: GLM-4.5V, which balances by a bias.

    Raises:
        ValueError: the settings ask for that loss.
    """
    text = trainer.model.config.get_text_config()
    if not trainer.aux_loss_enabled or hasattr(text, "num_experts"):
        return
    if trainer.args.router_aux_loss_coef:
        raise ValueError(
            f"router_aux_loss_coef={trainer.args.router_aux_loss_coef}: TRL cannot compute the router's loss of a "
            f"{trainer.model.config.model_type} model. Leave router_aux_loss_coef out or set it to 0."
        )
    trainer.aux_loss_enabled, trainer.router_aux_loss_coef = False, 0.0
    text.output_router_logits = False  # TRL's SFTTrainer has switched it on there
    logger.warning("The router's loss is left out: TRL cannot compute it for %s.", trainer.model.config.model_type)

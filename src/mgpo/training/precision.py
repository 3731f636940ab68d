"""Refuses to train bfloat16 weights without float32 copies: most updates of a small learning rate are rounded away.

bfloat16 keeps 8 bits of a number. The neighbours of a weight of 0.02 are 1e-4 away, and AdamW moves it by about the
learning rate: at the paper's 1e-6, nearly every update rounds to nothing (`tests/training/test_precision.py` measures
it). These work: `dtype: float32` with `bf16: true`, which computes in bfloat16; LoRA, whose adapters are float32; and
DeepSpeed or FSDP, which keep float32 copies of their shards.
"""

from __future__ import annotations

from typing import Any

import torch

LOW = (torch.bfloat16, torch.float16)
REMEDY = (
    "Set dtype: float32 (with bf16: true it is computed in bfloat16 all the same), train LoRA (use_peft), or start under "
    "DeepSpeed or FSDP, which keep float32 copies. --allow_low_precision_weights true trains as it is."
)


def refuse_rounded_weights(trainer: Any, allowed: bool) -> None:
    """Refuse full fine-tuning of low-precision weights that have no float32 copies.

    Raises:
        ValueError: there are such weights and `allowed` is false; the message names what would work.
    """
    if allowed or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or hasattr(trainer.model, "peft_config"):
        return
    low = [p for p in trainer.model.parameters() if p.requires_grad and p.dtype in LOW]
    if low:
        raise ValueError(
            f"{sum(p.numel() for p in low) / 1e6:,.1f} million trained weights are {str(low[0].dtype).removeprefix('torch.')} "
            f"without float32 copies: most updates of learning_rate={trainer.args.learning_rate:g} would be rounded away. {REMEDY}"
        )

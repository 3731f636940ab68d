"""Which models can share prompts, and how they are made ready for it.

use_packed_attention(model)
"""

from __future__ import annotations

from typing import Any

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mgpo.policies.families import shares_prompts
from mgpo.policies.shared.linear import pack_linear_layers
from mgpo.policies.shared.packed import LAYERS, is_hybrid, packed_attention

NAME = "mgpo_sdpa"


def use_packed_attention(model: Any) -> None:
    """Make a model's language half accept a `Packed` layout as attention mask.

    Raises:
        ValueError: the model does not support it; the message says why.
    """
    if not shares_prompts(model.config.model_type):
        raise ValueError(
            f"prompts of {model.config.model_type} models cannot be shared yet (docs/models.md lists those that can)"
        )
    if len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1:
        raise ValueError(
            "the model is split over devices (device_map), between which the layout of a packed row is lost"
        )
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", NAME):
        raise ValueError(f"it needs attn_implementation: sdpa, but the model uses {config._attn_implementation}")
    if set(getattr(config, "layer_types", None) or LAYERS[:1]) - set(LAYERS):
        raise ValueError("the model has layers with a sliding window")
    if is_hybrid(model):
        pack_linear_layers(model)
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME

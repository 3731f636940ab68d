"""Which models can share prompts, and how they are made ready for it.

use_packed_attention(model)
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AttentionInterface, Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mgpo.policies.families import shares_prompts
from mgpo.policies.shared.flex import flexible
from mgpo.policies.shared.joined import joined, kernel_for
from mgpo.policies.shared.last_layer import LAST, score_only_what_is_asked
from mgpo.policies.shared.linear import pack_linear_layers
from mgpo.policies.shared.packed import LAYERS, Packed, is_hybrid, part_by_part
from mgpo.policies.shared.trial import agrees

FLEX = "flex_attention"
IMPLEMENTATIONS = ("sdpa", "flash_attention_2", FLEX)
"""Values of `attn_implementation` with which prompts are shared."""


def use_packed_attention(model: Any) -> None:
    """Make a model's language half accept a `Packed` layout as attention mask.

    Masks without a layout go to the same function as before, in this model and in all others of the process.

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
    name = config._attn_implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"it needs attn_implementation: {', '.join(IMPLEMENTATIONS)}, but the model uses {name}")
    if set(getattr(config, "layer_types", None) or LAYERS[:1]) - set(LAYERS):
        raise ValueError("the model has layers with a sliding window")
    if is_hybrid(model):
        if not hasattr(Cache, "get_conv_state"):  # its layers ask their cache in another way
            raise ValueError(
                f"its layers of linear attention need a newer transformers than {transformers.__version__}"
            )
        pack_linear_layers(model)
    score_only_what_is_asked(model)
    plain = ALL_ATTENTION_FUNCTIONS[name]
    if not hasattr(plain, "takes_packed"):
        AttentionInterface.register(name, _packed(plain, name))


def _packed(plain: Any, name: str) -> Any:
    """An attention function of transformers that also takes masks with a layout."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> Any:
        layout: Packed | None = getattr(attention_mask, "packed", None)
        if layout is None:
            return plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        out = attention_of(module, query, key, value, layout, dropout, scaling, flex=name == FLEX)
        return out.transpose(1, 2), None

    attend.takes_packed = True  # type: ignore[attr-defined]
    return attend


def attention_of(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Packed,
    dropout: float,
    scaling: float | None,
    flex: bool,
) -> torch.Tensor:
    """Attention over a packed row, in the way that suits the device: see `mgpo.policies.shared.packed`.

    Args:
        module: the layer's attention.
        query: (1, heads, tokens, head size); key and value have the key-value heads.

    Returns:
        (1, heads, tokens, head size).
    """
    before = layout.before(module.layer_idx)
    device = query.device.type
    if torch.amp.autocast_mode.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Rotated queries and keys are float32 under autocast, which knows SDPA but not the other ways' kernels.
        kind = torch.get_autocast_dtype(device)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        before = [None if kept is None else (kept[0].to(kind), kept[1].to(kind)) for kept in before]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # On a GPU a few rows of queries are not worth a call for each part.
    few = layout.scored if getattr(module, LAST, False) and device == "cpu" else None
    if dropout == 0 and few is None:
        if flex and device != "cpu":
            return flexible(query, key, value, layout, before, scale)
        kernel = kernel_for(query)
        shape = (query.shape[1], key.shape[1], query.shape[-1])
        if kernel is not None and (device == "cpu" or agrees(kernel, query.device, query.dtype, *shape)):
            return joined(query, key, value, layout, before, scale, kernel)
    return part_by_part(query, key, value, layout, before, scale, dropout, few)

"""Attention over a packed row: many conversations in one sequence, with each shared prefix held once.

The rollouts of a question share their prompt. A packed row holds the prompt once, followed by the rollouts, and a
rollout's tokens attend to the prompt and to their own rollout only. Every linear layer then works on unique tokens,
without padding. Attention is computed part by part, so there is no wasted work and no mask of row x row.

`packed_attention` replaces a model's SDPA: it accepts a `Packed` layout as its mask, and passes other masks on to SDPA. A layout travels as an attribute of a 4-D tensor (`Packed.mask`), which every model of
transformers hands on to its attention as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

LAYERS = ("full_attention", "linear_attention")
"""Kinds of layers that can run over a packed row."""
Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""What is cached of a conversation, by layer: keys and values (key-value heads, tokens, head size), or for a layer of linear
attention the states of its convolution and of its recurrence (1, ...) after the last token."""


@dataclass(frozen=True)
class Part:
    """Tokens `start` to `stop` (exclusive) of the row.

    Each token attends to itself, to the tokens before it in the part, and to all of `prefix`.
    """

    start: int
    stop: int
    prefix: tuple[int, int] | None = None


@dataclass(frozen=True)
class Packed:
    """Which tokens attend to which in a packed row (1, tokens).

    Args:
        parts: in the order of the row, which they cover without gaps; a prefix is another part's span.
        past: for each part, cached keys and values before the row that it attends to, or None; empty if no part has
            any.
    """

    parts: tuple[Part, ...]
    past: tuple[Layers | None, ...] = ()

    def mask(self, model: Any) -> Any:
        """The layout as a model's attention mask: a 4-D tensor that carries it, by kind of layer.

        It holds an integer: mixed precision copies the floating inputs of a layer into another type, and a copy has no layout.
        Attention refuses an integer as a mask, so that a copy that was made elsewhere is an error, and no leak.
        """
        mask = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=model.device)
        mask.packed = self  # type: ignore[attr-defined]
        return {kind: mask for kind in LAYERS} if is_hybrid(model) else mask


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA as in transformers; computed part by part if the mask carries a `Packed` layout.

    Args:
        query: (1, heads, tokens, head size); key and value have the key-value heads.

    Returns:
        (1, tokens, heads, head size).
    """
    layout: Packed | None = getattr(attention_mask, "packed", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    out = []
    for number, part in enumerate(layout.parts):
        seen = [(key[:, :, part.start : part.stop], value[:, :, part.start : part.stop])]
        if part.prefix is not None:
            first, last = part.prefix
            seen.insert(0, (key[:, :, first:last], value[:, :, first:last]))
        if layout.past and (layers := layout.past[number]) is not None:
            past_key, past_value = layers[cast(int, module.layer_idx)]
            seen.insert(0, (repeat_kv(past_key[None], groups), repeat_kv(past_value[None], groups)))
        keys, values = (torch.cat(kept, 2) if len(kept) > 1 else kept[0] for kept in zip(*seen))
        own, length = part.stop - part.start, keys.shape[2]
        mask = None if own == length else _sees(own, length, query.device)
        out.append(
            F.scaled_dot_product_attention(
                query[:, :, part.start : part.stop], keys, values, mask, dropout, mask is None, scale=scaling
            )
        )
    return torch.cat(out, 2).transpose(1, 2), None


def _sees(own: int, length: int, device: torch.device) -> torch.Tensor:
    """Mask (own, length): each of the last `own` of `length` tokens attends to itself and to all tokens before it."""
    return torch.ones(own, length, dtype=torch.bool, device=device).tril(length - own)


def is_hybrid(model: Any) -> bool:
    """Whether some of a model's layers have a recurrent state instead of keys and values."""
    return LAYERS[1] in (getattr(model.config.get_text_config(), "layer_types", None) or ())


def base_of(model: Any) -> Any:
    """The part of a conditional generation model that holds vision tower and language model, with or without LoRA."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(model, "model", model)

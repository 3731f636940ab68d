"""Attention over a packed row: many conversations in one sequence, with each shared prefix held once.

The rollouts of a question share their prompt. A packed row holds the prompt once, followed by the rollouts, and a
rollout's tokens attend to the prompt and to their own rollout only. Every linear layer then works on unique tokens,
without padding. A layout travels as an attribute of a 4-D tensor (`Packed.mask`), which every model of transformers hands on to its
attention as it is.

There are three ways to compute it, with the same result:

- `mgpo.policies.shared.joined`: prefixes and own parts apart, joined by their log-sum-exp. CPUs, and GPUs in half precision.
- `mgpo.policies.shared.flex`: FlexAttention with a block mask, on GPUs for models with `attn_implementation: flex_attention`.
- `part_by_part` in this file: SDPA with a boolean mask for each part. Tests compare the others with it, and it serves what
  their kernels do not: attention with dropout, GPUs in float32, and queries that are few (`Packed.scored`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers.integrations.sdpa_attention import repeat_kv

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


@dataclass(frozen=True, eq=False)
class Packed:
    """Which tokens attend to which in a packed row (1, tokens).

    Args:
        parts: in the order of the row, which they cover without gaps; a prefix is another part's span.
        past: for each part, cached keys and values before the row that it attends to, or None; empty if no part has
            any.
        scored: indices (ascending) of the tokens whose final hidden state is wanted; None for all. The model's last layer
            and its final norm then compute these only (`mgpo.policies.shared.last_layer`).
    """

    parts: tuple[Part, ...]
    past: tuple[Layers | None, ...] = ()
    scored: torch.Tensor | None = None

    def mask(self, model: Any) -> Any:
        """The layout as a model's attention mask: a 4-D tensor that carries it, by kind of layer.

        It holds an integer: mixed precision copies the floating inputs of a layer into another type, and a copy has no layout.
        Attention refuses an integer as a mask, so that a copy that was made elsewhere is an error, and no leak.
        """
        mask = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=model.device)
        mask.packed = self  # type: ignore[attr-defined]
        return {kind: mask for kind in LAYERS} if is_hybrid(model) else mask

    def before(self, layer: int) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        """For each part, the keys and values (key-value heads, tokens, head size) that a layer has cached for it."""
        kept = self.past or (None,) * len(self.parts)
        return [None if layers is None else layers[layer] for layers in kept]


Before = Sequence[tuple[torch.Tensor, torch.Tensor] | None]


def part_by_part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Packed,
    before: Before,
    scaling: float | None,
    dropout: float = 0.0,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """SDPA, a call for each part.

    Args:
        query: (1, heads, tokens, head size); key and value have the key-value heads.
        before: what each part sees before the row, as `Packed.before` gives it.
        rows: compute the output of these tokens only (ascending); others are zero.

    Returns:
        (1, heads, tokens, head size).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    chosen = None if rows is None else rows.tolist()
    out = []
    for part, kept in zip(layout.parts, before):
        asked = range(part.start, part.stop) if chosen is None else [r for r in chosen if part.start <= r < part.stop]
        if not asked:
            continue
        seen = [(key[:, :, part.start : part.stop], value[:, :, part.start : part.stop])]
        if part.prefix is not None:
            first, last = part.prefix
            seen.insert(0, (key[:, :, first:last], value[:, :, first:last]))
        if kept is not None:
            seen.insert(0, (repeat_kv(kept[0][None], groups), repeat_kv(kept[1][None], groups)))
        keys, values = (torch.cat(one, 2) if len(one) > 1 else one[0] for one in zip(*seen))
        earlier = keys.shape[2] - part.stop
        if chosen is None:
            own: Any = query[:, :, part.start : part.stop]
            mask: Any = causal_lower_right(len(asked), keys.shape[2])
        else:
            own = query[:, :, asked]
            last_seen = torch.tensor(asked, device=query.device) + earlier
            mask = torch.arange(keys.shape[2], device=query.device) <= last_seen[:, None]
        out.append(F.scaled_dot_product_attention(own, keys, values, mask, dropout, scale=scaling))
    whole = torch.cat(out, 2)
    return whole if rows is None else torch.zeros_like(query).index_copy(2, rows, whole)


def is_hybrid(model: Any) -> bool:
    """Whether some of a model's layers have a recurrent state instead of keys and values."""
    return LAYERS[1] in (getattr(model.config.get_text_config(), "layer_types", None) or ())


def base_of(model: Any) -> Any:
    """The part of a conditional generation model that holds vision tower and language model, with or without LoRA."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(model, "model", model)

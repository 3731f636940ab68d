"""The last layer of a packed row, for the tokens only whose final hidden state is wanted.

Of most tokens (images, prompts, the environment's texts) nothing is predicted. The last layer needs their keys and values, but neither their
queries nor their output, and no MLP. When a layout names the tokens that are wanted (`Packed.scored`), the last layer's projections of
queries and outputs and its MLP see these only, and the language model returns their hidden states only, in order. When a cache
is filled, no state is wanted at all. With 8 layers this is an eighth of the work, with 36 a thirty-sixth.
"""

from __future__ import annotations

from typing import Any

import torch

from mgpo.policies.shared.packed import LAYERS, Packed, base_of

LAST = "is_last_layer"
"""Name of the mark on the attention of a model's last layer."""


def score_only_what_is_asked(model: Any) -> None:
    """Make a model compute `Packed.scored` only, where a layout names it."""
    text = base_of(model).language_model
    if getattr(text, "scores_only_what_is_asked", False):
        return
    text.scores_only_what_is_asked = True
    layer, rows = text.layers[-1], _Rows()
    attention = getattr(layer, "self_attn", None)
    if attention is not None:
        setattr(attention, LAST, True)
        attention.q_proj.forward = _for_rows(attention.q_proj.forward, rows)
        attention.o_proj.forward = _for_rows(attention.o_proj.forward, rows)
    layer.mlp.forward = _for_rows(layer.mlp.forward, rows)
    first = layer.linear_attn if attention is None else attention
    first.forward = _noting_rows(first.forward, rows)
    text.forward = _returning_rows(text.forward)


class _Rows:
    """Which rows the last layer is computing; None for all."""

    chosen: torch.Tensor | None = None


def _scored(mask: Any) -> torch.Tensor | None:
    mask = mask.get(LAYERS[0]) if isinstance(mask, dict) else mask
    layout: Packed | None = getattr(mask, "packed", None)
    return None if layout is None else layout.scored


def _for_rows(plain: Any, rows: _Rows) -> Any:
    """A module that works on each token by itself: tokens that are not chosen give zeros."""

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if rows.chosen is None:
            whole: torch.Tensor = plain(hidden, *args, **kwargs)
            return whole
        made = plain(hidden[:, rows.chosen], *args, **kwargs)
        empty: torch.Tensor = made.new_zeros(*hidden.shape[:2], made.shape[-1])
        return empty.index_copy(1, rows.chosen, made)

    return forward


def _noting_rows(plain: Any, rows: _Rows) -> Any:
    """The layer's attention, which comes before all that asks for rows, also when gradient checkpointing computes again.

    (The layer itself would not do: its checkpoint is inside its `forward`.)
    """

    def forward(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        rows.chosen = _scored(attention_mask)
        return plain(*args, attention_mask=attention_mask, **kwargs)

    return forward


def _returning_rows(plain: Any) -> Any:
    def forward(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        out = plain(*args, attention_mask=attention_mask, **kwargs)
        chosen = _scored(attention_mask)
        if chosen is not None:
            out.last_hidden_state = out.last_hidden_state[:, chosen]
        return out

    return forward

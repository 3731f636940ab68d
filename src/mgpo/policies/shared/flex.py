"""Attention over a packed row by FlexAttention: one kernel call per layer, with a block mask made from the layout.

Blocks of 128 x 128 tokens that hold no pair of tokens that attend are skipped, so rollouts do not pay for each other. On GPUs
the kernel is compiled, for each new shape again until PyTorch has seen that lengths vary. On CPUs FlexAttention has no backward
pass that PyTorch lets through, and uncompiled it makes the whole matrix of scores: only tests run it there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mgpo.policies.shared.packed import Before, Packed, Part


def flexible(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Packed, before: Before, scale: float
) -> torch.Tensor:
    """As `mgpo.policies.shared.packed.part_by_part`, without dropout."""
    past = tuple(0 if kept is None else kept[0].shape[1] for kept in before)
    if any(past):
        kept = [one for one in before if one is not None]
        key = torch.cat([*(one[0][None] for one in kept), key], 2)
        value = torch.cat([*(one[1][None] for one in kept), value], 2)
    mask = block_mask(layout.parts, past, query.device)
    attend: Any = flex_attention if query.device.type == "cpu" else _compiled()
    out: torch.Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return out


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention)


@lru_cache(maxsize=2)  # every layer of a pass asks for the same
def block_mask(parts: tuple[Part, ...], past: tuple[int, ...], device: torch.device) -> BlockMask:
    """Which blocks of (tokens of the row) x (all cached keys, then the row) are needed, and what is masked within them.

    Args:
        parts: the parts of the row.
        past: how many cached keys each part sees.
        device: where the row is.
    """
    cached, tokens = sum(past), parts[-1].stop
    spans = {(part.start, part.stop): n for n, part in enumerate(parts)}
    lengths = torch.tensor([part.stop - part.start for part in parts])
    numbers = torch.arange(len(parts))
    part_of_query = numbers.repeat_interleave(lengths).to(device)
    part_of_key = torch.cat([numbers.repeat_interleave(torch.tensor(past)), numbers.repeat_interleave(lengths)]).to(
        device
    )
    prefixes = torch.tensor([-1 if part.prefix is None else spans[part.prefix] for part in parts])
    prefix_of_query = prefixes.repeat_interleave(lengths).to(device)

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        part = part_of_key[key]
        own = (part == part_of_query[query]) & (key <= query + cached)  # cached keys come before every token
        return own | (part == prefix_of_query[query])

    # Compiled where it can be: without, the mask is made as a matrix of all pairs first.
    return create_block_mask(sees, None, None, tokens, cached + tokens, device=device, _compile=device.type == "cuda")

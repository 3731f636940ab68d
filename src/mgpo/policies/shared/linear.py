"""Linear attention over a packed row: each rollout starts from its prompt's recurrent state, which is computed once.

A layer of Gated DeltaNet (Qwen3.5) has no keys that a mask could hide: its state would run from one conversation of a packed
row into the next. So the layer is run part by part (`mgpo.policies.shared.packed`). A part begins from the state at the end
of its prefix, or from a cached one; parts that share a prefix are one batch. Gradients flow through the states. The layer's
own code is used: what is passed to it is a stand-in for a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mgpo.policies.shared.packed import Packed


@dataclass
class State:
    """State of one layer at the end of a part, in the place of a cache with one layer.

    Attributes:
        conv: the last inputs of the short convolution (rows, channels, kernel size), padded with zeros at the start.
        recurrent: the recurrent state (rows, heads, key size, value size).
    """

    conv: torch.Tensor | None = None
    recurrent: torch.Tensor | None = None

    def expanded(self, rows: int) -> State:
        """The same state for several rows."""
        parts = (None if s is None else s.expand(rows, *s.shape[1:]) for s in (self.conv, self.recurrent))
        return State(*parts)

    def get_conv_state(self, layer: int, state_idx: int = 0) -> torch.Tensor | None:
        """Called by the layer."""
        return self.conv

    def get_recurrent_state(self, layer: int, state_idx: int = 0) -> torch.Tensor | None:
        """Called by the layer."""
        return self.recurrent

    def is_recording_past(self, layer: int) -> bool:
        """Called by the layer: True keeps it from changing the convolution's state in place, which others start from."""
        return True

    def update_conv_state(self, new: torch.Tensor, layer: int, conv_kernel_size: int) -> torch.Tensor:
        """Called by the layer: keeps the last inputs, and returns them together with those before."""
        whole = new if self.conv is None else torch.cat([self.conv, new], -1)
        last = whole[..., -conv_kernel_size:]
        self.conv = F.pad(last, (conv_kernel_size - last.shape[-1], 0))
        return whole

    def update_recurrent_state(self, new: torch.Tensor, layer: int) -> torch.Tensor:
        """Called by the layer."""
        self.recurrent = new
        return new


def linear_layers(model: Any) -> list[Any]:
    """The layers of Gated DeltaNet of a model."""
    return [module for module in model.modules() if type(module).__name__.endswith("GatedDeltaNet")]


def pack_linear_layers(model: Any) -> None:
    """Make all layers of linear attention accept a `Packed` layout as their mask."""
    for layer in linear_layers(model):
        if not getattr(layer, "takes_packed", False):
            layer.takes_packed = True
            layer.forward = _packed(layer, layer.forward)


def _packed(layer: Any, plain: Any) -> Any:
    def forward(
        hidden_states: torch.Tensor, cache_params: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        layout: Packed | None = getattr(attention_mask, "packed", None)
        if layout is None:
            whole: torch.Tensor = plain(
                hidden_states, cache_params=cache_params, attention_mask=attention_mask, **kwargs
            )
            return whole
        out: list[torch.Tensor | None] = [None] * len(layout.parts)
        ends: dict[int, State] = {}
        for numbers, begin in _batches(layout, ends, layer.layer_idx, every_end=cache_params is not None):
            parts = [layout.parts[number] for number in numbers]
            if len(parts) == 1 and parts[0].start == parts[0].stop:  # an ended conversation gains nothing
                ends[numbers[0]] = begin
                continue
            state = begin.expanded(len(parts))
            spans = [hidden_states[0, part.start : part.stop] for part in parts]
            batch = torch.nn.utils.rnn.pad_sequence(spans, batch_first=True)
            if parts[0].prefix is not None and cache_params is None:  # kernels for one token have no backward pass
                batch = F.pad(batch, (0, 0, 0, max(0, 2 - batch.shape[1])))
            done = plain(batch, cache_params=state)
            for row, (number, part) in enumerate(zip(numbers, parts)):
                out[number] = done[row, : part.stop - part.start]
            if len(parts) == 1:
                ends[numbers[0]] = state
        if cache_params is not None:
            cache_params.ends[layer.layer_idx] = [ends[number] for number in range(len(layout.parts))]
        return torch.cat([part for part in out if part is not None])[None]

    return forward


def _batches(layout: Packed, ends: dict[int, State], layer: int, every_end: bool) -> Iterator[tuple[list[int], State]]:
    """Parts that run together, with the state that they begin from; a prefix runs before the parts that need its end.

    Args:
        layout: the parts of the row.
        ends: the states at the ends of parts that have run, by number.
        layer: which layer it is.
        every_end: the state at the end of every part is wanted, so no part may be padded.
    """
    spans = {(part.start, part.stop): n for n, part in enumerate(layout.parts) if part.prefix is None}
    together: dict[int, list[int]] = {}
    for number, part in enumerate(layout.parts):
        if part.prefix is None:
            before = layout.past[number] if layout.past else None
            yield [number], State(*before[layer]) if before is not None else State()
        elif every_end:
            yield [number], ends[spans[part.prefix]]
        else:
            together.setdefault(spans[part.prefix], []).append(number)
    for prefix, numbers in together.items():
        yield numbers, ends[prefix]

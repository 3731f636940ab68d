"""Attention over a packed row in a few kernel calls: own parts and prefixes apart, joined by their log-sum-exp.

A token's softmax runs over the keys of its prefix and of its own part. Each is one call of a kernel for sequences of
different lengths: own parts against themselves, causal; then all tokens that share a prefix against that prefix, with no mask at
all, so that the prefix is read once for all of its rollouts. Each call returns its output and the logarithm of the sum of its
exponentials (LSE), from which the whole follows:

    lse = log(exp(lse_1) + exp(lse_2)),    output = output_1 exp(lse_1 - lse) + output_2 exp(lse_2 - lse)

Gradients are exact: a flash kernel's backward pass rebuilds its probabilities from scores and LSE, and given the *joined* output and LSE
it yields the gradients of its own keys' part of the whole softmax. The queries' gradients add up. (Ring attention, arXiv 2310.01889, does so
across devices.)

Kernels come with PyTorch: `_flash_attention_forward` for CUDA in half precision, whose kernel is FlashAttention-2's, and the CPU's
flash attention, called sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

import torch

from mgpo.policies.shared.packed import Before, Packed, Part

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel call: each span of queries attends to the span of keys in the same place.

    Attributes:
        queries: spans of the row, in order.
        keys: spans of the row, or of all cached keys one after another if `of_past`.
        causal: a query sees the keys up to its own place; otherwise all.
    """

    queries: tuple[Span, ...]
    keys: tuple[Span, ...]
    causal: bool
    of_past: bool = False
    _offsets: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def offsets(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each sequence begins among the gathered queries and keys, and where the last one ends (int32)."""
        if device not in self._offsets:
            ends = ([0, *accumulate(stop - start for start, stop in spans)] for spans in (self.queries, self.keys))
            starts_q, starts_k = (torch.tensor(one, dtype=torch.int32, device=device) for one in ends)
            self._offsets[device] = starts_q, starts_k
        return self._offsets[device]

    def pairs(self) -> Iterator[tuple[slice, slice]]:
        """Each sequence's place among the gathered queries and keys."""
        query = key = 0
        for (a, b), (c, d) in zip(self.queries, self.keys):
            yield slice(query, query + b - a), slice(key, key + d - c)
            query, key = query + b - a, key + d - c


class Kernel(Protocol):
    """Attention of sequences that lie one after another: queries (tokens, heads, size), keys and values with their own heads.

    `forward` returns the output, in the shape of the queries, and the LSE (heads, tokens).
    """

    def forward(self, q: Any, k: Any, v: Any, call: Call, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""

    def backward(
        self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, call: Call, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of queries, keys and values; `out` and `lse` are those of the whole softmax."""

    def __hash__(self) -> int:
        """Kernels are told apart by identity."""


@lru_cache(maxsize=8)  # every layer of a pass asks for the same
def calls_of(parts: tuple[Part, ...], past: tuple[int, ...]) -> list[Call]:
    """The calls that a layout needs: at most three, however many parts it has.

    Args:
        parts: the parts of the row.
        past: how many cached keys each part sees; 0 for a part without tokens.
    """
    own = tuple((part.start, part.stop) for part in parts if part.stop > part.start)
    calls = [Call(own, own, causal=True)]
    shared: list[tuple[Span, Span]] = []
    for part in parts:
        if part.prefix is None or part.stop == part.start:
            continue
        begun, prefix = shared[-1] if shared else ((0, 0), None)
        if prefix == part.prefix and begun[1] == part.start:
            shared[-1] = ((begun[0], part.stop), part.prefix)
        else:
            shared.append(((part.start, part.stop), part.prefix))
    if shared:
        calls.append(_against(shared))
    ends = [0, *accumulate(past)]
    seen = [((part.start, part.stop), (ends[n], ends[n + 1])) for n, part in enumerate(parts) if past[n]]
    return [*calls, _against(seen, of_past=True)] if seen else calls


def _against(pairs: list[tuple[Span, Span]], of_past: bool = False) -> Call:
    queries, keys = zip(*pairs)
    return Call(queries, keys, False, of_past)


def joined(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Packed,
    before: Before,
    scale: float,
    kernel: Kernel,
) -> torch.Tensor:
    """As `mgpo.policies.shared.packed.part_by_part`, without dropout. Cached keys and values get no gradient."""
    # What a part without new tokens has cached is not asked for.
    past = tuple(
        0 if kept is None or part.start == part.stop else kept[0].shape[1] for part, kept in zip(layout.parts, before)
    )
    calls = calls_of(layout.parts, past)
    cached = None
    if any(past):
        kept = [one for one, length in zip(before, past) if one is not None and length]
        cached = tuple(torch.cat([one[i] for one in kept], 1).transpose(0, 1) for i in (0, 1))
    tokens = (one[0].transpose(0, 1) for one in (query, key, value))
    out: torch.Tensor = _Joined.apply(*tokens, cached, calls, kernel, scale)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1)[None]


class _Joined(torch.autograd.Function):
    """Queries, keys and values (tokens, heads, size) to the output in the shape of the queries."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, cached: Any, calls: list[Call], kernel: Kernel, scale: float) -> Any:
        out, lse = kernel.forward(q, k, v, calls[0], scale)
        for call in calls[1:]:
            keys, values = cached if call.of_past else (_take(k, call.keys), _take(v, call.keys))
            more, more_lse = kernel.forward(_take(q, call.queries), keys, values, call, scale)
            at = _index(call.queries, q.device)
            whole = torch.logaddexp(lse[:, at], more_lse)
            weights = [torch.exp(part - whole).t()[:, :, None] for part in (lse[:, at], more_lse)]
            out[at] = (out[at] * weights[0] + more * weights[1]).to(out.dtype)
            lse[:, at] = whole
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.cached, ctx.calls, ctx.kernel, ctx.scale = cached, calls, kernel, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        grads = ctx.kernel.backward(grad, q, k, v, out, lse, ctx.calls[0], ctx.scale)
        for call in ctx.calls[1:]:
            at = _index(call.queries, q.device)
            keys, values = ctx.cached if call.of_past else (_take(k, call.keys), _take(v, call.keys))
            given, queries, whole = (_take(one, call.queries) for one in (grad, q, out))
            more = ctx.kernel.backward(given, queries, keys, values, whole, lse[:, at].contiguous(), call, ctx.scale)
            _add(grads[0], call.queries, more[0])
            if not call.of_past:
                _add(grads[1], call.keys, more[1])
                _add(grads[2], call.keys, more[2])
        return (*grads, None, None, None, None)


def _index(spans: tuple[Span, ...], device: torch.device) -> Any:
    """What selects the spans: a slice where there is one, else indices."""
    if len(spans) == 1:
        return slice(*spans[0])
    return torch.cat([torch.arange(*span, device=device) for span in spans])


def _take(tokens: torch.Tensor, spans: tuple[Span, ...]) -> torch.Tensor:
    return tokens[slice(*spans[0])] if len(spans) == 1 else torch.cat([tokens[slice(*span)] for span in spans])


def _add(tokens: torch.Tensor, spans: tuple[Span, ...], more: torch.Tensor) -> None:
    for span, one in zip(spans, more.split([stop - start for start, stop in spans])):
        tokens[slice(*span)] += one


class Varlen:
    """PyTorch's own build of FlashAttention for sequences of different lengths: CUDA, float16 or bfloat16."""

    ahead = staticmethod(torch.ops.aten._flash_attention_forward)
    back = staticmethod(torch.ops.aten._flash_attention_backward)

    def forward(self, q: Any, k: Any, v: Any, call: Call, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One call for all sequences."""
        out, lse, *_ = self.ahead(q, k, v, *_sizes(call, q.device), 0.0, call.causal, False, scale=scale)
        return out, lse

    def backward(
        self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, call: Call, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One call for all sequences."""
        # Random state and the tensor after it are read by dropout only.
        state, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
        sizes = _sizes(call, q.device)
        found = self.back(grad.contiguous(), q, k, v, out, lse, *sizes, 0.0, call.causal, state, unused, scale=scale)
        return found[0], found[1], found[2]


def _sizes(call: Call, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    longest = (max(stop - start for start, stop in spans) for spans in (call.queries, call.keys))
    return (*call.offsets(device), *longest)  # type: ignore[return-value]


class OneByOne:
    """The CPU's flash attention, sequence by sequence. Heads that share keys read the same memory: nothing is repeated."""

    def forward(self, q: Any, k: Any, v: Any, call: Call, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel`."""
        out, found = torch.empty_like(q), []
        for at, seen in call.pairs():
            views = _by_key_head(q[at], k[seen], v[seen])
            one, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*views, 0.0, call.causal, scale=scale)
            out[at] = _by_token(one)
            found.append(lse.flatten(0, 1))
        return out, torch.cat(found, 1)

    def backward(
        self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, call: Call, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `Kernel`."""
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for at, seen in call.pairs():
            queries, keys, values = _by_key_head(q[at], k[seen], v[seen])
            given, whole = (_heads(one[at], k.shape[1]) for one in (grad, out))
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                given, queries, keys, values, whole, lse[:, at].reshape(whole.shape[:3]), 0.0, call.causal, scale=scale
            )
            grads[0][at] = _by_token(found[0])
            grads[1][seen], grads[2][seen] = (one.sum(1).transpose(0, 1) for one in found[1:])
        return grads


def _heads(tokens: torch.Tensor, key_heads: int) -> torch.Tensor:
    """(tokens, heads, size) as (key-value heads, heads for each, tokens, size), without a copy."""
    count, heads, size = tokens.shape
    return tokens.view(count, key_heads, heads // key_heads, size).permute(1, 2, 0, 3)


def _by_key_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values by key-value head, in the place of a batch; keys are the same memory for all of their heads."""
    queries = _heads(q, k.shape[1])
    return [queries, *(one.transpose(0, 1)[:, None].expand(-1, queries.shape[1], -1, -1) for one in (k, v))]


def _by_token(heads: torch.Tensor) -> torch.Tensor:
    """The reverse of `_heads`."""
    return heads.flatten(0, 1).transpose(0, 1)


ONE_BY_ONE, VARLEN = OneByOne(), Varlen()


def kernel_for(query: torch.Tensor) -> Kernel | None:
    """The kernel that can compute a query's attention; None if there is none for its device, number format or head size."""
    if query.device.type == "cpu":
        return ONE_BY_ONE
    half, size = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    return VARLEN if query.device.type == "cuda" and half and size % 8 == 0 and size <= 256 else None

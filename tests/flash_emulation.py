"""PyTorch's `_flash_attention_forward` and `_flash_attention_backward` for sequences of different lengths, written out.

They have the same arguments and results as the CUDA kernels, which no CPU can run, and count how often they are called. As those, they
round the output to the inputs' format, sum in float32, and take the logarithm of sums (heads, tokens) for granted in the backward pass.
"""

import torch


class Flash:
    def __init__(self):
        self.calls = {"forward": 0, "backward": 0}

    def forward(self, q, k, v, starts_q, starts_k, max_q, max_k, dropout, causal, debug, *, scale):
        self.calls["forward"] += 1
        check(q, k, starts_q, starts_k, max_q, max_k)
        out, found = torch.empty_like(q), []
        for queries, keys in spans(starts_q, starts_k):
            scores = scores_of(q[queries], k[keys], causal, scale)
            lse = scores.logsumexp(-1)
            found.append(lse)
            values = repeated(v[keys], q).to(scores.dtype)
            out[queries] = ((scores - lse[..., None]).exp() @ values.transpose(0, 1)).transpose(0, 1).to(q.dtype)
        state, unused = torch.zeros(2, dtype=torch.uint64), torch.empty(0)
        return out, torch.cat(found, 1), state, unused, unused

    def backward(
        self, grad, q, k, v, out, lse, starts_q, starts_k, max_q, max_k, dropout, causal, state, unused, *, scale
    ):
        self.calls["backward"] += 1
        check(q, k, starts_q, starts_k, max_q, max_k)
        grads = [torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v)]
        for queries, keys in spans(starts_q, starts_k):
            wide = [x.transpose(0, 1).to(lse.dtype) for x in (q[queries], grad[queries], out[queries])]
            own, given, whole = wide
            key, value = (repeated(x[keys], q).transpose(0, 1).to(lse.dtype) for x in (k, v))
            p = (scores_of(q[queries], k[keys], causal, scale) - lse[:, queries, None]).exp()
            d = p * (given @ value.transpose(1, 2) - (given * whole).sum(-1, keepdim=True)) * scale
            grads[0][queries] = (d @ key).transpose(0, 1)
            for at, one in ((1, d.transpose(1, 2) @ own), (2, p.transpose(1, 2) @ given)):
                grads[at][keys] = one.unflatten(0, (k.shape[1], -1)).sum(1).transpose(0, 1)
        return tuple(g.to(x.dtype) for g, x in zip(grads, (q, k, v)))


def check(q, k, starts_q, starts_k, max_q, max_k):
    """What the kernels demand: offsets as int32 that cover all tokens, and the longest lengths."""
    for tokens, starts, longest in ((q, starts_q, max_q), (k, starts_k, max_k)):
        assert starts.dtype == torch.int32 and starts[0] == 0 and starts[-1] == len(tokens) and tokens.stride(-1) == 1
        assert starts.diff().max() == longest and starts.diff().min() > 0
    assert len(starts_q) == len(starts_k)


def spans(starts_q, starts_k):
    return [
        (slice(a, b), slice(c, d))
        for a, b, c, d in zip(*(x.tolist() for s in (starts_q, starts_k) for x in (s[:-1], s[1:])))
    ]


def repeated(x, q):
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def scores_of(q, k, causal, scale):
    """(heads, queries, keys) in at least float32; causal from the lower right corner, as in FlashAttention 2.1 and later."""
    kind = torch.promote_types(q.dtype, torch.float32)
    scores = q.transpose(0, 1).to(kind) @ repeated(k, q).permute(1, 2, 0).to(kind) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + k.shape[0] - q.shape[0])
        scores = scores.masked_fill(later, -torch.inf)
    return scores

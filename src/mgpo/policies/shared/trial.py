"""A trial of a GPU's attention kernel before it is used: where it fails, or computes something else, SDPA takes its place.

The kernels of `mgpo.policies.shared.joined` come with PyTorch but are not part of its documented interface, so another version or
another GPU may not have them as they are called here.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from mgpo.policies.shared.joined import Kernel, joined
from mgpo.policies.shared.packed import Packed, Part, part_by_part

logger = logging.getLogger(__name__)
LAYOUT = Packed((Part(0, 70), Part(70, 103, (0, 70)), Part(103, 168, (0, 70))))
"""A prompt and two rollouts."""
WORSE = 2.0
"""Its error may be this many times that of SDPA in the same number format."""


@lru_cache(maxsize=32)
def agrees(kernel: Kernel, device: torch.device, kind: torch.dtype, heads: int, key_heads: int, size: int) -> bool:
    """Whether outputs and gradients of a small packed row are those of SDPA; if not, a line in the log says so, once.

    Args:
        kernel: the kernel on trial.
        device, kind: where it will run, and in which number format.
        heads, key_heads, size: number of query heads and of key-value heads, and the size of a head.
    """
    random = torch.Generator().manual_seed(0)
    counts = (heads, key_heads, key_heads, heads)
    given = [torch.randn(1, count, LAYOUT.parts[-1].stop, size, generator=random) for count in counts]
    before, scale = LAYOUT.before(0), size**-0.5

    def tried(dtype: torch.dtype, by_kernel: bool) -> list[torch.Tensor]:
        query, key, value, grad = (one.to(device, dtype) for one in given)
        inputs = [one.requires_grad_() for one in (query, key, value)]
        out = (
            joined(query, key, value, LAYOUT, before, scale, kernel)
            if by_kernel
            else part_by_part(query, key, value, LAYOUT, before, scale)
        )
        return [one.detach().float() for one in (out, *torch.autograd.grad(out, inputs, grad))]

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        exact = tried(torch.float32, False)
        usual = tried(kind, False)
        try:
            found = tried(kind, True)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            logger.warning("attention: PyTorch's flash kernel cannot be used here (%s); SDPA is used instead.", error)
            return False
    for one, other, right in zip(found, usual, exact):
        if not (one - right).norm() <= WORSE * (other - right).norm() + 1e-6 * right.norm():
            logger.warning("attention: PyTorch's flash kernel differs from SDPA here; SDPA is used instead.")
            return False
    return True

"""What processes agree on that hold parts of one model's weights (FSDP 2, ZeRO-3).

Every layer gathers its weights from all processes before it runs, so each process must run each layer equally often: a process
with less work than another one runs something small instead, and discards the result.

    calls = calls_of(accelerator)
    for number in range(calls(len(mine))): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

Calls = Callable[[int], int]
"""How many calls this process needs -> how many it makes."""


def alone(number: int) -> int:
    """The calls of a process that holds all weights: those that it needs."""
    return number


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights only."""
    state: Any = accelerator.state
    deepspeed = state.deepspeed_plugin
    return getattr(state, "fsdp_plugin", None) is not None or (deepspeed is not None and deepspeed.zero_stage == 3)


def calls_of(accelerator: Accelerator) -> Calls:
    """How many calls each process makes: the most that any process needs, if they hold parts of one model.

    The result is then a collective call itself (one number), so each process must make it equally often.
    """
    if accelerator.num_processes == 1 or not is_sharded(accelerator):
        return alone

    def most(number: int) -> int:
        needed = torch.tensor(number, device=accelerator.device)
        distributed.all_reduce(needed, op=distributed.ReduceOp.MAX)
        return int(needed)

    return most

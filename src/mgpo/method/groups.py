"""Groups of rollouts: an advantage compares the rollouts of one question, so a batch must hold whole groups.

TRL checks this too, but names `generation_batch_size`, which it computes itself.
"""

from __future__ import annotations

from math import gcd
from typing import Any


def ignore_groups(config: Any) -> None:
    """Let a training without rollouts have batches of any size: TRL asks for whole groups all the same.

    Args:
        config: settings of a training by `sft`, as given; batches of rollouts, of which it makes none, become large enough.
    """
    group = config.num_generations
    given = config.generation_batch_size or config.steps_per_generation
    if not given and config.per_device_train_batch_size * config.gradient_accumulation_steps % group:
        config.steps_per_generation = config.gradient_accumulation_steps * group
    if config.per_device_eval_batch_size % (config.num_generations_eval or group):
        config.num_generations_eval = 1


def refuse_small_groups(config: Any) -> None:
    """Refuse groups of fewer than two rollouts, and `num_generations: null`, which the type in TRL allows."""
    if config.num_generations is None or config.num_generations < 2:
        told = "null" if config.num_generations is None else config.num_generations
        raise ValueError(
            f"num_generations={told}: an advantage compares at least 2 rollouts of a question. Set it to 2 or more, or "
            "leave it out."
        )


def refuse_split_groups(config: Any, processes: int, noun: str = "process") -> None:
    """Refuse a batch of rollouts that is no whole number of groups, in the terms of the settings that make it.

    Args:
        config: settings as given, before TRL fills in what is left out.
        processes: how many train together; `noun` is what one of them is called.

    Raises:
        ValueError: the message says the arithmetic, and a value that works.
    """
    group = config.num_generations
    if config.generation_batch_size is not None:
        name, size, each = "generation_batch_size", config.generation_batch_size, 1
        product = f"generation_batch_size={size} rollouts"
    else:
        name, size = "per_device_train_batch_size", config.per_device_train_batch_size
        repeated = "steps_per_generation" if config.steps_per_generation else "gradient_accumulation_steps"
        times = getattr(config, repeated)
        each = times * processes
        product = f"{size} {name} x {times} {repeated} x {_counted(processes, noun)} = {size * each} rollouts"
    if size * each % group == 0:
        return
    step = group // gcd(group, each)
    near = sorted({size // step * step, -(-size // step) * step} - {0})
    fitting = next((n for n in range(min(group, size * each), 1, -1) if size * each % n == 0), None)
    raise ValueError(
        f"{product}, which are no whole groups of num_generations={group}: all rollouts of a question belong into one batch. "
        f"Set {name} to {' or '.join(map(str, near))}" + (f", or num_generations to {fitting}." if fitting else ".")
    )


def refuse_split_evaluation(config: Any, processes: int) -> None:
    """As `refuse_split_groups`, for the batches of an evaluation during training; each is asked at once.

    Raises:
        ValueError: the message says the arithmetic, and a value that works.
    """
    name = "num_generations_eval" if config.num_generations_eval else "num_generations"
    group, size = getattr(config, name), config.per_device_eval_batch_size
    if config.eval_strategy == "no" or size * processes % group == 0:
        return
    step = group // gcd(group, processes)
    raise ValueError(
        f"{size} per_device_eval_batch_size x {_counted(processes, 'process')} = {size * processes} rollouts, which are no whole "
        f"groups of {name}={group}. Set per_device_eval_batch_size to {-(-size // step) * step}, or num_generations_eval to a "
        "number that divides them."
    )


def _counted(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"

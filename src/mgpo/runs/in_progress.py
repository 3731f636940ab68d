"""What a training has begun and not finished when a checkpoint is saved: counters, metrics and rollouts.

`Resuming` saves it per process, and restores it before the first step of the run that resumes.
"""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.utils import strip_images_from_messages

COUNTERS = (
    "_step",
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_total_train_tokens",
    "finite.in_a_row",
)
"""Attributes of a trainer that a checkpoint must hold for the next log to be the same; a trainer may lack some."""


def begun(trainer: Any) -> dict[str, Any]:
    """Counters, metrics since the last log, and rollouts that wait for their update."""
    found: dict[str, Any] = {}
    for name in COUNTERS:
        owner, attribute = _owner(trainer, name)
        if hasattr(owner, attribute):  # the supervised trainer has no rollouts
            found[name] = getattr(owner, attribute)
    found["metrics"] = {mode: dict(values) for mode, values in getattr(trainer, "_metrics", {}).items()}
    if getattr(trainer, "_buffered_inputs", None) is not None:
        waiting = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations)
        found["rollouts"] = trainer._buffered_inputs if waiting else None
        found["table"] = _texts(trainer._logs) if trainer.log_completions else {}
    return found


def restore(trainer: Any, found: dict[str, Any]) -> None:
    """Give a trainer what `begun` found in the one that saved the checkpoint."""
    for name in COUNTERS:
        if name in found:
            value = found[name]
            owner, attribute = _owner(trainer, name)
            setattr(owner, attribute, value.to(trainer.args.device) if isinstance(value, torch.Tensor) else value)
    for mode, values in found["metrics"].items():
        trainer._metrics[mode].clear()
        trainer._metrics[mode].update(values)
    if found.get("rollouts") is not None:
        trainer._buffered_inputs = [_on(part, trainer.args.device) for part in found["rollouts"]]
    for column, values in found.get("table", {}).items():
        if isinstance(values, dict):
            for name, inner in values.items():
                trainer._logs[column][name].extend(inner)
        else:
            trainer._logs[column].extend(values)


def _owner(trainer: Any, name: str) -> tuple[Any, str]:
    """The object that holds a counter, None if the trainer lacks it, and the counter's name there."""
    part, _, attribute = name.rpartition(".")
    return (getattr(trainer, part, None) if part else trainer), attribute


def _texts(table: dict[str, Any]) -> dict[str, Any]:
    """TRL's table of rollouts as plain data, without images and without columns that a reward function adds."""
    texts = {name: [strip_images_from_messages(m) for m in table[name]] for name in ("prompt", "completion")}
    rewards = {name: list(values) for name, values in table["rewards"].items()}
    return texts | {"rewards": rewards, "advantages": list(table["advantages"])}


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {key: _on(inner, device) for key, inner in value.items()} if isinstance(value, dict) else value

"""The same recipe on more GPUs: the settings that keep its batch, and the command that starts it there.

    settings_on(8, batch=4, accumulated=32, steps=4)   # {"gradient_accumulation_steps": 4}: 4 x 4 x 8 = 4 x 32

An update keeps its number of rollouts, a GPU never computes or samples more of them at once than one GPU does alone, and no
update sees rollouts of an older policy that did not see them before.
"""

from __future__ import annotations

MACHINE = 8
"""GPUs of a machine."""
MANY = (8, 32)


def settings_on(count: int, batch: int, accumulated: int, steps: int | None, group: int) -> dict[str, int] | None:
    """What changes on `count` GPUs, None if an update has too few rollouts for them.

    Args:
        batch, accumulated, steps: `per_device_train_batch_size`, `gradient_accumulation_steps` and `steps_per_generation` on
            one GPU; `steps` is None for supervised training.
        group: rollouts of a question; 1 for supervised training.
    """
    share, rest = divmod(batch * accumulated, count)
    if not share or rest:
        return None
    smaller = next(size for size in range(min(batch, share), 0, -1) if share % size == 0)
    changed = {"per_device_train_batch_size": smaller, "gradient_accumulation_steps": share // smaller}
    before = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    if steps is not None:
        most = share // smaller
        changed["steps_per_generation"] = next(
            n for n in range(min(steps, most), most + 1) if most % n == 0 and n * smaller * count % group == 0
        )
        before["steps_per_generation"] = steps
    return {name: value for name, value in changed.items() if value != before[name]}


def command_on(count: int, config: str, recipe: str, changed: dict[str, int]) -> str:
    """The command that starts a recipe on so many GPUs, by a configuration of `mgpo/accelerate_configs`."""
    machines = -(-count // MACHINE)
    words = ["mgpo train --accelerate_config", config]
    if machines > 1:
        words += ["--num_machines", str(machines), "--machine_rank RANK --main_process_ip IP --main_process_port 29500"]
    words += [f"--num_processes {count} --config {recipe}", *(f"--{name} {value}" for name, value in changed.items())]
    return " ".join(words)


def lines_on(config: str, recipe: str, batch: int, accumulated: int, steps: int | None, group: int) -> list[str]:
    """Lines of a recipe's header: the command for each number of GPUs in `MANY`."""
    lines = []
    for count in MANY:
        changed = settings_on(count, batch, accumulated, steps, group)
        if changed is not None:
            lines.append(f"{count} GPUs: {command_on(count, config, recipe, changed)}")
    return lines

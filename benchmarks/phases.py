"""How near the phases of a training step come to the machine's own rate of matrix products.

A phase's share is the operations that it needs at least (`benchmarks.flops`), divided by its seconds and by the rate of plain
matrix products of the model's shapes, which are measured in the same process right after the step. A share of 1 would mean
that nothing but needed products took time, at the rate of the best of those shapes.

    python -m benchmarks.phases --only "35M, tower frozen" --out phases.json

measures our path alone, which takes a quarter of the time of `benchmarks.step`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import flops
from benchmarks.flops import Work
from benchmarks.workload import SHAPES, Shape, begin_step, make_rows, make_trainer, set_boxes

PHASES = ("prefill", "sampling", "update_forward", "update_backward")


def now(device: Any = "cpu") -> float:
    """Seconds, when the device has done what it was told.

    On one CPU thread it is the time of that thread, so that other programs on the same core do not count.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Seconds:
    """Seconds spent in the sampler's packed forwards (`prefill`) and in sampling itself, since the last `clear`."""

    def __init__(self, trainer: Any) -> None:
        self.spent = dict.fromkeys(PHASES, 0.0)
        self.device = trainer.model.device
        sampler = trainer.sharing.sampler
        if sampler is not None:
            sampler._fill = self._timed("prefill", sampler._fill)
            sampler._sample = self._timed("sampling", sampler._sample)

    def clear(self) -> None:
        self.spent = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        start = now(self.device)
        yield
        self.spent[phase] += now(self.device) - start

    def update(self, trainer: Any, inputs: dict[str, Any]) -> None:
        """One update of the weights, timed in its two phases; the optimizer is in neither."""
        with self.of("update_forward"):
            loss = trainer.compute_loss(trainer.model, inputs)
        with self.of("update_backward"):
            loss.backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    def _timed(self, phase: str, plain: Any) -> Any:
        def call(*args: Any) -> Any:
            with self.of(phase):
                return plain(*args)

        return call


def works(trainer: Any, inputs: dict[str, Any], frozen: bool) -> dict[str, Work]:
    """What prefill, sampling and update of a step must compute, by what was sampled in two turns."""
    images = _images(trainer)
    prefill, sampling, update = images, Work(), Work() if frozen else images
    prompts: dict[tuple[int, ...], int] = {}
    for row, mask in enumerate(inputs["completion_mask"].bool()):
        prompt, name = int(inputs["prompt_mask"][row].sum()), tuple(inputs["prompt_ids"][row].tolist())
        learned = inputs["tool_mask"][row][mask].bool().tolist()
        said, own = learned.index(False), len(learned)
        answer = own - learned[::-1].index(False)
        if name not in prompts:
            prefill += flops.continued(0, prompt - 1)
        prefill += flops.continued(prompt + said - 1, answer - said)
        sampling += flops.continued(prompt - 1, said, range(said))
        sampling += flops.continued(prompt + answer - 1, own - answer, range(own - answer))
        if inputs["advantages"][row] != 0:
            spoken = [i for i, by_model in enumerate(learned) if by_model]  # predicted from the token before
            update += flops.continued(prompt - 1, own)
            update += Work(scored=len(spoken), scored_pairs=sum(prompt + i for i in spoken))
            prompts[name] = prompt
        prompts.setdefault(name, 0)
    for prompt in prompts.values():
        update += flops.continued(0, max(0, prompt - 1))
    return {"prefill": prefill, "sampling": sampling, "update": update}


def needed(trainer: Any, inputs: dict[str, Any], frozen: bool) -> dict[str, int]:
    """Operations that each phase of a step needs."""
    config, work = trainer.model.config, works(trainer, inputs, frozen)
    return {
        "prefill": flops.forward(config, work["prefill"]),
        "sampling": flops.forward(config, work["sampling"]),
        "update_forward": flops.forward(config, work["update"]),
        "update_backward": flops.backward(config, work["update"], tower_trained=not frozen),
    }


def _images(trainer: Any) -> Work:
    """The unique images of a batch, each through the tower once."""
    images = {id(turn.image): turn.image for episode in trainer._episodes for turn in episode.user_turns}
    patch = trainer.model.config.vision_config.patch_size
    return sum(
        (flops.image(trainer.model.config, (one.height // patch, one.width // patch)) for one in images.values()),
        Work(),
    )


def matmul_rate(config: Any, dtype: torch.dtype, device: Any = "cpu", tokens: int = 4096, repeats: int = 3) -> float:
    """Operations per second of the products of an MLP, for this many tokens: the language half's or the tower's, the faster."""
    return max(
        _rate(part.hidden_size, part.intermediate_size, dtype, device, tokens, repeats)
        for part in (config.get_text_config(), config.vision_config)
    )


def _rate(size: int, wide: int, dtype: torch.dtype, device: Any, tokens: int, repeats: int) -> float:
    inputs = torch.randn(tokens, size, device=device, dtype=dtype)
    up = torch.randn(size, wide, device=device, dtype=dtype)
    down = torch.randn(wide, size, device=device, dtype=dtype)
    inputs @ up @ down
    start = now(device)
    for _ in range(repeats):
        inputs @ up @ down
    return repeats * 4 * tokens * up.numel() / (now(device) - start)


def shares(trainer: Any, inputs: dict[str, Any], spent: Seconds) -> dict[str, float]:
    """Share of the rate of plain matrix products that each phase of a step reached; empty for the stock path."""
    if trainer.sharing.sampler is None:
        return {}
    rate = matmul_rate(trainer.model.config, trainer.model.dtype, trainer.model.device)
    operations = needed(trainer, inputs, trainer.args.freeze_vision_tower)
    found = {phase: operations[phase] / spent.spent[phase] / rate for phase in PHASES}
    update = [phase for phase in PHASES if phase.startswith("update")]
    found["update"] = sum(operations[p] for p in update) / sum(spent.spent[p] for p in update) / rate
    return found | {"matmul_gflops": rate / 1e9}


def measure(shape: Shape, repeats: int, threads: int) -> dict[str, Any]:
    """Medians of shares and seconds over the steps after the first."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        rows = make_rows(shape, Path(name))
        trainer = make_trainer(shape, rows, True, Path(name) / "run")
        spent, found, seconds = Seconds(trainer), [], []
        for seed in range(repeats + 1):
            begin_step(trainer, seed)
            spent.clear()
            with set_boxes(seed):
                inputs = trainer._prepare_inputs(rows)
            spent.update(trainer, inputs)
            found.append(shares(trainer, inputs, spent))
            seconds.append(spent.spent)

    def median(of: list[dict[str, float]]) -> dict[str, float]:
        return {name: statistics.median(row[name] for row in of[1:]) for name in of[0]}

    return {"shape": shape.label, "shares": median(found), "seconds": median(seconds)}


def table_of_shares(results: list[dict[str, Any]]) -> Table:
    names = (*PHASES, "update", "matmul_gflops")
    made = Table(title="needed operations per second, as a share of plain matrix products in the same process")
    for name in ("shape", *names):
        made.add_column(name.replace("_", " "))
    for row in results:
        made.add_row(row["shape"], *(f"{row['shares'][name]:.{0 if 'gflops' in name else 2}f}" for name in names))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("phases.json"))
    parser.add_argument("--steps", type=int, default=3, help="measured steps per shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="run only the shape with this label")
    args = parser.parse_args()
    results = [measure(s, args.steps, args.threads) for s in SHAPES if args.only in (None, s.label)]
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    Console(width=160).print(table_of_shares(results))


if __name__ == "__main__":
    main()

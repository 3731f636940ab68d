"""Steps whose numbers are not finite: skipped, counted, kept for replay, and too many in a row stop the run.

One infinite reward, log-probability, loss or gradient would turn every weight into NaN, in one step and without a word. So
before each step of the optimizer all processes agree whether what it would apply is finite. If not, there are no gradients
in this step: weights and the optimizer's state stay as they are, the schedule goes on.

    nonfinite/step_000012_process_0.json            why, and the ids of the questions
    nonfinite/step_000012_process_0.safetensors     what the losses were computed from: `replay(trainer, file)`
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mgpo.errors import NumbersError
from mgpo.files import write_whole
from mgpo.tree import load_tree, save_tree

FOLDER = "nonfinite"
BATCHES_KEPT = 10
"""Batches of a run that are kept: they hold pixels, and a sick run must not fill the disk. Why and ids are always kept."""
SCORES = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")


class FiniteSteps:
    """Mixin of `MGPOTrainer`: what reaches the optimizer is finite."""

    _nonfinite_in_a_row = 0
    _parts: list[dict[str, Any]]
    """What the losses of this step were computed from."""
    _reasons: list[str]
    """What of this step is not finite."""
    _distrusted: dict[int, str]
    """Rollouts of the batch that is being scored which have a number that is not finite, and why."""

    def _begin_step(self) -> None:
        self._parts, self._reasons = [], []

    def _watched(self, reward: Callable, seconds: float) -> Callable:
        """A reward function within its time limit, whose numbers are looked at."""

        def distrust(row: int, why: str) -> None:
            self._distrusted[row] = why

        return within(reward, seconds, distrust)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's. Rollouts with a number that is not finite get an advantage that is none: what they touch is skipped."""
        self._distrusted = {}
        output = super()._generate_and_score_completions(inputs)
        output["question_ids"] = [episode.question.id for episode in self._episodes]
        said = output["completion_mask"].bool()
        if "tool_mask" in output:
            said = said & output["tool_mask"].bool()
        for name in SCORES:
            if output.get(name) is not None:
                for row in (~output[name].isfinite() & said).any(1).nonzero().flatten().tolist():
                    self._distrusted[row] = f"{name} is not finite"
        if self._distrusted:
            # TRL computed the advantages of the same question's other rollouts from what this one was given.
            doubted = {output["question_ids"][row] for row in self._distrusted}
            rows = [row for row, name in enumerate(output["question_ids"]) if name in doubted]
            output["advantages"] = output["advantages"].clone()
            output["advantages"][rows] = math.nan
        output["doubts"] = [self._distrusted.get(row, "") for row in range(len(said))]
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            self._parts.append(inputs)
            if not loss.isfinite().all():
                self._reasons += [*filter(None, inputs["doubts"]), "the loss is not finite"]
                if self.is_deepspeed_enabled:  # its backward pass applies the gradients by itself
                    self._keep_step()
                    raise NumbersError(self._told("DeepSpeed cannot skip a step"))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called by `Trainer` when the gradients of a step are complete, right before the optimizer takes them."""
        norm = super()._get_grad_norm(model, grad_norm)
        # fp16: infinite gradients are how the scale is found, and are skipped by whoever looks for it
        if norm is not None and not self.args.fp16 and not math.isfinite(float(norm)):
            self._reasons.append("the gradient is not finite")
            if self.is_deepspeed_enabled:
                self._keep_step()
                raise NumbersError(self._told("DeepSpeed has applied it, so go on from the last checkpoint"))
        doubt = torch.tensor(float(bool(self._reasons)), device=self.args.device)
        skip = bool(self.accelerator.reduce(doubt, "sum").item())
        self._metrics["train"]["update/nonfinite_steps"].append(float(skip))
        self._nonfinite_in_a_row = self._nonfinite_in_a_row + 1 if skip else 0
        if skip:
            for parameter in model.parameters():
                parameter.grad = None
            self._keep_step()
            if self._nonfinite_in_a_row >= self.args.max_nonfinite_steps:
                raise NumbersError(self._told(f"{self._nonfinite_in_a_row} steps in a row were skipped"))
            print(self._told("skipped"))
        self._begin_step()
        return norm

    def _keep_step(self) -> None:
        """Why, which questions, and the batch itself, by this process."""
        folder = Path(self.args.output_dir) / FOLDER
        stem = f"step_{self.state.global_step + 1:06d}_process_{self.args.process_index}"
        folder.mkdir(parents=True, exist_ok=True)
        asked = list(dict.fromkeys(name for part in self._parts for name in part["question_ids"]))
        about = {"step": self.state.global_step + 1, "why": self._why(), "question_ids": asked}
        write_whole(folder / f"{stem}.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        if len(list(folder.glob("*.safetensors"))) < BATCHES_KEPT:
            save_tree(about | {"parts": self._parts}, folder / f"{stem}.safetensors")

    def _why(self) -> list[str]:
        return list(dict.fromkeys(self._reasons)) or ["another process has numbers that are not finite"]

    def _told(self, what: str) -> str:
        return (
            f"Step {self.state.global_step + 1}: {what}: {'; '.join(self._why())}. The batch is in "
            f"{self.args.output_dir}/{FOLDER}. Lower the learning rate, look at the rewards, or raise max_nonfinite_steps="
            f"{self.args.max_nonfinite_steps}."
        )


def replay(trainer: Any, file: Path) -> list[float]:
    """Losses of the batch of a skipped step, part by part, with the trainer's weights of now.

    Args:
        trainer: an `MGPOTrainer` with the settings of the run.
        file: a `.safetensors` file of `nonfinite/`.
    """
    losses = []
    for part in load_tree(file)["parts"]:
        inputs = {k: v.to(trainer.args.device) if isinstance(v, torch.Tensor) else v for k, v in part.items()}
        losses.append(trainer._compute_loss(trainer.model, inputs).item())
    trainer._begin_step()
    return losses


def within(reward: Callable, seconds: float, distrust: Callable[[int, str], None]) -> Callable:
    """A reward function in TRL's convention that ends in time and gives numbers.

    Args:
        reward: returns a number or None per completion; may be a coroutine function.
        seconds: limit of one call. What hangs cannot be ended, so it goes on in a thread of its own while the run does.
        distrust: called with a row and why, for each number that is not finite, and for all rows when the time is over.
            These rows get None, which TRL leaves out.
    """
    name = getattr(reward, "__name__", type(reward).__name__)

    def looked_at(given: Sequence[Any]) -> list[Any]:
        checked = []
        for row, value in enumerate(given):
            if value is not None and not math.isfinite(value):
                distrust(row, f"the reward {name} is {value}")
                value = None
            checked.append(value)
        return checked

    def too_late(rows: int) -> list[None]:
        for row in range(rows):
            distrust(row, f"the reward {name} took more than {seconds:g} seconds")
        return [None] * rows

    if inspect.iscoroutinefunction(reward):

        @functools.wraps(reward)
        async def bounded_async(*args: Any, **kwargs: Any) -> list[Any]:
            try:
                return looked_at(await asyncio.wait_for(reward(*args, **kwargs), seconds))
            except TimeoutError:
                return too_late(len(kwargs["completions"]))

        bounded_async.__name__ = name
        return bounded_async

    @functools.wraps(reward)
    def bounded(*args: Any, **kwargs: Any) -> list[Any]:
        outcome: list[Any] = []

        def call() -> None:
            try:
                outcome.append((reward(*args, **kwargs), None))
            except BaseException as error:  # whatever it is, it is raised again where the run can see it
                outcome.append((None, error))

        thread = threading.Thread(target=call, daemon=True, name=f"reward {name}")
        thread.start()
        thread.join(seconds)
        if not outcome:
            return too_late(len(kwargs["completions"]))
        given, error = outcome[0]
        if error is not None:
            raise error
        return looked_at(given)

    bounded.__name__ = name
    return bounded

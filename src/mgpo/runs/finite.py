"""Skips, counts and saves steps whose numbers are not finite; too many such steps in a row stop the run.

One infinite reward, log-probability, loss or gradient would silently turn every weight into NaN in one step. So before
each step of the optimizer all processes agree whether its update is finite. If it is not, the step's gradients are
dropped: weights and the optimizer's state stay as they are, and the learning rate schedule goes on.

    nonfinite/step_000012_process_0.json            the reasons, and the ids of the questions
    nonfinite/step_000012_process_0.safetensors     inputs of the losses: `replay(trainer, file)`
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import math
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.trainer.grpo_trainer import is_async_callable

from mgpo.errors import NumbersError, RunError
from mgpo.files import whole, write_whole
from mgpo.runs.tree import load_tree, save_tree

FOLDER = "nonfinite"
SIGNAL = getattr(signal, "SIGUSR2", None)
"""Interrupts a reward function. It is not SIGALRM, because graders such as math-verify use that one themselves."""
LEAST_GRACE = 30.0
"""The least time in seconds that native code has to return to Python after it was interrupted."""
BATCHES_KEPT = 10
"""Saved batches per run at most: they hold pixels, which could fill the disk. Reasons and ids are always saved."""
SCORES = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")


class FiniteSteps:
    """Lets only finite updates of a trainer reach the optimizer.

    It serves `_generate_and_score_completions` (`sampling`, `check`), `_compute_loss` (`see_loss`) and `_get_grad_norm`
    (`before_optimizer`).

    Args:
        trainer: an `MGPOTrainer`, which TRL need not have built yet.

    Attributes:
        in_a_row: number of steps that were skipped one after another until now.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.in_a_row = 0
        self._distrusted: dict[int, str] = {}
        """Rows of the batch in progress whose rollouts have a number that is not finite, with the reason."""
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the inputs from which this step's losses were computed, and why they are not finite."""
        self._parts: list[dict[str, Any]] = []
        self._reasons: list[str] = []

    def watched(self, reward: Callable, seconds: float) -> Callable:
        """A reward function with a time limit and a check of its numbers."""

        def distrust(row: int, why: str) -> None:
            self._distrusted[row] = why

        return within(reward, seconds, distrust)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """While TRL samples and scores a batch.

        Raises:
            NumbersError: the model's probabilities are not finite, so nothing can be sampled.
        """
        self._distrusted.clear()
        try:
            yield
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise NumbersError(
                f"Step {self.trainer.state.global_step + 1}: the model cannot be sampled from any more, because its "
                "probabilities are not finite: training has diverged. Begin a run in a new folder with a lower learning_rate."
            ) from error

    def check(self, output: dict[str, Any], episodes: Sequence[Any]) -> None:
        """Give a question with a number that is not finite NaN as advantages, so that its step is skipped."""
        output["question_ids"] = [episode.question.id for episode in episodes]
        said = output["completion_mask"].bool()
        if "tool_mask" in output:
            said = said & output["tool_mask"].bool()
        for name in SCORES:
            if output.get(name) is not None:
                for row in (~output[name].isfinite() & said).any(1).nonzero().flatten().tolist():
                    self._distrusted[row] = f"{name} is not finite"
        # TRL used this rollout's numbers for the advantages of its question's other rollouts, on all processes.
        asked = [f"{episode.question.id} {episode.question.question}" for episode in episodes]
        doubted = set(gather_object([asked[row] for row in self._distrusted]))
        rows = [row for row, question in enumerate(asked) if question in doubted]
        output["advantages"] = output["advantages"].clone()
        output["advantages"][rows] = math.nan
        output["doubts"] = [self._distrusted.get(row, "") for row in range(len(said))]

    def see_loss(self, inputs: dict[str, Any], loss: torch.Tensor) -> None:
        """Take note of a loss and of the inputs that it was computed from.

        Raises:
            NumbersError: it is not finite, and DeepSpeed's backward pass would apply the gradients by itself.
        """
        if not self.trainer.model.training:
            return
        self._parts.append(inputs)
        if not loss.isfinite().all():
            self._reasons += [*filter(None, inputs["doubts"]), "the loss is not finite"]
            if self.trainer.is_deepspeed_enabled:
                self._keep_step()
                raise NumbersError(self._message("DeepSpeed cannot skip a step"))

    def before_optimizer(self, model: Any, norm: Any) -> None:
        """Drop the gradients of a step that is not finite on any process.

        Args:
            model: the wrapped model, whose gradients of this step are complete.
            norm: their norm; None where DeepSpeed gives none.

        Raises:
            NumbersError: too many steps in a row were skipped, or DeepSpeed has applied what is not finite.
        """
        trainer = self.trainer
        # fp16: the gradient scaler finds its scale by infinite gradients, and skips those steps itself
        if norm is not None and not trainer.args.fp16 and not math.isfinite(float(norm)):
            self._reasons.append("the gradient is not finite")
            if trainer.is_deepspeed_enabled:
                self._keep_step()
                raise NumbersError(self._message("DeepSpeed has applied it, so resume from the last checkpoint"))
        doubt = torch.tensor(float(bool(self._reasons)), device=trainer.args.device)
        skip = bool(trainer.accelerator.reduce(doubt, "sum").item())
        trainer._metrics["train"]["update/nonfinite_steps"].append(float(skip))
        self.in_a_row = self.in_a_row + 1 if skip else 0
        if skip:
            for parameter in model.parameters():
                parameter.grad = None
            self._keep_step()
            if self.in_a_row >= trainer.args.max_nonfinite_steps:
                raise NumbersError(self._message(f"{self.in_a_row} steps in a row were skipped"))
            print(self._message("skipped"))
        self.begin_step()

    def _keep_step(self) -> None:
        """Save this process's reasons, question ids and batch."""
        args, step = self.trainer.args, self.trainer.state.global_step + 1
        folder = Path(args.output_dir) / FOLDER
        stem = f"step_{step:06d}_process_{args.process_index}"
        folder.mkdir(parents=True, exist_ok=True)
        asked = list(dict.fromkeys(name for part in self._parts for name in part["question_ids"]))
        about = {"step": step, "why": self._why(), "question_ids": asked}
        write_whole(folder / f"{stem}.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        if len(list(folder.glob("*.safetensors"))) < BATCHES_KEPT:
            with whole(folder / f"{stem}.safetensors") as aside:
                save_tree(about | {"parts": self._parts}, aside)

    def _why(self) -> list[str]:
        return list(dict.fromkeys(self._reasons)) or ["another process has numbers that are not finite"]

    def _message(self, what: str) -> str:
        args = self.trainer.args
        return (
            f"Step {self.trainer.state.global_step + 1}: {what}: {'; '.join(self._why())}. The first {BATCHES_KEPT} such batches "
            f"are saved in {args.output_dir}/{FOLDER}; mgpo.runs.finite.replay computes their losses again. Look at the "
            "rewards, or begin a run in a new folder with the last checkpoint as --model_name_or_path and a lower "
            f"learning_rate (a resumed run keeps its rate). In this run, max_nonfinite_steps={args.max_nonfinite_steps} may be "
            "raised."
        )


def replay(trainer: Any, file: Path) -> list[float]:
    """Compute the losses of a skipped step's batch again, part by part, with the trainer's current weights.

    Args:
        trainer: an `MGPOTrainer` with the settings of the run.
        file: a `.safetensors` file of `nonfinite/`.
    """
    losses = []
    for part in load_tree(file)["parts"]:
        inputs = {k: v.to(trainer.args.device) if isinstance(v, torch.Tensor) else v for k, v in part.items()}
        losses.append(trainer._compute_loss(trainer.model, inputs).item())
    trainer.finite.begin_step()
    return losses


def within(reward: Callable, seconds: float, distrust: Callable[[int, str], None]) -> Callable:
    """Wrap a reward function in TRL's convention so that it ends in time and returns only finite numbers or None.

    Args:
        reward: returns a number or None per completion; may be a coroutine function.
        seconds: limit of one call, see `interrupted_after`. A coroutine is cancelled where it awaits; if it blocks
            instead, it is not interrupted.
        distrust: called with a row and the reason, for each number that is not finite, and for all rows when the time
            is over. These rows get None, which TRL leaves out.

    An exception of the reward function is raised again as `RunError`, with its name and place.
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

    def failed(error: Exception) -> RunError:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return RunError(
            f"The reward function {name} failed: {type(error).__name__}: {error} ({place.filename}, line {place.lineno}). It "
            "must return a number or None for each completion."
        )

    def bounded(*args: Any, **kwargs: Any) -> list[Any]:
        try:
            with interrupted_after(seconds):
                return looked_at(reward(*args, **kwargs))
        except _TooLate:
            return too_late(len(kwargs["completions"]))
        except Exception as error:
            raise failed(error) from error

    async def bounded_async(*args: Any, **kwargs: Any) -> list[Any]:
        task = asyncio.ensure_future(reward(*args, **kwargs))
        done, _ = await asyncio.wait([task], timeout=seconds)
        if done:
            try:
                return looked_at(task.result())
            except Exception as error:
                raise failed(error) from error
        task.cancel()
        return too_late(len(kwargs["completions"]))

    chosen = bounded_async if is_async_callable(reward) else bounded
    chosen.__name__ = name
    return chosen


class _TooLate(BaseException):
    """The time is over. Not an `Exception`, because a reward function that catches those would continue."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Interrupt the body after so many seconds, wherever it waits or computes, by raising `_TooLate` in it.

    The body stays in the main thread, so that it may use signals and the current GPU as before. Only a main thread can
    be interrupted; in another thread, or on a system without signals, there is no limit. Native code that never returns
    to Python (a regular expression that backtracks for ever) cannot be interrupted. After as long again (at least
    `LEAST_GRACE`), `faulthandler`, which does not need the interpreter, prints where it hangs and ends the process, so
    that no run hangs.
    """
    if threading.current_thread() is not threading.main_thread() or SIGNAL is None:
        yield
        return
    main, over = threading.get_ident(), threading.Event()

    def watch() -> None:
        if not over.wait(seconds):
            signal.pthread_kill(main, SIGNAL)

    def interrupt(number: int, frame: Any) -> None:
        if not over.is_set():
            over.set()
            raise _TooLate

    before = signal.signal(SIGNAL, interrupt)
    threading.Thread(target=watch, daemon=True, name="limit of a reward function").start()
    faulthandler.dump_traceback_later(seconds + max(seconds, LEAST_GRACE), exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        over.set()
        faulthandler.cancel_dump_traceback_later()
        signal.signal(SIGNAL, before or signal.SIG_DFL)

"""What a training prints: in a terminal one live table, elsewhere one short line per log.

The table is drawn by rich below whatever else is printed. It shows the last steps; `metrics.jsonl` has all of them, with all
figures. Lines are printed in place of the table if standard output is a pipe or a file, with `disable_tqdm`, and with
`log_completions`, whose tables TRL prints by a console of its own.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from mgpo.runs.columns import figures, spent

ROWS = 12
"""Steps that the table shows."""
RECENT = 50
"""Logs from whose times the time left is estimated."""
NAMES = {"no signal": "groups without\nsignal", "tokens per turn": "tokens\nper turn", "tokens right": "tokens\nright"}
"""Headings of the table, where they are not the column's name."""


class RunDisplay(TrainerCallback):
    """Prints the progress of a run, on the main process.

    Args:
        console: where to print; by default standard output as it is at each moment.
        live: whether to draw the table; None: decided when the training begins.
        clock: seconds; `time.monotonic` but in tests.
    """

    def __init__(
        self, console: Console | None = None, live: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console, self._wanted, self._clock = console or Console(highlight=False), live, clock
        self._live: Live | None = None
        self._rows: list[tuple[int, dict[str, str], float | None]] = []
        self._times: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._step = self._steps = self._logged = 0
        self._since = clock()
        """When the current step began, or what came after the last one ended."""
        self._working = 0.0
        """Seconds of the steps since the last log, without evaluations and checkpoints."""
        self._doing = ""
        self._notice = ""

    def notice(self, text: str) -> None:
        """Show a sentence below the table, or print it at once. It may be called by a signal handler."""
        if self._live is not None:
            self._notice = text
        else:
            os.write(2, f"{text}\n".encode())

    def close(self) -> None:
        """Leave the table as it is; called when training ends, however it ends."""
        if self._live is not None:
            live, self._live = self._live, None
            self._doing = ""
            live.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the table, if standard output is a terminal."""
        self._step = self._logged = state.global_step
        self._steps, self._since = state.max_steps, self._clock()
        self._times.append((self._since, self._step))
        if not state.is_world_process_zero:
            return
        plain = args.disable_tqdm or getattr(args, "log_completions", False) or not sys.stdout.isatty()
        if self._wanted if self._wanted is not None else self.console.is_terminal and not plain:
            self._live = Live(
                get_renderable=self._table,
                console=self.console,
                refresh_per_second=1,
                redirect_stderr=sys.stderr.isatty(),  # else it goes to the user's file
                vertical_overflow="crop",
            )
            self._live.start(refresh=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say which step is made."""
        self._doing = f"step {state.global_step + 1}"

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that the step goes on."""
        self._refresh()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step, and its time."""
        self._step, self._steps = state.global_step, state.max_steps
        self._working += self._lap()
        self._doing = "evaluation" if control.should_evaluate else "checkpoint" if control.should_save else ""

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that an evaluation is made."""
        self._doing = "evaluation"

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show a row: of a step, of an evaluation, or the last one."""
        if not state.is_world_process_zero:
            return
        row, step = state.log_history[-1], state.global_step
        if "train_loss" in row:
            return
        if any(key.startswith("eval_") for key in row):
            self._tell_evaluation(row, step)
            return
        made = step - self._logged
        seconds = self._working / made if made > 0 and self._working else None
        self._logged, self._working = step, 0.0
        self._times.append((self._clock(), step))
        self._rows = [*self._rows, (step, figures(row), seconds)][-ROWS:]
        if self._live is None:
            self._say(step, [*_told(figures(row)), *([f"{spent(seconds)}/step"] if seconds else []), self._left()])
        self._refresh()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that a checkpoint is complete."""
        if state.is_world_process_zero:
            self._say(state.global_step, [f"checkpoint: {args.output_dir}/checkpoint-{state.global_step}"])
        self._lap()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the evaluation's time out of the next step's."""
        self._doing = "checkpoint" if control.should_save else ""
        self._lap()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the table as it is."""
        self._step = state.global_step
        self.close()

    def _tell_evaluation(self, row: dict[str, Any], step: int) -> None:
        told = _told(figures(row, "eval_"))
        took = [spent(row["eval_runtime"])] if "eval_runtime" in row else []
        self._say(step, ["evaluation", *told, *took])

    def _say(self, step: int, parts: list[str]) -> None:
        of = f"/{self._steps}" if self._steps else ""  # an evaluation without a training
        text = " | ".join(filter(None, [f"step {step}{of}", *parts]))
        if self._live is not None:
            self.console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def _lap(self) -> float:
        """Seconds since the last call."""
        now = self._clock()
        before, self._since = self._since, now
        return now - before

    def _left(self) -> str:
        """The time left, at the pace of the last logs; the first step, which loads and compiles, counts only if it is alone."""
        remaining = self._steps - self._step
        times = list(self._times)
        if len(times) > 2:
            times = times[1:]
        (first, begun), (last, made) = times[0], times[-1]
        if remaining <= 0 or made <= begun:
            return ""
        return f"{spent((last - first) / (made - begun) * remaining)} left"

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _table(self) -> RenderableType:
        rows = self._rows[-max(1, min(ROWS, self.console.height - 10)) :]
        columns = list(dict.fromkeys(name for _, shown, _ in rows for name in shown))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in ["step", *(NAMES.get(name, name) for name in columns), "seconds\nper step"]:
            table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
        for step, shown, seconds in rows:
            table.add_row(
                str(step), *(shown.get(name, "") for name in columns), "" if seconds is None else f"{seconds:.1f}"
            )
        now = self._clock()
        words = f" {self._step} of {self._steps} steps"
        if self._doing:
            words += f", {self._doing} for {spent(now - self._since)}"
        if left := self._left():
            words += f", {left}"
        bar = Table.grid(padding=0)
        bar.add_row(
            ProgressBar(max(self._steps, 1), self._step, width=20), Text(words, no_wrap=True, overflow="ellipsis")
        )
        parts: list[RenderableType] = [table, bar] if rows else [bar]
        return Group(*parts, *([Text(self._notice, style="bold")] if self._notice else []))


def show(trainer: Any) -> RunDisplay:
    """Let a trainer print by a `RunDisplay` in place of upstream's bars and dictionaries."""
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, (PrinterCallback, ProgressCallback)) or "Notebook" in type(callback).__name__:
            trainer.remove_callback(callback)
    logging.disable_progress_bar()  # a bar for each checkpoint would tear the table
    display = RunDisplay()
    trainer.add_callback(display)
    return display


def _told(shown: dict[str, str]) -> list[str]:
    """Figures as parts of a line."""
    return [f"{name} {text}" for name, text in shown.items()]

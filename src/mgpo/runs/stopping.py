"""On SIGTERM, a run finishes its step, saves and stops: no work is lost when a scheduler takes the machine away.

transformers' own just-in-time checkpoint waits three seconds and may save in the middle of a step, with the weights of
one step and the number of another. Here a checkpoint is always that of a whole step, and all processes stop at the same
step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy


@contextmanager
def stopping_on_sigterm(trainer: Any) -> Iterator[SaveAndStop]:
    """While the trainer trains: a first SIGTERM ends the run after its step, with a checkpoint; a second one at once.

    Where a launcher started the process, further ones change nothing: the launcher kills it when its own limit is reached.
    Only a main thread may handle signals; in another thread, SIGTERM does what it did before.
    """
    request = SaveAndStop(trainer)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    trainer.add_callback(request)
    before = signal.signal(signal.SIGTERM, request.take)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: it was not set by Python code
        trainer.remove_callback(request)


class SaveAndStop(TrainerCallback):
    """Asks a trainer to save and stop after its step; `heeded` says why it did, None if it did not."""

    def __init__(self, trainer: Any) -> None:
        self.accelerator = trainer.accelerator
        self.display = getattr(trainer, "display", None)
        self.asked = False
        self.heeded: str | None = None
        self.launcher = os.getppid() if _launched() else None

    def take(self, number: int, frame: Any) -> None:
        """Handle the signal."""
        if self.asked:
            return
        self.asked = True
        # A scheduler signals all processes of a job, and so does the launcher that it has signalled: the second one is the same.
        if not _launched():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        said = "SIGTERM: this step is finished and saved, then the run stops."
        if self.display is not None:
            self.display.notice(said)
        else:
            os.write(2, f"{said}\n".encode())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All processes stop as soon as one of them is asked to, or has lost its launcher and so nobody who would ask."""
        orphaned = self.launcher not in (None, os.getppid())
        asked = torch.tensor(float(self.asked or orphaned), device=args.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.reduce(asked, "sum")
        if asked.item() and not control.should_training_stop:
            self.heeded = "because its launcher has ended" if orphaned else "by SIGTERM"
            control.should_save = control.should_training_stop = True
            args.save_strategy = SaveStrategy.STEPS  # with "best", an evaluation would decide whether to save


def _launched() -> bool:
    """Whether a launcher, `accelerate launch` or `torchrun`, has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ

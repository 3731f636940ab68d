"""On SIGTERM, a run finishes its step, saves and stops: no work is lost when a scheduler takes the machine away.

transformers' own just-in-time checkpoint waits three seconds and may save in the middle of a step, with the weights of
one step and the number of another. Here a checkpoint is always that of a whole step, and all processes stop at the same
step.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy


class Stopping:
    """Mixin for a `transformers.Trainer`: put it before the trainer's class."""

    stopped = False
    """Whether the run ended early because of a SIGTERM."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train. A first SIGTERM ends the run after its current step, with a checkpoint; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            return super().train(*args, **kwargs)  # only a main thread may handle signals
        request = _SaveAndStop(self)
        self.add_callback(request)
        before = signal.signal(signal.SIGTERM, request.take)
        try:
            return super().train(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: it was not set by Python code
            self.remove_callback(request)
            self.stopped = request.heeded


class _SaveAndStop(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self.accelerator = trainer.accelerator
        self.asked = self.heeded = False

    def take(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(2, b"SIGTERM: this step is finished and saved, then the run stops.\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All processes stop as soon as one of them is asked to."""
        asked = torch.tensor(float(self.asked), device=args.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.reduce(asked, "sum")
        if asked.item() and not control.should_training_stop:
            self.heeded = control.should_save = control.should_training_stop = True
            args.save_strategy = SaveStrategy.STEPS  # with "best", an evaluation would decide whether to save

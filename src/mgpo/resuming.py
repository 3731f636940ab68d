"""Resuming that resumes: what transformers and TRL lose between a checkpoint and the run that goes on from it.

Two things, both silent. A vision-language model is saved under the names of the hub's format, and `Trainer` compares them
with the names in memory: nothing matches, a warning is logged, and the run goes on from the base model. And TRL's sampler
draws the order of each epoch from one stream, so a run that resumes in its second epoch would see the first one's order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from trl.trainer.utils import RepeatSampler


class Resuming:
    """Mixin for a `transformers.Trainer`: put it before the trainer's class."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights of a whole-model checkpoint, name by name; adapters and sharded formats are upstream's."""
        model = model if model is not None else self.model
        whole = [*Path(resume_from_checkpoint).glob("model*.safetensors")]
        if not whole or self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype="auto", use_safetensors=True)
        model.load_state_dict(saved.state_dict())


class EpochSampler(RepeatSampler):
    """TRL's sampler, with an order that depends on the seed and the epoch alone."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)

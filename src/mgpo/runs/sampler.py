"""The order of a training's questions, which does not depend on where it was interrupted."""

from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's sampler, with an order that depends on the seed and the epoch alone."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)

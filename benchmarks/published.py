"""Step times of Qwen2.5-VL under GRPO that others measured, and what `benchmarks.simulate` says of the same settings.

Source: github.com/hiyouga/EasyR1, assets/baselines.md at 46c6c210 ("Performance Baselines", version 0.3.0, Geometry3k), with the
defaults of examples/config.yaml of about that time: 512 questions of 5 rollouts, updates of 128 questions, a reference model, gradient
checkpointing, FSDP, images of at least 262,144 pixels (334 tokens), responses of at most 2,048 tokens. The length of an episode is that
file's tokens per second and GPU, times GPUs and seconds, over rollouts. EasyR1 repeats prompts in its update and moves weights, states and
the reference model to the host's memory between phases; only the former is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.machines import Cluster
from benchmarks.simulate import Run, step
from benchmarks.work import Episode


@dataclass(frozen=True)
class Published:
    """A row of that file: seconds and tokens per second and GPU, and its settings."""

    model: str
    cluster: str
    batch: int
    parallel: int
    throughput: float
    seconds: float

    @property
    def run(self) -> Run:
        """The same settings, as far as they are known."""
        tokens = self.throughput * self.seconds * Cluster.read(self.cluster).gpus / (512 * 5)
        said = tokens - 334 - 70
        episode = Episode(question=70, overview=334, reply=0, crop=0, said=(said,), longest=(2048,))
        return Run(self.model, episode, rollouts=5, batch=self.batch, shared=False, engine=0.6, parallel=self.parallel)

    @property
    def ratio(self) -> float:
        """Measured over simulated."""
        return self.seconds / step(self.run, Cluster.read(self.cluster)).seconds


PUBLISHED = (
    Published("Qwen2.5-VL-3B", "8xH100", 4, 2, 1200, 180),
    Published("Qwen2.5-VL-7B", "8xH100", 4, 2, 1200, 180),
    Published("Qwen2.5-VL-7B", "8xH100", 10, 2, 1400, 170),
    Published("Qwen2.5-VL-32B", "8xH100", 1, 8, 360, 860),
    Published("Qwen2.5-VL-7B", "8xL20", 4, 2, 410, 580),
)
"""The rows in mixed precision, and 32B, which is in bfloat16."""


def slowdown() -> tuple[float, float]:
    """By how much published steps were slower than simulated ones: the least and the most."""
    ratios = [row.ratio for row in PUBLISHED]
    return min(ratios), max(ratios)

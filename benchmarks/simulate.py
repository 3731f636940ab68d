"""What a step of training takes on a cluster: `benchmarks.work` in operations, bytes and exchanges, at the rates of `benchmarks.machines`.

No GPU was measured by this project. Of the factors that were fitted on a CPU (`benchmarks.calibrate`), the share of products and the
host's seconds are carried over; the others are assumed, and `Assumed` holds them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.calibrate import ADAMW, Factors, Machine, Need, calibrated, passed_on, seconds, whole
from benchmarks.machines import Cluster
from benchmarks.work import (
    Episode,
    Operations,
    ahead,
    back,
    config_of,
    image,
    prefilled,
    read_weights,
    sampled,
    updated,
)
from mgpo.planning.estimate import GIB
from mgpo.planning.gpus import USABLE
from mgpo.planning.sizes import SIZES

PAPER = Episode(question=150, overview=1280, reply=250, crop=640, said=(60, 160), longest=(256, 1024), new_crops=0.7)
"""Assumed of the paper's run: photographs so large that each overview takes the whole budget, crops between 256 and 1280 tokens, 0.7 of the
boxes valid (0.43 rising to 0.83 in the paper), and the recipe's limits as the longest turns. The lengths of texts are guesses."""


@dataclass(frozen=True)
class Assumed:
    """What is not measured.

    Attributes:
        peak: share of the data sheet's operations that large plain products reach.
        attention: share of the rate of such products that attention reaches.
        few, memory, between: as in `Factors`, on a GPU.
        layer_call: seconds to launch a layer's kernels without CUDA graphs.
        token_call: seconds for each sampled token besides; vLLM (CUDA graphs) and transformers.
        network: share of the links' bandwidth that exchanges reach.
    """

    peak: float = 0.7
    attention: float = 0.6
    few: float = 0.5
    memory: float = 0.7
    between: float = 0.3
    layer_call: float = 3e-4
    token_call: tuple[float, float] = (4e-3, 2e-3)
    network: float = 0.7


@dataclass(frozen=True)
class Run:
    """A training run: the settings of a recipe, and what its episodes are like.

    Attributes:
        questions, rollouts: of a generation, and of a question.
        visual: visual tokens of an image at most.
        updates: of the weights for each generation.
        batch: rollouts of a pass on one GPU (`per_device_train_batch_size`).
        old, reference: whether old log-probabilities are computed, and those of a reference model (a KL term).
        adapter: weights that are trained, if not all are.
        steps: generations of the whole run.
        dtype, optim: of the weights, and the optimizer; they decide memory, not time.
        engine: share of a GPU that vLLM has; None samples with transformers.
        parallel: GPUs of a vLLM engine.
        silent: share of the questions whose rollouts are all right or all wrong, which an update without KL term skips.
    """

    model: str = "Qwen2.5-VL-7B"
    episode: Episode = PAPER
    questions: int = 512
    rollouts: int = 8
    updates: int = 4
    batch: int = 4
    old: bool = True
    reference: bool = True
    adapter: float = 0
    frozen: bool = False
    checkpointing: bool = True
    sharded: bool = True
    shared: bool = True
    engine: float | None = 0.45
    parallel: int = 1
    silent: float = 0
    steps: int = 80
    visual: int = 1280
    dtype: str = "bfloat16"
    optim: str = "adamw_torch"
    config: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", config_of(SIZES[self.model]))


@dataclass(frozen=True)
class Phase:
    """Seconds of a phase on each GPU, and what they are spent on."""

    seconds: float
    bound: str


@dataclass(frozen=True)
class Step:
    """A generation and its updates."""

    phases: dict[str, Phase]
    operations: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def bottleneck(self) -> tuple[str, str]:
        """The longest phase, and what it is bound by."""
        name = max(self.phases, key=lambda one: self.phases[one].seconds)
        return name, self.phases[name].bound


def exchange(cluster: Cluster, held: float, assumed: Assumed) -> float:
    """Seconds until every GPU has what all hold together (bytes), or until what all have is summed and split over them."""
    within = held * (cluster.gpus_per_node - 1) / cluster.gpus_per_node / cluster.gpu.link
    between = held * (cluster.nodes - 1) / cluster.nodes / (cluster.gpus_per_node * cluster.gpu.network)
    return max(within, between) / assumed.network


def step(run: Run, cluster: Cluster, assumed: Assumed | None = None) -> Step:
    """Seconds of each phase of one generation and its updates, on each GPU; all are equally busy."""
    assumed = assumed or Assumed()
    needs = {
        **_host(run, cluster), **_rollout(run, cluster), **_passes(run, cluster, assumed), **_after(run, cluster, assumed)
    }  # fmt: skip
    device, phases = Machine(assumed.peak * cluster.gpu.operations, cluster.gpu.bandwidth, True), {}
    factors = gpu_factors(run, assumed)
    for name, need in needs.items():
        parts = seconds(need, device, factors)
        phases[name] = Phase(whole(parts, device), max(parts, key=lambda part: parts[part]))
    return Step(phases, cluster.gpus * sum(need.operations.total for need in needs.values()))


def gpu_factors(run: Run, assumed: Assumed) -> Factors:
    """The CPU's factors where they carry over, else the assumed ones."""
    cpu = calibrated()
    return Factors(
        cpu.products, assumed.attention, assumed.few, assumed.memory, assumed.between, assumed.layer_call,
        assumed.token_call[run.engine is None], cpu.patch, cpu.rollout,
    )  # fmt: skip


def _portion(run: Run, cluster: Cluster) -> tuple[float, float]:
    """Questions and rollouts of a generation on each GPU; each has at least one rollout, and the prompt of each that it has."""
    return max(1.0, run.questions / cluster.gpus), max(1.0, run.questions * run.rollouts / cluster.gpus)


def _host(run: Run, cluster: Cluster) -> dict[str, Need]:
    """Cutting crops and preparing patches; overviews are decoded during the step before."""
    questions, rollouts = _portion(run, cluster)
    later = len(run.episode.said) - 1
    patches = questions * image(run.config, run.episode.overview).patches
    patches += rollouts * later * image(run.config, run.episode.crop).patches
    return {"host": Need(patches=patches, rollouts=rollouts)}


def _rollout(run: Run, cluster: Cluster) -> dict[str, Need]:
    size, episode, config = SIZES[run.model], run.episode, run.config
    questions, rollouts = _portion(run, cluster)
    group = prefilled(config, episode, run.rollouts)
    if questions * run.rollouts > rollouts:  # a GPU that has a part of a group
        group = prefilled(config, episode, max(1, round(rollouts)))
    said, layers = sampled(episode, 1), size.layers * (run.engine is None)
    at_once = min(rollouts, running(run, cluster))
    steps = sum(rollouts / at_once * mean + max(0, most - mean) for mean, most in zip(episode.said, episode.longest))
    weights = 2 * read_weights(config) / run.parallel
    return {
        "prefill": Need(
            _times(ahead(config, group), questions), questions * passed_on(size, group, 2), 2 * size.parameters,
            len(episode.said) * size.layers,
        ),
        "sampling": Need(
            _times(ahead(config, said), rollouts), 0, steps * weights + rollouts * said.pairs * size.cache_bytes, steps * layers,
            steps, few=True,
        ),
    }  # fmt: skip


def running(run: Run, cluster: Cluster) -> float:
    """Rollouts that one GPU samples at once: as many as vLLM's share of it has caches for, prompts counted once; all without vLLM."""
    if run.engine is None:
        return float("inf")
    size = SIZES[run.model]
    room = run.engine * USABLE.get(cluster.gpu.gb, cluster.gpu.gb) * GIB - 2 * size.parameters / run.parallel
    each = (run.episode.prompt / run.rollouts + run.episode.own) * size.cache_bytes + size.state_bytes
    return max(1.0, room / each)


def _passes(run: Run, cluster: Cluster, assumed: Assumed) -> dict[str, Need]:
    """Passes over the rollouts: those that only score, and those of the updates."""
    size, config = SIZES[run.model], run.config
    _, rollouts = _portion(run, cluster)
    each = max(1, min(run.batch, round(rollouts)))
    prompts = -(-each // run.rollouts)
    passes = max(float(run.updates), rollouts / each)
    frozen = run.frozen or bool(run.adapter)
    scores = updated(config, run.episode, each, prompts, frozen, run.shared)
    learning = passes * (1 if run.reference else 1 - run.silent)
    weights, sent = 2 * size.parameters, _sharded(run, cluster, 2 * size.parameters, assumed)
    forward, backward, between = ahead(config, scores), back(config, scores, frozen), passed_on(size, scores, 2)
    again = run.checkpointing
    found = {
        "update_forward": _need(learning, forward, between, weights, size.layers, sent),
        "update_backward": _need(
            learning, backward + (forward if again else Operations(0, 0)), (2 + again) * between, 2 * weights,
            (2 + again) * size.layers, 2 * sent,
        ),
    }  # fmt: skip
    if scoring := run.old + run.reference:
        found = {"scoring": _need(scoring * passes, forward, between, weights, size.layers, sent)} | found
    return found


def _need(times: float, operations: Operations, between: float, read: float, layers: float, network: float) -> Need:
    return Need(_times(operations, times), times * between, times * read, times * layers, network=times * network)


def _sharded(run: Run, cluster: Cluster, held: float, assumed: Assumed) -> float:
    """Seconds to gather weights once, or to reduce gradients once, where weights are sharded."""
    return exchange(cluster, held, assumed) if run.sharded and cluster.gpus > 1 else 0.0


def _after(run: Run, cluster: Cluster, assumed: Assumed) -> dict[str, Need]:
    """The optimizer, the sum of gradients where weights are not sharded, and the new weights for vLLM."""
    size = SIZES[run.model]
    trained = run.adapter or size.parameters - (size.vision if run.frozen else 0)
    sharded = run.sharded and cluster.gpus > 1
    summed = 0.0 if sharded or cluster.gpus == 1 else 2 * exchange(cluster, 4 * trained, assumed)
    found = {
        "optimizer": Need(
            read=run.updates * ADAMW * trained / (cluster.gpus if sharded else 1), network=run.updates * summed
        )
    }
    if run.engine is not None:
        found["push"] = Need(read=4 * size.parameters, network=_sharded(run, cluster, 2 * size.parameters, assumed))
    return found


def _times(operations: Operations, times: float) -> Operations:
    return Operations(operations.products * times, operations.attention * times)

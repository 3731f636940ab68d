"""The few factors of the model of time, fitted to the measured steps that are not held out, and the error on those that are.

    python -m benchmarks.calibrate                   # prints both; `benchmarks.measured` measures the steps again

A phase of a step takes the longest of computing, reading memory, the network, and telling the device what to do (on a CPU, which cannot
compute meanwhile, the last comes on top). Computing is matrix products, attention, and what passes through memory between them, each at a
share of the machine's own rate. The shares, and the seconds of a call, are the factors.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any

from benchmarks.flops import Work
from benchmarks.measured import FILE
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
from mgpo.planning.sampling import layer_bytes, tower_bytes
from mgpo.planning.sizes import Size, Tower

STEP = ("prefill", "sampling", "update_forward", "update_backward", "optimizer", "host")
ADAMW = 28
"""Bytes of AdamW for a parameter in float32: weight and both states read and written, and the gradient read."""


@dataclass(frozen=True)
class Factors:
    """Fitted to measured steps.

    Attributes:
        products: share of the rate of matrix products that products reach in passes over many tokens.
        attention: the same for attention.
        few: the same for products of a few rows, when tokens are sampled.
        memory: share of the rate at which memory is read, where weights and caches are.
        between: the same for what norms, rotations and activations read and write.
        layer_call: seconds of a layer's call, however little it computes.
        token_call: seconds for each token of a turn, whatever the model.
        patch: seconds of the host for a patch of an image: resizing, cutting, copying.
        rollout: seconds of the host for a rollout besides: its texts, box and reward.
    """

    products: float = 0.8
    attention: float = 0.5
    few: float = 0.4
    memory: float = 0.7
    between: float = 1.0
    layer_call: float = 5e-4
    token_call: float = 5e-3
    patch: float = 1e-5
    rollout: float = 5e-3


@dataclass(frozen=True)
class Machine:
    """One device: operations per second of matrix products, bytes per second of memory, and whether it computes while it is told what next."""

    rate: float
    bandwidth: float
    asynchronous: bool = False


@dataclass(frozen=True)
class Need:
    """What a phase needs of a device.

    Attributes:
        operations: of products and attention.
        between: bytes that norms, rotations and activations pass on.
        read: bytes of weights, caches or states.
        layers, tokens, patches, rollouts: calls of layers, tokens of a turn that are sampled one by one, and what the host prepares.
        network: seconds.
        few: whether products are of a few rows.
    """

    operations: Operations = Operations(0, 0)
    between: float = 0
    read: float = 0
    layers: float = 0
    tokens: float = 0
    patches: float = 0
    rollouts: float = 0
    network: float = 0
    few: bool = False


def seconds(need: Need, machine: Machine, factors: Factors) -> dict[str, float]:
    """Seconds by what is waited for (`whole`)."""
    products = factors.few if need.few else factors.products
    compute = need.operations.products / products + need.operations.attention / factors.attention
    calls = need.layers * factors.layer_call + need.tokens * factors.token_call
    host = need.patches * factors.patch + need.rollouts * factors.rollout
    return {
        "compute": compute / machine.rate + need.between / (machine.bandwidth * factors.between),
        "memory": need.read / (machine.bandwidth * factors.memory),
        "network": need.network,
        "calls": calls + host,
    }


def whole(parts: dict[str, float], machine: Machine) -> float:
    """Seconds of a phase: calls of an asynchronous device wait in its queue while it computes."""
    calls = 0.0 if machine.asynchronous else parts["calls"]
    return calls + max(count for name, count in parts.items() if machine.asynchronous or name != "calls")


@dataclass(frozen=True, eq=False)
class Point:
    """A measured step: its model, its episodes, and the seconds and needed operations of its phases."""

    name: str
    held_out: bool
    size: Size
    config: Any
    frozen: bool
    questions: int
    rollouts: int
    episode: Episode
    operations: dict[str, float]
    seconds: dict[str, float]


@cache
def points() -> tuple[Point, ...]:
    """The measured steps of `benchmarks/measured.json`."""
    return tuple(map(_point, json.loads(FILE.read_text())))


@cache
def machine() -> Machine:
    """The machine on which they were measured, by medians over them."""
    rows = json.loads(FILE.read_text())
    return Machine(*(statistics.median(row[name] for row in rows) for name in ("matmul_rate", "read_rate")))


def _point(row: dict[str, Any]) -> Point:
    r = row["random"]
    head = r["hidden"] // r["heads"]
    size = Size(
        row["parameters"], row["vision"], r["layers"], r["hidden"], r["inner"], r["hidden"], r["key_value_heads"] * head,
        row["vocabulary"], 32_768, Tower(r["depth"], r["tower"], r["tower_inner"]), 14,
    )  # fmt: skip
    return Point(
        row["name"], row["held_out"], size, config_of(size, head, r["whole"]), row["frozen"], row["questions"], row["rollouts"],
        Episode(**row["episode"]), row["operations"], row["seconds"],
    )  # fmt: skip


def passed_on(size: Size, work: Work, width: int) -> float:
    """Bytes that norms, rotations and activations pass on in a forward pass, in units of what a layer holds of a token at once."""
    return work.tokens * size.layers * layer_bytes(size, width) + tower_bytes(
        size, work.patches / 4, width, True, False
    )


@cache
def needs(point: Point) -> dict[str, Need]:
    """What the phases of a measured step need, from the lengths of its episodes; weights are float32."""
    config, episode, size = point.config, point.episode, point.size
    fill = prefilled(config, episode, point.rollouts) * point.questions
    said = sampled(episode, point.rollouts) * point.questions
    update = updated(config, episode, point.rollouts, 1, point.frozen) * point.questions
    steps, turns = sum(episode.longest), len(episode.said)
    trained = size.parameters - (size.vision if point.frozen else 0)
    weights, cache_bytes, between = 4 * size.parameters, 2 * size.cache_bytes, passed_on(size, update, 4)
    shown = image(config, episode.overview) + image(config, episode.crop) * (point.rollouts * (turns - 1))
    return {
        "prefill": Need(ahead(config, fill), passed_on(size, fill, 4), weights, turns * size.layers),
        "sampling": Need(
            ahead(config, said), 0, steps * 4 * read_weights(config) + said.pairs * cache_bytes, steps * size.layers, steps, few=True
        ),
        "update_forward": Need(ahead(config, update), between, weights, size.layers),
        "update_backward": Need(back(config, update, point.frozen), 2 * between, weights, size.layers),
        "optimizer": Need(read=ADAMW * trained),
        "host": Need(patches=point.questions * shown.patches, rollouts=point.questions * point.rollouts),
    }  # fmt: skip


def predicted(point: Point, factors: Factors) -> dict[str, float]:
    """Seconds of each phase and of the step."""
    cpu = machine()
    found = {name: whole(seconds(need, cpu, factors), cpu) for name, need in needs(point).items()}
    return found | {"step": sum(found.values())}


def errors(of: Iterable[Point], factors: Factors) -> dict[str, list[float]]:
    """Predicted over measured, less one, by phase: one for each point."""
    rows = [(predicted(point, factors), point.seconds) for point in of]
    return {name: [guess[name] / seen[name] - 1 for guess, seen in rows] for name in (*STEP, "step")}


def fit(to: Iterable[Point]) -> Factors:
    """The factors with the least squares of log errors, each second of a step counted alike: coordinate by coordinate."""
    chosen = tuple(to)

    def loss(factors: Factors) -> float:
        total = 0.0
        for point in chosen:
            guess = predicted(point, factors)
            for name in STEP:
                share = point.seconds[name] / point.seconds["step"]
                total += share * math.log(guess[name] / point.seconds[name]) ** 2
        return total

    return _descended(Factors(), loss)


def _descended(start: Factors, loss: Callable[[Factors], float]) -> Factors:
    best, least, stride = start, loss(start), 1.5
    while stride > 1.002:
        better = False
        for field in fields(start):
            for by in (stride, 1 / stride):
                tried = replace(best, **{field.name: min(1.0, getattr(best, field.name) * by)})  # no share is above one
                if (found := loss(tried)) < least:
                    best, least, better = tried, found, True
        stride = stride if better else math.sqrt(stride)
    return best


@cache
def calibrated() -> Factors:
    """The factors by the steps that are not held out."""
    return fit(point for point in points() if not point.held_out)


def main() -> None:
    factors, cpu = calibrated(), machine()
    print(f"machine: {cpu.rate / 1e9:.0f} GFLOP/s of matrix products, {cpu.bandwidth / 1e9:.1f} GB/s read, one thread")
    print("factors:", {name: float(f"{value:.3g}") for name, value in asdict(factors).items()})
    for held_out in (False, True):
        chosen = [point for point in points() if point.held_out == held_out]
        found = errors(chosen, factors)
        print("held out:" if held_out else "fitted:")
        for i, point in enumerate(chosen):
            said = ", ".join(f"{name} {found[name][i]:+.0%}" for name in found)
            print(f"  {point.name}, {point.questions} x {point.rollouts}, {point.seconds['step']:.1f} s: {said}")
        if not chosen:
            continue
        means = ", ".join(f"{name} {statistics.mean(map(abs, found[name])):.0%}" for name in found)
        print(f"  mean of absolute errors: {means}")


if __name__ == "__main__":
    main()

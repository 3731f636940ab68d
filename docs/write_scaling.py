"""Writes the tables of docs/scaling.md between their marks, and draws docs/scaling.png: python docs/write_scaling.py"""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.calibrate import STEP, calibrated, errors, points, predicted  # noqa: E402
from benchmarks.machines import Cluster  # noqa: E402
from benchmarks.published import PUBLISHED, slowdown  # noqa: E402
from benchmarks.scale import episode_of, memory  # noqa: E402
from benchmarks.simulate import PAPER, Run, step  # noqa: E402
from benchmarks.work import ahead, back, prefilled, updated  # noqa: E402
from mgpo.planning.choosing import choices, ways  # noqa: E402
from mgpo.planning.estimate import GIB  # noqa: E402
from mgpo.planning.gpus import Gpus  # noqa: E402
from mgpo.planning.sizes import SIZES  # noqa: E402

PAGE, FIGURE = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.png"
MODELS = tuple(name for name in SIZES if name.startswith("Qwen2.5-VL"))
H100 = Cluster(4, 8, "H100")
PARALLEL = {"Qwen2.5-VL-3B": 1, "Qwen2.5-VL-7B": 1, "Qwen2.5-VL-32B": 4, "Qwen2.5-VL-72B": 8}


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def least(name, way, gpus):
    """GiB that a GPU should have for a way of training, with 640 visual tokens and the smallest batches."""
    size = SIZES[name]
    (chosen,) = (one for one in ways(size, gpus) if one.name == way)
    found = choices(f"Qwen/{name}-Instruct", size, chosen, gpus, "mgpo", 640, 1)
    return f"{min(choice.estimate.needed for choice in found) / GIB:.0f}"


def paper(name):
    """The paper's run of another size; vLLM has as many GPUs as its weights need."""
    return Run(name, parallel=PARALLEL[name])


def needs():
    """Memory and arithmetic of each size."""
    rows = []
    for name in MODELS:
        size, run = SIZES[name], paper(name)
        work = updated(run.config, PAPER, 8, 1, False)
        update = ahead(run.config, work).total + back(run.config, work, False).total
        fill = ahead(run.config, prefilled(run.config, PAPER, 8)).total
        rows.append([
            name.removeprefix("Qwen2.5-VL-"), f"{size.parameters / 1e9:.2f}", f"{2 * size.parameters / GIB:.0f}",
            f"{16 * size.parameters / GIB:.0f}", f"{16 * size.parameters / 8 / GIB:.0f}, {16 * size.parameters / 32 / GIB:.0f}",
            least(name, "LoRA", Gpus(1, 80)), least(name, "4-bit LoRA", Gpus(1, 80)), f"{size.cache_bytes / 1024:.0f}",
            f"{size.cache_bytes * (PAPER.prompt + 8 * PAPER.own) / GIB:.1f}", f"{fill / 1e12:.0f}, {update / 1e12:.0f}",
        ])  # fmt: skip
    head = [
        "", "parameters, 10^9", "weights, 16 bits", "full training, in all", "the same on each of 8, of 32 GPUs", "LoRA, one GPU",
        "4-bit LoRA, one GPU", "cache of a token, KiB", "cache of a question", "prefill, update of a question, TFLOP",
    ]  # fmt: skip
    return table(head, rows)


def costs():
    """The paper's run."""
    low, high = slowdown()
    rows = []
    for name in MODELS:
        for cluster in (Cluster(1, 8, "H100"), H100, Cluster(8, 8, "H100"), Cluster(4, 8, "A100")):
            run = paper(name)
            held, found = memory(run, cluster).needed / GIB, step(run, cluster)
            hours = run.steps * found.seconds * cluster.gpus / 3600
            fits = f"{held:.0f}" if held <= 79 else f"{held:.0f}: does not fit"
            told = [f"{found.seconds:.0f}", " by ".join(reversed(found.bottleneck)), f"{hours:.0f}", f"{low * hours:.0f} to {high * hours:.0f}"]
            rows.append([name.removeprefix("Qwen2.5-VL-"), cluster, fits, *(told if held <= 79 else ["–"] * 4)])
    return table(
        ["", "cluster", "GiB on each GPU", "step, s", "bottleneck", "GPU hours of 80 steps, at least", "as published steps are slower"], rows
    )  # fmt: skip


def growth():
    """One setting after another changed from the paper's."""
    base = paper("Qwen2.5-VL-7B")
    changes = {
        "the paper's": (base, H100),
        **{f"{n} visual tokens": (replace(base, visual=n, episode=replace(episode_of(n, 2), longest=PAPER.longest)), H100) for n in (320, 640, 2560)},
        **{f"{g} rollouts of a question": (replace(base, rollouts=g, batch=min(4, g)), H100) for g in (4, 16)},
        "one turn (only an answer)": (replace(base, episode=episode_of(1280, 1)), H100),
        **{f"{t} turns": (replace(base, episode=episode_of(1280, t)), H100) for t in (3, 4)},
        "prompts not shared in the update": (replace(base, shared=False), H100),
        "whole groups in a pass (batch 8)": (replace(base, batch=8), H100),
        "no reference model, one update": (replace(base, reference=False, updates=1), H100),
        "half of the questions silent, no reference model": (replace(base, reference=False, updates=1, silent=0.5), H100),
        "tower frozen": (replace(base, frozen=True), H100),
        **{f"{8 * n} GPUs": (base, Cluster(n, 8, "H100")) for n in (1, 2, 8)},
    }  # fmt: skip
    rows = []
    whole = step(*changes["the paper's"]).seconds
    for what, (run, cluster) in changes.items():
        found = step(run, cluster)
        phases = {name: found.phases[name].seconds if name in found.phases else 0.0 for name in ("host", "prefill", "sampling", "scoring")}
        update = sum(found.phases[name].seconds for name in ("update_forward", "update_backward"))
        hours = f"{found.seconds * cluster.gpus / 3600:.2f}"
        rows.append([what, *(f"{one:.1f}" for one in (*phases.values(), update)), f"{found.seconds:.0f}", f"{found.seconds / whole:.2f}x", hours])
    return table(["7B on 32 H100, seconds", "host", "prefill", "sampling", "scoring", "update", "step", "of the paper's", "GPU hours"], rows)


def held_out():
    """Errors on steps that no factor was fitted to."""
    rows, chosen = [], [point for point in points() if point.held_out]
    found = errors(chosen, calibrated())
    for i, point in enumerate(chosen):
        what = f"{point.size.parameters / 1e6:.0f} M, {point.name}, {point.questions} x {point.rollouts}, {point.episode.overview:.0f} + {point.episode.crop:.0f}"
        rows.append([what, f"{point.seconds['step']:.1f}", *(f"{found[name][i]:+.0%}" for name in (*STEP, "step"))])
    means = [f"{statistics.mean(map(abs, found[name])):.0%}" for name in (*STEP, "step")]
    rows.append(["**mean of absolute errors**", "", *means])
    return table(["held out: size, questions x rollouts, visual tokens of overview + crop", "measured, s", *(n.replace("_", " ") for n in STEP), "step"], rows)


def published():
    """Steps that others measured on GPUs."""
    rows = [
        [row.model, row.cluster, row.batch, f"{row.seconds:.0f}", f"{step(row.run, Cluster.read(row.cluster)).seconds:.0f}", f"{row.ratio:.1f}"]
        for row in PUBLISHED
    ]  # fmt: skip
    return table(["model", "GPUs", "rollouts of a pass", "published, s", "simulated, s", "ratio"], rows)


TABLES = {"needs": needs, "costs": costs, "growth": growth, "held_out": held_out, "published": published}


def page(text):
    """The page with its tables written anew."""
    for name, made in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        assert found and closed, f"docs/scaling.md has no place for the table {name!r}"
        text = before + start + made() + "\n" + end + after
    return text


def draw():
    """Predicted over measured steps, and the paper's step by phase on more and more GPUs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    factors = calibrated()
    for held, colour, label in ((False, "#7a7a7a", "fitted"), (True, "#c2571a", "held out")):
        chosen = [point for point in points() if point.held_out == held]
        left.scatter(
            [point.seconds[name] for point in chosen for name in STEP[:4]],
            [predicted(point, factors)[name] for point in chosen for name in STEP[:4]],
            marker="." if not held else "x", color=colour, label=f"phases, {label}",
        )  # fmt: skip
    limits = (0.2, 30)
    left.plot(limits, limits, color="black", lw=0.8)
    left.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="measured, s", ylabel="predicted, s")
    left.set_title("Phases of steps of small models, one CPU thread", fontsize=10)
    left.legend(frameon=False)
    clusters, base = [Cluster(n, 8, "H100") for n in (1, 2, 4, 8)], 0.0
    steps = [step(paper("Qwen2.5-VL-7B"), cluster) for cluster in clusters]
    bottoms = [0.0] * len(steps)
    for name in steps[0].phases:
        heights = [found.phases[name].seconds * cluster.gpus / 3600 for found, cluster in zip(steps, clusters)]
        if max(heights) > 0.005:
            right.bar([str(cluster.gpus) for cluster in clusters], heights, bottom=bottoms, label=name.replace("_", " "))
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights)]
    right.set(xlabel="H100 GPUs, eight of a machine", ylabel="GPU hours of a step (simulated)", ylim=(base, max(bottoms) * 1.55))
    right.set_title("The paper's step, Qwen2.5-VL-7B", fontsize=10)
    right.legend(frameon=False, fontsize=8, ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    draw()

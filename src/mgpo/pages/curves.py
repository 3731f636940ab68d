"""The learning curves of several runs: small multiples, one panel per metric that any of them logged.

    draw_curves({"MGPO": Path("runs/tiny_mgpo/metrics.jsonl")}, Path("curves.png"))

Thin lines are what was logged, thick ones a running mean. Shares are fractions (0..1) in the files, percent on the
axes.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from mgpo.jsonl import read_jsonl

Runs = dict[str, dict[str, dict[float, float]]]
"""Run -> metric -> {step: value}."""
CURVES = {  # metric key -> (title, whether it is a share)
    "reward": ("Reward", True),
    "grounding/valid_share": ("Valid boxes", True),
    "grounding/hit_rate": ("Boxes that hit", True),
    "grounding/hit_given_valid": ("Valid boxes that hit", True),
    "validation/accuracy": ("Validation: accuracy", True),
    "validation/overview_accuracy": ("Validation: overview questions", True),
    "validation/fine_print_accuracy": ("Validation: fine print", True),
    "validation/greedy_hit_given_valid": ("Validation: greedy hits, if valid", True),
    "validation/iou": ("Validation: IoU", True),
    "validation/crop_only": ("Validation: crop alone", True),
    "completions/mean_length": ("Length (tokens)", False),
    "entropy": ("Entropy (nats per token)", False),
    "frac_reward_zero_std": ("Groups without signal", True),
}


def draw_curves(curves: dict[str, Path], out_png: Path) -> list[str]:
    """Draw the learning curves of several runs as small multiples into `out_png`.

    Returns:
        Notes about files and lines that were skipped. With nothing to draw, no file is written.
    """
    runs, notes = read_curves(curves)
    if runs:
        out_png.parent.mkdir(parents=True, exist_ok=True)
        out_png.write_bytes(curves_png(runs, columns=3, dark=False))
    return notes


def read_curves(curves: dict[str, Path]) -> tuple[Runs, list[str]]:
    """The metrics that are drawn, and notes. After a resume a step can come twice: the later line counts."""
    runs: Runs = {}
    notes: list[str] = []
    for name, path in curves.items():
        rows, skipped = read_jsonl(Path(path))
        notes += [f"{name}: {note}" for note in skipped]
        rows = [r for r in rows if _finite(r.get("step"))]
        series = {key: {r["step"]: r[key] for r in rows if _finite(r.get(key))} for key in CURVES}
        if any(series.values()):
            runs[name] = {key: dict(sorted(points.items())) for key, points in series.items() if points}
        elif rows or not skipped:
            notes.append(f"{name}: {path} holds none of the metrics that are drawn.")
    return runs, notes


def curves_png(runs: Runs, columns: int, dark: bool) -> bytes:
    """PNG with one panel per metric that any run logged."""
    from matplotlib.figure import Figure  # slow to import, and without pyplot there is no global state and no window
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    keys = [key for key in CURVES if any(key in series for series in runs.values())]
    lines = -(-len(keys) // columns)
    ink, faint, ground = ("#dfe5e6", "#333c40", "#181d20") if dark else ("#2a3236", "#e2e6e7", "#ffffff")
    styles = _styles(list(runs), dark)
    figure = Figure(figsize=(3.5 * columns, 2.35 * lines + 0.45), dpi=150, facecolor=ground, layout="constrained")
    for axes, key in zip(figure.subplots(lines, columns, squeeze=False).flat, keys + [None] * columns):
        if key is None:
            axes.set_axis_off()
            continue
        for name, series in runs.items():
            if points := series.get(key):
                steps, values = list(points), list(points.values())
                axes.plot(steps, values, color=styles[name][0], alpha=0.22, linewidth=0.9)
                axes.plot(steps, _smooth(values), color=styles[name][0], linestyle=styles[name][1], linewidth=1.9)
        axes.set_title(CURVES[key][0], loc="left", fontsize=10.5, color=ink)
        if CURVES[key][1]:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_facecolor(ground)
        axes.grid(color=faint, linewidth=0.7)
        axes.tick_params(colors=ink, labelsize=8.5, length=0)
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.set_xlabel("step", fontsize=8.5, color=ink)
    handles = [Line2D([], [], color=c, linestyle=dash, linewidth=2.2, label=name) for name, (c, dash) in styles.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, labelcolor=ink, fontsize=9.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=ground)
    return buffer.getvalue()


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _smooth(values: list[float]) -> list[float]:
    """Centred running mean over about a tenth of the run (a trailing one would lag behind the raw values)."""
    half = len(values) // 20
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _styles(names: list[str], dark: bool) -> dict[str, tuple[str, str]]:
    """Colour by method, dashes for further runs of it: a method keeps its colour in every figure."""
    colours = {"mgpo": ("#0b6e94", "#5cc4ea"), "grpo": ("#c4501b", "#f3976a"), "sft": ("#4d7c2a", "#9ccb73")}
    methods = [next((method for method in colours if method in name.lower()), "") for name in names]
    return {
        name: (colours.get(method, ("#7a6a2f", "#d3be6c"))[dark], ("-", "--", ":", "-.")[methods[:i].count(method) % 4])
        for i, (name, method) in enumerate(zip(names, methods))
    }

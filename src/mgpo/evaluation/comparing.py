"""`mgpo compare A B`: compares two evaluations of the same questions by paired differences.

    mgpo compare runs/eval/base runs/eval/mine

The bootstrap resamples by image and text, not by row, so the four rotations of an HR-Bench question are drawn together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mgpo.evaluation.results import read_records

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """One task of two runs.

    Attributes:
        a, b: accuracies.
        difference: b - a, with its 95 % bootstrap interval.
        only_a, only_b: how many questions only one of them got right.
        p: p-value of McNemar's exact test.
    """

    task: str
    n: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    only_a: int
    only_b: int
    p: float


def compare(a: Path, b: Path, seed: int = 0) -> list[Comparison]:
    """Compare two results folders, or two results files, task by task.

    Raises:
        ValueError: they share no task, or a task's questions differ; the message names the first that does.
    """
    if a.is_file() and b.is_file():
        return [compare_records(a.stem, read_records(a), read_records(b), seed)]
    for folder in (a, b):
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is not a results folder. Name two folders, or two .jsonl files, that mgpo eval wrote."
            )
        if (folder / "metrics.jsonl").is_file():
            raise ValueError(f"{folder} is the folder of a training. Name two folders that mgpo eval wrote.")
    shared = [f.name for f in sorted(a.glob("*.jsonl")) if (b / f.name).is_file() and f.name != "judge.jsonl"]
    if not shared:
        raise ValueError(f"{a} and {b} have no task in common. Compare two evaluations of the same task.")
    return [compare_records(Path(n).stem, read_records(a / n), read_records(b / n), seed) for n in shared]


def compare_records(task: str, a: list[dict], b: list[dict], seed: int = 0) -> Comparison:
    """Compare two lists of records of the same questions, in the same order."""
    if len(a) != len(b) or not a:
        raise ValueError(
            f"{task}: the first run answered {len(a)} questions, the second {len(b)}. Both must have answered the same "
            "questions: run one of them again, with the --limit of the other."
        )
    for number, (one, other) in enumerate(zip(a, b), 1):
        for key in ("id", "question", "choices", "answer"):
            if one.get(key) != other.get(key):
                raise ValueError(
                    f"{task}: the runs differ in question {number} ({key}: {one.get(key)!r} in the first, {other.get(key)!r} "
                    "in the second). Both must have answered the same questions."
                )
    right = np.array([[bool(one["correct"]), bool(other["correct"])] for one, other in zip(a, b)])
    difference = right[:, 1].astype(float) - right[:, 0]
    only_a, only_b = int((difference < 0).sum()), int((difference > 0).sum())
    return Comparison(
        task, len(a), right[:, 0].mean(), right[:, 1].mean(), difference.mean(),
        bootstrap_interval(difference, [drawn_together(record) for record in a], seed), only_a, only_b,
        mcnemar(only_a, only_b),
    )  # fmt: skip


def bootstrap_interval(differences: np.ndarray, groups: list[Any], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling whole groups."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of = np.array([numbers[group] for group in groups])
    sums = np.bincount(of, differences, len(numbers))
    sizes = np.bincount(of, minlength=len(numbers))
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, len(numbers), len(numbers))
        means[i] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p: how often a fair coin splits the discordant questions at least as unevenly."""
    n, least = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def drawn_together(record: dict) -> tuple:
    """A key of records that are resampled together: the same question of the same images, its choices in any order."""
    images = record.get("images_digest") or tuple(record["image_size"])  # results of earlier versions know sizes alone
    return record["question"], images, tuple(sorted(record["choices"]))


def comparison_table(found: list[Comparison]) -> Table:
    """The comparisons as a table, in percent and percentage points."""
    table = Table(
        title="paired on the same questions, in percent", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    table.add_column("task", overflow="fold", min_width=8)
    for head in ("n", "A", "B", "B - A", "95 %", "only\nA", "only\nB", "McNemar\np"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found:
        low, high = (100 * x for x in row.interval)
        table.add_row(
            Text(row.task), str(row.n), f"{100 * row.a:.1f}", f"{100 * row.b:.1f}", f"{100 * row.difference:+.1f}",
            f"{low:+.1f} to {high:+.1f}", str(row.only_a), str(row.only_b), f"{row.p:.2g}",
        )  # fmt: skip
    return table

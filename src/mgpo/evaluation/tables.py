"""The tables that `mgpo eval` prints: a row per task in percent, then controls, categories and figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text


def result_tables(rows: list[dict[str, Any]], model: str) -> Group:
    """Tables in percent: a row per task, then the controls, then each task's categories and figures."""
    budgets = ", ".join(sorted({f"{row['min_pixels']:,} to {row['pixel_budget']:,}" for row in rows}))
    protocol = ", ".join(sorted({row["protocol"] for row in rows}))
    title = f"{model}, {protocol}, {budgets} pixels per image, in percent"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("task", overflow="fold", min_width=8)
    for head in (
        "n",
        "accuracy",
        "95 %",
        "chance",
        "same\nletter",
        "valid\nbox",
        "hit",
        "IoU",
        "crop\narea",
        "crop\nalone",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    parts = Table(
        "task", "part", *(Column(head, justify="right") for head in ("n", "accuracy")), box=SIMPLE_HEAD, pad_edge=False
    )
    for row in rows:
        shares = ("chance", "majority", "valid_box_rate", "hit_rate", "iou", "crop_area", "crop_only_accuracy")
        texts = [_percent(row["accuracy"]), _interval(row["ci95"]), *(_percent(row[share]) for share in shares)]
        table.add_row(Text(row["task"], "bold"), str(row["n"]), *texts)
        categories = row["by_category"] if len(row["by_category"]) > 1 else {}
        for name, share in (categories | row["figures"]).items():
            n = str(row["by_category_n"][name]) if name in categories else ""
            parts.add_row(Text(row["task"], "dim"), Text(name), n, _percent(share))
    table.caption, table.caption_justify = "\n".join(_remarks(rows)), "left"
    controlled = [controls_table(row["task"], row["controls"]) for row in rows if row.get("controls")]
    read = [lenient_table(rows)] if any("lenient_accuracy" in row for row in rows) else []
    return Group(table, *read, *controlled, *([parts] if parts.row_count else []))


def lenient_table(rows: list[dict[str, Any]]) -> Table:
    """The accuracy as rewarded beside that of answers which are read without a box around them, a row per task."""
    title = "the same answers, read strictly and leniently, in percent"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("task", overflow="fold", min_width=8)
    for head in ("n", "without \\boxed{}", "strictly", "95 %", "leniently", "95 %"):
        table.add_column(Text(head), justify="right", no_wrap=True)
    for row in rows:
        if "lenient_accuracy" in row:
            read = [
                _percent(row["accuracy"]),
                _interval(row["ci95"]),
                _percent(row["lenient_accuracy"]),
                _interval(row["lenient_ci95"]),
            ]
            table.add_row(Text(row["task"], "bold"), str(row["n"]), _percent(row["unboxed"] / row["n"]), *read)
    return table


def controls_table(task: str, controls: dict[str, Any]) -> Table:
    """How much the look contributed in a task: a row per control, in percent and percentage points."""
    title = f"{task}: the same questions with the look and under each control, in percent"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("control", no_wrap=True)
    for head in ("n", "look", "control", "look -\ncontrol", "95 %", "gained", "harmed", "p"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, found in controls.items():
        if found is None:  # it applied to no question, e.g. no gold boxes
            table.add_row(name, "0", *["-"] * 7)
            continue
        low, high = (100 * end for end in found["ci95"])
        table.add_row(
            name, str(found["n"]), _percent(found["with_look"]), _percent(found["accuracy"]),
            f"{100 * found['difference']:+.1f}", f"{low:+.0f} to {high:+.0f}", str(found["gained"]),
            str(found["harmed"]), f"{found['p']:.1g}",
        )  # fmt: skip
    return table


def _remarks(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What one should know to read the table: shares that are not of n, and answers that were cut off."""
    for row in rows:
        where = f"{row['task']}: " if len(rows) > 1 else ""
        if 0 < row["hit_n"] < row["n"]:
            yield f"{where}hit and IoU are of the {row['hit_n']} question{'s' * (row['hit_n'] > 1)} with gold boxes"
        if row["refused"]:
            refused = "questions were" if row["refused"] > 1 else "question was"
            yield f"{where}{row['refused']} {refused} refused by the server and counted as wrong; the lines of the results say why"
        for turns, option in (("answers", "--answer-tokens"), ("grounding", "--grounding-tokens")):
            if cut := row[f"cut_off_{turns}"]:
                which = "last" if turns == "answers" else "earlier"
                cut_off = "turns were" if cut > 1 else "turn was"
                yield f"{where}{cut} {which} {cut_off} cut off at their token limit, which {option} raises"


def _interval(ends: list[float]) -> str:
    return f"{100 * ends[0]:.0f}-{100 * ends[1]:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

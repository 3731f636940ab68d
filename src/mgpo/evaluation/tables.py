"""The tables that `mgpo eval` prints: a row per task in percent, then controls, categories and figures."""

from __future__ import annotations

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
    heads = ("accuracy", "95 %", "chance", "same\nletter", "valid\nbox", "hit", "IoU", "crop\narea", "crop\nalone")
    table.add_column("task", overflow="fold", min_width=8)
    lenient = any("lenient_accuracy" in row for row in rows)
    extra = ("read\nleniently", "no\nbox") if lenient else ()
    shown = slice(None, -2) if lenient else slice(None)  # what fits into 80 columns; summary.json has all
    for head in ("n", *heads[:2], *extra, *heads[2:][shown]):
        table.add_column(head, justify="right", no_wrap=True)
    parts = Table("task", "part", Column("accuracy", justify="right"), box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        low, high = row["ci95"]
        cells = [row["accuracy"], None, row["chance"], row["majority"], row["valid_box_rate"], row["hit_rate"], row["iou"],
                 row["crop_area"], row["crop_only_accuracy"]]  # fmt: skip
        texts = [_percent(cell) for cell in cells]
        texts[1] = f"{100 * low:.0f}-{100 * high:.0f}"
        texts = texts[shown]
        if lenient:
            texts[2:2] = [_percent(row.get("lenient_accuracy")), str(row.get("unboxed", "-"))]
        table.add_row(Text(row["task"], "bold"), str(row["n"]), *texts)
        categories = row["by_category"] if len(row["by_category"]) > 1 else {}
        for name, share in (categories | row["figures"]).items():
            parts.add_row(Text(row["task"], "dim"), Text(name), _percent(share))
    table.caption = _of_how_many(rows)
    table.caption_justify = "left"
    controlled = [controls_table(row["task"], row["controls"]) for row in rows if row.get("controls")]
    return Group(table, *controlled, *([parts] if parts.row_count else []))


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


def _of_how_many(rows: list[dict[str, Any]]) -> str | None:
    """Of how many questions hits and IoU are shares, where that is not n."""
    fewer = [row for row in rows if 0 < row["hit_n"] < row["n"]]
    told = ", ".join(f"{row['hit_n']} of {row['n']}" + (f" in {row['task']}" if len(rows) > 1 else "") for row in fewer)
    return f"hit, IoU: of the questions with gold boxes ({told})" if fewer else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

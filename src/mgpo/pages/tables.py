"""Result rows as tables: seeds and splits together, in a terminal or on a page.

    print_results(rows, console)
    print_controls(rows, console)

Rates and accuracies are fractions (0..1) in the rows and percent where they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

METHODS = ("base", "sft", "grpo", "mgpo")
"""Rows of these names come in this order; all others follow in the order in which they are given."""
OOD_MEAN = "OOD mean"
N_OF = {"accuracy": "n", "hit_rate": "hit_n", "iou": "hit_n"}
"""Which entry of a row says of how many questions a metric is the share; of others no row says it."""


@dataclass(frozen=True)
class Cell:
    """A rate (fraction) of one method on one split. `interval` (95%) with one seed, `std` over seeds with several."""

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    seeds: int


@dataclass(frozen=True)
class Row:
    """One method at one pixel budget; `cells` by column, None where it was not measured."""

    method: str
    pixel_budget: str
    cells: dict[str, Cell | None]

    @property
    def ood_mean(self) -> float | None:
        """Mean accuracy over the OOD splits; None if none was measured."""
        cell = self.cells.get(OOD_MEAN)
        return cell.mean if cell else None


@dataclass(frozen=True)
class ControlRow:
    """A method's accuracy on one split with its look and under a control, and what the look gained and harmed."""

    method: str
    split: str
    control: str
    accuracy: Cell
    with_look: Cell
    difference: Cell
    n: int
    gained: int
    harmed: int


@dataclass(frozen=True)
class ResultsTable:
    """Rows in the order of METHODS; `columns` are the splits, the OOD ones last, then their mean."""

    columns: list[str]
    rows: list[Row]
    chance: dict[str, float]
    sizes: dict[str, list[int]]

    @property
    def budgets(self) -> list[str]:
        """The pixel budgets of the rows, each once."""
        return list(dict.fromkeys(row.pixel_budget for row in self.rows))

    @property
    def seeds(self) -> list[int]:
        """How many seeds lie behind the cells: [1], [3] or [1, 3]."""
        return sorted({cell.seeds for row in self.rows for cell in row.cells.values() if cell})

    def is_best(self, row: Row, column: str) -> bool:
        """Whether no row beats this one as printed, to 0.1 points. One row alone is no contest."""
        shown = [round(cell.mean, 3) for r in self.rows if (cell := r.cells.get(column))]
        cell = row.cells.get(column)
        return cell is not None and len(shown) > 1 and round(cell.mean, 3) == max(shown)


def results_table(results: list[dict], metric: str = "accuracy") -> ResultsTable:
    """Aggregate result rows: mean over seeds per method, pixel budget and split, and the mean over the `ood_` splits.

    Different pixel budgets are different rows. The OOD mean counts the seeds that ran on every OOD split, and is absent
    without one: a mean over fewer splits would not be comparable.
    """
    splits = sorted(dict.fromkeys(r["split"] for r in results), key=lambda split: split.startswith("ood_"))
    ood = [split for split in splits if split.startswith("ood_")]
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for r in results:
        least, most = r.get("min_pixels"), r.get("pixel_budget")
        text = "not stated" if most is None else f"{most:,} px" if isinstance(most, int) else str(most)
        text = f"{least:,} to {text}" if isinstance(least, int) and most is not None else text
        groups.setdefault((r["method"], text), {split: [] for split in splits})[r["split"]].append(r)
    rows = []
    for (method, budget), measured in groups.items():
        seeds = {split: _by_seed(measured[split], metric) for split in splits}
        intervals = {split: measured[split][0].get("ci95") for split in splits if len(measured[split]) == 1}
        cells = {split: _cell(seeds[split], intervals.get(split) if metric == "accuracy" else None) for split in splits}
        if ood:
            whole = set.intersection(*(set(seeds[split]) for split in ood))
            cells[OOD_MEAN] = _cell({seed: fmean(seeds[split][seed] for split in ood) for seed in whole})
        if any(cells.values()):
            rows.append(Row(method, budget, cells))
    rows.sort(key=lambda row: METHODS.index(row.method) if row.method in METHODS else len(METHODS))
    chance = {r["split"]: r["chance"] for r in results if r.get("chance") is not None}
    if ood and all(split in chance for split in ood):
        chance[OOD_MEAN] = fmean(chance[split] for split in ood)
    n = N_OF.get(metric, "")
    sizes = {split: sorted({r[n] for r in results if r["split"] == split and r.get(n)}) for split in splits}
    return ResultsTable([*splits, OOD_MEAN] if ood else splits, rows, chance, sizes)


def print_results(results: list[dict], console: Any = None) -> None:
    """Print the accuracy table to the terminal (a `rich` console)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = results_table(results)
    several = len(table.budgets) > 1
    view = Table("method", title="accuracy in percent" + ("" if several else f", {''.join(table.budgets)} per image"))
    for column in table.columns:
        view.add_column(Text(column), justify="right")
    for row in table.rows:
        texts = [Text(f"{row.method}, {row.pixel_budget}" if several else row.method)]
        for column in table.columns:
            cell = row.cells[column]
            spread = f" ± {percent(cell.std)}" if cell and cell.std is not None else ""
            style = "bold" if table.is_best(row, column) else ""
            texts.append(Text(percent(cell.mean if cell else None) + spread, style=style))
        view.add_row(*texts)
    view.add_section()
    view.add_row("chance", *(percent(table.chance.get(c)) for c in table.columns), style="dim")
    (console or Console()).print(view)


def control_rows(results: list[dict]) -> list[ControlRow]:
    """Each method's accuracy under each control, over all seeds, from the rows that have a `controls` entry.

    A control that applied to no question of any seed is left out; this raises nothing.
    """
    found: dict[tuple[str, str, str], list[tuple[Any, dict]]] = {}
    for r in results:
        for name, beside in (r.get("controls") or {}).items():
            if beside is not None:
                found.setdefault((r["method"], r["split"], name), []).append((r.get("seed"), beside))
    rows = []
    for (method, split, name), measured in found.items():
        cells = {
            key: _cell({seed: beside[key] for seed, beside in measured})
            for key in ("accuracy", "with_look", "difference")
        }
        counts = {key: sum(beside[key] for _, beside in measured) for key in ("n", "gained", "harmed")}
        rows.append(ControlRow(method, split, name, **cells, **counts))
    return rows


def print_controls(results: list[dict], console: Any = None) -> None:
    """Print the controls to the terminal (a `rich` console), if there are any."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heads = ("method", "split", "control", "n", "look", "control", "difference", "gained", "harmed")
    view = Table(*heads, title="the same questions with the look and under each control, in percent")
    for row in control_rows(results):
        shares = [spread(cell) for cell in (row.with_look, row.accuracy, row.difference)]
        texts = [row.method, row.split, row.control, str(row.n), *shares, str(row.gained), str(row.harmed)]
        view.add_row(*(Text(text) for text in texts))
    if view.row_count:
        (console or Console()).print(view)


def _by_seed(rows: list[dict], metric: str) -> dict[Any, float]:
    """Seed -> value; a seed that was measured twice counts once, with its mean."""
    values: dict[Any, list[float]] = {}
    for r in rows:
        if r.get(metric) is not None:
            values.setdefault(r.get("seed"), []).append(r[metric])
    return {seed: fmean(of_seed) for seed, of_seed in values.items()}


def _cell(by_seed: dict[Any, float], interval: list[float] | None = None) -> Cell | None:
    values = list(by_seed.values())
    if not values:
        return None
    if len(values) == 1:
        return Cell(values[0], None, (interval[0], interval[1]) if interval else None, 1)
    return Cell(fmean(values), stdev(values), None, len(values))


def spread(cell: Cell) -> str:
    """Percent, with the standard deviation where there are several seeds."""
    return percent(cell.mean) + (f" ± {percent(cell.std)}" if cell.std is not None else "")


def percent(fraction: float | None) -> str:
    """One digit after the point; a dash for what was not measured."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"

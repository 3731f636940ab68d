"""One self-contained HTML page about a run: what was run, the result table, learning curves, a gallery of trajectories.

    write_report(Path("report/index.html"), "MGPO, tiny", about, results, curves, galleries)

The page needs no network and no file beside it: images and figures are embedded, and its Content-Security-Policy
forbids everything else. Every text comes from data or from a model, so the template escapes all of them. A report is
written while training goes on and after crashes: a missing file, a half-written line or an odd trajectory is skipped
and *noted on the page*, never an exception.

Rates and accuracies are fractions (0..1) in the inputs and percent on the page; boxes are pixels of the original image.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from PIL import Image

from mgpo.curves import curves_png, draw_curves, read_curves
from mgpo.files import write_whole
from mgpo.grounding import BoxStatus, holds_centre
from mgpo.imaging import ImageError, open_image
from mgpo.jsonl import read_jsonl

METHODS = ("base", "sft", "grpo", "mgpo")
OOD_MEAN = "OOD mean"
RATES = {
    "valid_box_rate": ("Valid box", "share of questions whose first box can be cropped"),
    "hit_rate": ("Hit", "share of questions whose box holds the centre of a gold box"),
    "crop_only_accuracy": ("Crop only", "accuracy when the model sees the crop alone"),
}
SCREENS = {"wide_light": (3, False), "wide_dark": (3, True), "narrow_light": (1, False), "narrow_dark": (1, True)}
"""The learning curves are embedded once for each kind of screen: columns, dark."""
THUMB_SIDE_PX = 512
IMAGE_BYTES = 3_300_000
"""What all embedded images may weigh together: base64 adds a third, and the page should stay below 5 MB."""


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
        cell = self.cells.get(OOD_MEAN)
        return cell.mean if cell else None


@dataclass(frozen=True)
class ResultsTable:
    """Rows in the order of METHODS; `columns` are the splits, the OOD ones last, then their mean."""

    columns: list[str]
    rows: list[Row]
    chance: dict[str, float]
    sizes: dict[str, list[int]]

    @property
    def budgets(self) -> list[str]:
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
        budget = r.get("pixel_budget")
        text = "not stated" if budget is None else f"{budget:,} px" if isinstance(budget, int) else str(budget)
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
    sizes = {split: sorted({r["n"] for r in results if r["split"] == split and r.get("n")}) for split in splits}
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
            spread = f" ± {_percent(cell.std)}" if cell and cell.std is not None else ""
            style = "bold" if table.is_best(row, column) else ""
            texts.append(Text(_percent(cell.mean if cell else None) + spread, style=style))
        view.add_row(*texts)
    view.add_section()
    view.add_row("chance", *(_percent(table.chance.get(c)) for c in table.columns), style="dim")
    (console or Console()).print(view)


def write_report(
    out: Path,
    title: str,
    about: dict[str, str],
    results: list[dict],
    curves: dict[str, Path],
    galleries: list[tuple[str, Path]],
    max_cards: int = 24,
) -> Path:
    """Write the page to `out` (an .html file) and the curves to `figures/curves.png` beside it; return `out`.

    Args:
        title: heading of the page.
        about: what was run, shown as a list of terms.
        results: rows with method, split, n, accuracy, ci95, valid_box_rate, hit_rate, crop_only_accuracy, chance,
            pixel_budget, seed.
        curves: name of a run -> its metrics.jsonl.
        galleries: (caption, trajectories .jsonl), the earliest first; equal ids are shown side by side.
        max_cards: questions shown at most.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mgpo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = _percent
    out.parent.mkdir(parents=True, exist_ok=True)
    curve_notes = draw_curves(curves, out.parent / "figures" / "curves.png")
    runs, _ = read_curves(curves)
    cards, found, gallery_notes = _cards(galleries, max_cards)
    page = environment.get_template("report.html.j2").render(
        title=title,
        about=about,
        table=results_table(results),
        rates=[(*words, rate) for key, words in RATES.items() if (rate := results_table(results, key)).rows],
        runs=list(runs),
        figures={kind: _data_uri(curves_png(runs, *how), "png") for kind, how in SCREENS.items()} if runs else {},
        curve_notes=curve_notes,
        cards=cards,
        found=found,
        gallery_notes=gallery_notes,
    )
    write_whole(out, page)
    return out


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


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _cards(galleries: list[tuple[str, Path]], max_cards: int) -> tuple[list[list[dict]], int, list[str]]:
    """Trajectories grouped by question, those in most galleries first; how many questions there are; notes."""
    notes: list[str] = []
    cards: dict[str, list[dict]] = {}
    for caption, path in galleries:
        rows, skipped = read_jsonl(Path(path))
        notes += [f"{caption}: {note}" for note in skipped]
        for row in rows:
            try:
                panel = _panel(row, caption, Path(path).parent)
                cards.setdefault(str(row["id"]), []).append(panel)
            except (KeyError, TypeError, ValueError) as error:
                notes.append(f"{caption}: skipped trajectory {row.get('id')!r}: {type(error).__name__} {error}.")
    chosen = sorted(cards.values(), key=lambda card: -len({panel["caption"] for panel in card}))[:max_cards]
    _embed_images([panel for card in chosen for panel in card], notes)
    return chosen, len(cards), notes


def _panel(row: dict, caption: str, folder: Path) -> dict:
    """One trajectory as the template needs it: checked, every number a number (they go into style attributes)."""
    turns = [
        {
            "text": str(turn["text"]),
            "status": turn.get("status"),
            "box": _box(turn.get("box_px_original")),
            "shown": turn.get("shown"),
            "truncated": bool(turn.get("truncated")),
        }
        for turn in row["turns"]
    ]
    gold = [box for numbers in row.get("gold_boxes") or [] if (box := _box(numbers))]
    width, height = (int(side) for side in row["image_size"])
    if min(width, height) < 1:
        raise ValueError(f"image_size {width}x{height}")
    first = turns[0] if turns else {"status": None, "box": None}
    given = {key: row.get(key) for key in ("step", "answer", "given", "end", "overview")}
    return given | {
        "caption": caption,
        "folder": folder,
        "question": str(row["question"]),
        "choices": [str(choice) for choice in row.get("choices") or []],
        "category": str(row.get("category") or "none"),
        "correct": bool(row["correct"]),
        "size": (width, height),
        "gold": gold,
        "turns": turns,
        "status": first["status"],
        "valid": first["status"] == BoxStatus.VALID,
        "hit": any(holds_centre(first["box"], box) for box in gold) if first["box"] and gold else None,
    }


def _box(numbers: Any) -> tuple[int, ...] | None:
    if numbers is None:
        return None
    x1, y1, x2, y2 = (round(number) for number in numbers)
    return x1, y1, x2, y2


def _embed_images(panels: list[dict], notes: list[str]) -> None:
    """Replace image paths by data URIs (None where there is no image), all together within IMAGE_BYTES."""
    places = [(panel["folder"], panel, "overview") for panel in panels]
    places += [(panel["folder"], turn, "shown") for panel in panels for turn in panel["turns"]]
    places = [place for place in places if place[1][place[2]]]
    for folder, holder, key in places:
        path = (folder / str(holder[key])).resolve()
        holder[key] = None
        try:
            if not path.is_relative_to(folder.resolve()):  # a trajectory file must not pull in other files of this disk
                raise ImageError(f"Image {path} lies outside {folder}.")
            holder[key] = _data_uri(_thumbnail(open_image(path), IMAGE_BYTES // len(places)), "jpeg")
        except ImageError as error:
            notes.append(str(error))


def _thumbnail(image: Image.Image, most_bytes: int) -> bytes:
    """JPEG of at most THUMB_SIDE_PX, in the best quality that stays within `most_bytes`, if any does."""
    image.thumbnail((THUMB_SIDE_PX, THUMB_SIDE_PX))
    for quality in (88, 75, 60, 45, 30):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= most_bytes:
            break
    return buffer.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

"""One self-contained HTML page about a run: what was run, the result table, learning curves, a gallery of trajectories.

    write_report(Path("report/index.html"), "MGPO, tiny", about, results, curves, galleries)

The page needs no network and no file beside it: images and figures are embedded, and its Content-Security-Policy
forbids everything else. Every text comes from data or from a model, so the template escapes all of them. A report is
written while training goes on and after crashes: a missing file, a half-written line or an odd trajectory is skipped
and *noted on the page*, never an exception.

Rates and accuracies are fractions (0..1) in the inputs and percent on the page; boxes are pixels of the original image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgpo.files import write_whole
from mgpo.images.imaging import ImageError, open_image
from mgpo.jsonl import read_jsonl
from mgpo.method.boxes import BoxStatus, holds_centre
from mgpo.pages.curves import curves_png, draw_curves, read_curves
from mgpo.pages.html import environment
from mgpo.pages.tables import control_rows, results_table
from mgpo.pages.thumbnails import IMAGE_BYTES, data_uri, thumbnail

RATES = {
    "valid_box_rate": ("Valid box", "share of questions whose first box can be cropped"),
    "hit_rate": ("Hit", "share of questions with gold boxes whose box holds the centre of one"),
    "hit_given_valid": ("Hit, if valid", "the same, among the valid boxes only"),
    "greedy_hit_given_valid": ("Hit, if valid, greedy", "the same, when the first turn is decoded greedily"),
    "iou": ("IoU", "mean overlap of the box with a gold box, 0 without a valid box"),
    "overview_accuracy": ("Overview questions", "accuracy on questions that can be answered from the overview"),
    "fine_print_accuracy": ("Fine print", "accuracy on questions that can be answered only from a crop"),
    "crop_only_accuracy": ("Crop only", "accuracy when the model sees only the crop"),
}
SCREENS = {"wide_light": (3, False), "wide_dark": (3, True), "narrow_light": (1, False), "narrow_dark": (1, True)}
"""The learning curves are embedded once for each kind of screen: columns, dark."""


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
            pixel_budget, seed, and optionally controls (`mgpo.evaluation.controls.controls_beside`).
        curves: name of a run -> its metrics.jsonl.
        galleries: (caption, trajectories .jsonl), the earliest first; equal ids are shown side by side.
        max_cards: questions shown at most.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    curve_notes = draw_curves(curves, out.parent / "figures" / "curves.png")
    runs, _ = read_curves(curves)
    cards, found, gallery_notes = _cards(galleries, max_cards)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            about=about,
            table=results_table(results),
            controls=control_rows(results),
            rates=[(*words, rate) for key, words in RATES.items() if (rate := results_table(results, key)).rows],
            runs=list(runs),
            figures={kind: data_uri(curves_png(runs, *how), "png") for kind, how in SCREENS.items()} if runs else {},
            curve_notes=curve_notes,
            cards=cards,
            found=found,
            gallery_notes=gallery_notes,
        )
    )
    write_whole(out, page)
    return out


def _cards(galleries: list[tuple[str, Path]], max_cards: int) -> tuple[list[list[dict]], int, list[str]]:
    """Trajectories grouped by question, those in most galleries first; how many questions there are; notes."""
    notes: list[str] = []
    cards: dict[tuple, list[dict]] = {}  # ids may be missing, and equal in several data sets
    for caption, path in galleries:
        rows, skipped = read_jsonl(Path(path))
        notes += [f"{caption}: {note}" for note in skipped]
        for row in rows:
            try:
                panel = _panel(row, caption, Path(path).parent)
                cards.setdefault(
                    (str(row["id"]), panel["question"], tuple(panel["choices"]), panel["size"]), []
                ).append(panel)
            except (KeyError, TypeError, ValueError) as error:
                notes.append(f"{caption}: skipped trajectory {row.get('id')!r}: {type(error).__name__} {error}.")
    chosen = sorted(cards.values(), key=lambda card: -len({panel["caption"] for panel in card}))[:max_cards]
    _embed_images([panel for card in chosen for panel in card], notes)
    return chosen, len(cards), notes


def _panel(row: dict, caption: str, folder: Path) -> dict:
    """One trajectory as the template needs it: checked, every number a number (they go into style attributes).

    Of several images, the one that turn 1 looked at is shown, with the boxes in it.
    """
    looked_at = int(row.get("looked_at") or 1)
    turns = [
        {
            "text": str(turn["text"]),
            "status": turn.get("status"),
            "box": _box(turn.get("box_px_original"))
            if turn.get("image", 1) == looked_at or "looked_at" not in row
            else None,
            "shown": turn.get("shown"),
            "truncated": bool(turn.get("truncated")),
        }
        for turn in row["turns"]
    ]
    gold = [box for numbers in row.get("gold_boxes") or [] if (box := _box(numbers))]
    named_gold = bool(gold)
    if row.get("gold_image", 1) != looked_at:
        gold = []
    sizes = row.get("image_sizes") or [row["image_size"]]
    if not 1 <= looked_at <= len(sizes):
        raise ValueError(f"looked_at is {looked_at}, but there are {len(sizes)} images")
    width, height = (int(side) for side in sizes[looked_at - 1])
    if min(width, height) < 1:
        raise ValueError(f"image_size is {width}x{height}, but must be at least 1x1")
    first = turns[0] if turns else {"status": None, "box": None}
    given = {key: row.get(key) for key in ("step", "answer", "given", "end", "overview")}
    return given | {
        "caption": caption,
        "folder": folder,
        "question": str(row["question"]),
        "choices": [str(choice) for choice in row.get("choices") or []],
        "category": str(row.get("category") or ""),
        "correct": bool(row["correct"]),
        "size": (width, height),
        "number": f"Image {looked_at} of {len(sizes)}" if len(sizes) > 1 else "Overview",
        "gold": gold,
        "turns": turns,
        "status": first["status"],
        "valid": first["status"] == BoxStatus.VALID,
        "hit": any(holds_centre(first["box"], box) for box in gold) if first["box"] and named_gold else None,
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
            holder[key] = data_uri(thumbnail(open_image(path), IMAGE_BYTES // len(places)), "jpeg")
        except ImageError as error:
            notes.append(str(error))

"""`mgpo data check`: reads every row and decodes every image once, to find problems before a long run.

Example: `mgpo data check my_data.jsonl`. Which rows cannot be used is decided by what training asks as well, on the same rows:
`mgpo.data.loading.read_all` and `mgpo.data.admitting.Admission`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgpo.data.admitting import Admission, examined, in_order
from mgpo.data.beyond import beyond, beyond_note
from mgpo.data.loading import Loaded
from mgpo.data.reading import BadRow, by_reason
from mgpo.files import write_whole
from mgpo.images.identity import images_digest
from mgpo.images.imaging import PixelBudget
from mgpo.method.question import Question

ALIKE_BITS = 12
"""Images whose difference hashes differ in at most so many of 256 bits are taken for copies of each other."""


@dataclass
class Found:
    """What a set of questions contains.

    Attributes:
        bad: rows that training would refuse, in order.
        sizes: of all images, in pixels; a question may show several.
        files: where each image was seen first, by the digest of its content.
        looks: for each of those, by the same key: its place, width over height, and difference hash of 256 bits.
        beyond: rows with a gold box that reaches beyond its image: the place, and how far.
        repeats: notes on rows with equal choices and on ids of several rows, which training prints as well.
    """

    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    categories: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    choices: Counter[int] = field(default_factory=Counter)
    shown: Counter[int] = field(default_factory=Counter)
    with_boxes: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    question_lengths: list[int] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    looks: dict[str, tuple[str, float, np.ndarray]] = field(default_factory=dict)
    beyond: list[tuple[str, str]] = field(default_factory=list)
    repeats: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What is worth knowing, but no reason to refuse a row."""
        return [*self.repeats, *beyond_note([f"{where}: {far}" for where, far in self.beyond])]


@dataclass(frozen=True)
class _Row:
    """What is counted of a row: its question, and of each image its size in pixels, the digest of its file and its hash."""

    question: Question
    images: list[tuple[tuple[int, int], str, np.ndarray]]


def check(loaded: Loaded, admission: Admission | None = None) -> Found:
    """Decode the images of all rows. No row raises an error: unusable ones are listed in `bad`.

    Args:
        loaded: as of `mgpo.data.loading.read_all`.
        admission: what a row must pass, and it must decode images; all but what needs a policy if None.
    """
    admission = admission or Admission.without_policy()

    def examine(row: dict[str, Any]) -> _Row:
        question, images = Question.from_row(row), []
        for image, shown in zip(question.images, admission(row)):
            if shown.overview is None:
                raise RuntimeError("A check needs an Admission that decodes images.")
            images.append((shown.size, images_digest([image]), difference_hash(shown.overview)))
        return _Row(question, images)

    found = Found(repeats=list(loaded.notes))
    refused = []
    for number, row in examined(loaded, range(len(loaded.places)), examine):
        if isinstance(row, BadRow):
            refused.append(row)
        else:
            _count(found, row, loaded.places[number])
    found.bad = in_order([*loaded.bad, *refused])
    return found


def _count(found: Found, row: _Row, where: str) -> None:
    question, seen = row.question, row.images
    found.rows += 1
    found.shown[len(seen)] += 1
    for number, (size, content, look) in enumerate(seen, 1):
        found.sizes.append(size)
        if content not in found.files:
            found.files[content] = f"{where}, image {number}" if len(seen) > 1 else where
            found.looks[content] = (found.files[content], size[0] / size[1], look)
    if outside := beyond(question, [size for size, _, _ in seen]):
        found.beyond.append((where, outside))
    found.categories[question.category or "without one"] += 1
    found.choices[len(question.choices)] += 1
    found.answers[question.answer if question.choices else "open"] += 1
    found.with_boxes += bool(question.gold_boxes_px_original)
    found.question_lengths.append(len(question.question))


def difference_hash(image: Image.Image, side: int = 16) -> np.ndarray:
    """Which of two neighbouring areas is brighter, all over the image: a re-saved copy differs in few of these bits.

    Returns:
        side x side bits, packed into bytes.
    """
    grey = np.asarray(image.convert("L").resize((side + 1, side), Image.Resampling.BOX), np.int16)
    return np.packbits(grey[:, :-1] > grey[:, 1:])


def shared_images(one: Found, other: Found) -> list[tuple[str, str, str]]:
    """Images that both sets hold: the place in the one, the place in the other, and how they match."""
    same = [
        (where, other.files[key], "they are the same file") for key, where in one.files.items() if key in other.files
    ]
    theirs = [look for look in other.looks.values() if _tells(look[2])]
    if not theirs:
        return same
    aspects, bits = np.array([aspect for _, aspect, _ in theirs]), np.stack([look for *_, look in theirs])
    for key, (where, aspect, look) in one.looks.items():
        if key in other.files or not _tells(look):
            continue
        apart = np.bitwise_count(bits ^ look).sum(1) + 256 * (abs(aspects / aspect - 1) > 0.02)
        nearest = int(apart.argmin())
        if apart[nearest] <= ALIKE_BITS:
            same.append((where, theirs[nearest][0], "they look the same"))
    return same


def _tells(look: np.ndarray) -> bool:
    """Whether a hash can identify an image; those of flat images are all alike."""
    return ALIKE_BITS < int(np.bitwise_count(look).sum()) < 256 - ALIKE_BITS


def show(found: Found, name: str, console: Console, most: int = 20) -> None:
    """Print counts, sizes, the rows that cannot be used, and notes on the others."""
    table = Table("", "", title=Text(name), show_header=False)
    total = found.rows + len(found.bad)
    table.add_row("rows", f"{total}, of which {len(found.bad)} cannot be used")
    if found.rows:
        pixels = sorted(width * height / 1e6 for width, height in found.sizes)
        letters = ", ".join(f"{answer} {count}" for answer, count in sorted(found.answers.items()))
        table.add_row("answers", Text(letters))
        table.add_row("choices", ", ".join(f"{count} with {n or 'none'}" for n, count in sorted(found.choices.items())))
        if set(found.categories) != {"without one"}:
            table.add_row("categories", Text(", ".join(f"{c} {n}" for c, n in found.categories.most_common(12))))
        table.add_row("gold boxes", f"in {found.with_boxes} rows")
        table.add_row("images", f"{len(found.files)} distinct")
        if len(found.shown) > 1 or 1 not in found.shown:
            several = ", ".join(f"{count} questions show {n}" for n, count in sorted(found.shown.items()))
            table.add_row("images shown", f"{several}; set max_images: {max(found.shown)}")
        middle = pixels[len(pixels) // 2]
        table.add_row("megapixels", f"{pixels[0]:.2f} to {pixels[-1]:.2f}, median {middle:.2f}")
        table.add_row("question", f"up to {max(found.question_lengths)} characters")
    console.print(table)
    for line in by_reason(found.bad, most):
        console.print(Text(f"  {line}", "red"), soft_wrap=True)
    if not total:
        console.print(Text(f"{name} is empty: it has no rows.", "red"), soft_wrap=True)
    for note in found.notes():
        console.print(Text(note), soft_wrap=True)


def write_findings(found: Found, file: Path) -> int:
    """Write a JSON line for each row that cannot be used, and for each with a gold box beyond its image: place, why, whether it is used.

    Returns:
        The number of lines.
    """
    lines = [{"where": bad.where, "why": bad.reason, "used": False} for bad in found.bad]
    lines += [{"where": where, "why": f"its gold box {far}", "used": True} for where, far in found.beyond]
    write_whole(file, "".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def draw_sizes(found: Found, file: Path) -> None:
    """Draw a histogram of the images' megapixels, and their widths against their heights."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.hist([width * height / 1e6 for width, height in found.sizes], bins=30, color="#3b6fb6")
    left.set(xlabel="megapixels", ylabel="images")
    budget = PixelBudget().max_pixels / 1e6
    left.axvline(budget, color="#c0392b", linestyle="--", label=f"default pixel budget, {budget:.1f}")
    left.legend(frameon=False)
    right.scatter(*zip(*found.sizes), s=12, alpha=0.4, color="#3b6fb6")
    right.set(xlabel="width, px", ylabel="height, px", xlim=(0, None), ylim=(0, None))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)

"""`mgpo data look`: rows of a dataset as one HTML page, with their pictures, gold boxes, questions, choices and answers.

    write_data_page(read_all("my_data.jsonl"), "my_data.jsonl, train", Path("data.html"))

The page needs no network and no file beside it. It holds thumbnails of a bounded size, so that a page of 33-megapixel
photographs is as small as any other, and what each gold box holds is cut from the original. All texts are data: the template escapes them,
long ones are shortened, and the page's Content-Security-Policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mgpo.data.beyond import beyond
from mgpo.data.loading import Loaded
from mgpo.data.reading import BadRow
from mgpo.data.repeats import repeated
from mgpo.data.sources import shortened
from mgpo.files import write_whole
from mgpo.images.imaging import PixelBudget, open_image, open_region
from mgpo.images.photograph import Photograph
from mgpo.method.question import LETTERS, Box, Question
from mgpo.pages.html import environment
from mgpo.pages.thumbnails import IMAGE_BYTES, data_uri, thumbnail

MOST_ROWS = 500
MOST_BOXES = 100
"""Gold boxes per row that are drawn."""
MOST_INSIDE = 2
"""Gold boxes per row whose insides are shown as well."""
OVERVIEW = PixelBudget(min_pixels=1, max_pixels=512 * 512, factor=1)
"""Size at which pictures are decoded: it keeps their shape, and enlarges none."""
INSIDE_SIDE_PX = 256
PICTURE_BYTES = 60_000
"""Most bytes of a picture where there are few."""
TEXT, CHOICE, LISTED = 2_000, 300, 200
"""Most characters of a question, of a choice, and most bad rows that are listed."""


def write_data_page(
    loaded: Loaded, name: str, out: Path, most: int = 48, rows: Sequence[int] = (), bar: Callable[[Any], Any] = iter
) -> int:
    """Write the page.

    Args:
        loaded: the dataset, as of `mgpo.data.loading.read_all`.
        name: what the page calls it.
        out: where to write it.
        most: how many rows are shown at most, spread evenly over the dataset.
        rows: numbers of rows as in messages about them; if given, these are shown.
        bar: shows progress while the rows are taken.

    Returns:
        How many rows are shown.

    Raises:
        ValueError: `most` is out of range, or no row has one of these numbers.
    """
    if not 1 <= most <= MOST_ROWS:
        raise ValueError(f"--n {most}: a page shows 1 to {MOST_ROWS} rows. Name single ones with --row.")
    numbers = _named(loaded, rows) if rows else _spread(len(loaded.places), most)
    questions = [Question.from_row(loaded.questions[number]) for number in numbers]
    pictures = sum(len(q.images) + min(MOST_INSIDE, len(q.gold_boxes_px_original)) for q in questions)
    share = min(PICTURE_BYTES, IMAGE_BYTES // max(1, pictures))
    cards = [_card(question, loaded.places[number], share) for question, number in bar(list(zip(questions, numbers)))]
    made = environment()
    script = made.get_template("data.js.j2").render()
    page = made.get_template("data.html.j2").render(
        title=shortened(name),
        about=_about(loaded, cards),
        cards=cards,
        found=len(loaded.places),
        bad=[(_name(row.where), shortened(row.reason, TEXT)) for row in loaded.bad[:LISTED]],
        more_bad=max(0, len(loaded.bad) - LISTED),
        notes=[shortened(note, TEXT) for note in loaded.notes],
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_whole(out, _printable(page))
    return len(cards)


def _named(loaded: Loaded, rows: Sequence[int]) -> list[int]:
    """The places of rows with these numbers; a number that several files have names a row of each."""
    found = [at for at, where in enumerate(loaded.places) if _number(where) in rows]
    refused = {_number(bad.where): bad for bad in loaded.bad}
    for row in rows:
        if row not in map(_number, loaded.places):
            why: BadRow | str = refused.get(row, f"there is no row {row}")
            raise ValueError(f"--row {row} cannot be shown: {why}.")
    return found


def _number(where: str) -> int:
    digits = re.search(r"(\d+)$", where)
    return int(digits.group(1)) if digits else 0


def _spread(rows: int, most: int) -> list[int]:
    """Numbers of rows from the first to the last, evenly."""
    if rows <= most:
        return list(range(rows))
    return sorted({round(at * (rows - 1) / max(1, most - 1)) for at in range(most)})


def _about(loaded: Loaded, cards: Sequence[dict[str, Any]]) -> dict[str, str]:
    kinds = Counter(card["category"] or "without one" for card in cards)
    categories = ", ".join(f"{name} {count}" for name, count in kinds.most_common(8))
    categories += f" and {len(kinds) - 8} more" if len(kinds) > 8 else ""
    letters = Counter(letter for card in cards for letter in card["right"])
    return {
        "rows": f"{len(loaded.places):,}" + (f", and {len(loaded.bad):,} that cannot be used" if loaded.bad else ""),
        "shown here": f"{len(cards):,}",
        "with gold boxes": f"{sum(bool(card['boxes']) for card in cards):,} of those shown",
        "answers": ", ".join(f"{letter} {letters[letter]}" for letter in sorted(letters)) or "open",
    } | ({"categories": categories} if any(card["category"] for card in cards) else {})


def _card(question: Question, where: str, share: int) -> dict[str, Any]:
    """A row as the template needs it: texts of bounded length, whole numbers, and pictures of at most `share` bytes."""
    remarks, sizes, pictures = [], [], []
    for number, image in enumerate(question.images, 1):
        boxes = question.gold_boxes_px_original if number == question.gold_image else ()
        try:
            picture = _picture(image, boxes, share)
            sizes.append(picture["size"])
        except (ValueError, OSError, MemoryError) as error:
            remarks.append(
                f"It cannot be used: {shortened(str(error) or 'its image is too large for this memory', TEXT)}"
            )
            continue
        label = f"Image {number} of {len(question.images)}" if len(question.images) > 1 else ""
        pictures.append(picture | {"label": label})
    if len(sizes) == len(question.images) and (far := beyond(question, sizes)):
        remarks.append(f"Gold box {shortened(far, TEXT)}.")
    if len(question.gold_boxes_px_original) > MOST_BOXES:
        remarks.append(f"Of its {len(question.gold_boxes_px_original)} gold boxes the first {MOST_BOXES} are drawn.")
    if alike := repeated(question.choices):
        remarks.append(f"{shortened(alike, CHOICE)}, but only the gold letter counts as right.")
    right = question.answer.split("|") if question.choices else []
    return {
        "where": _name(where),
        "id": shortened(question.id, CHOICE),
        "question": shortened(question.question, TEXT),
        "choices": [(letter, shortened(text, CHOICE)) for letter, text in zip(LETTERS, question.choices)],
        "right": right,
        "answer": shortened(question.answer, TEXT),
        "category": shortened(question.category, CHOICE),
        "boxes": len(question.gold_boxes_px_original),
        "pictures": pictures,
        "remarks": remarks,
    }


def _picture(image: Any, boxes: Iterable[Box], share: int) -> dict[str, Any]:
    """An image of a row and what its gold boxes hold, both as data URIs.

    Raises:
        ImageError: it cannot be read or decoded.
    """
    photograph = Photograph(image)
    whole = thumbnail(photograph.overview(OVERVIEW), share)
    photograph.drop()
    width, height = photograph.size
    inside = []
    for x1, y1, x2, y2 in list(boxes)[:MOST_INSIDE]:
        seen = max(0, x1), max(0, y1), min(width, x2), min(height, y2)
        if seen[0] < seen[2] and seen[1] < seen[3]:
            cut = _cut(image, seen)
            inside.append(
                (data_uri(thumbnail(cut, share, INSIDE_SIDE_PX), "jpeg"), seen[2] - seen[0], seen[3] - seen[1])
            )
    return {
        "size": (width, height),
        "shown": data_uri(whole, "jpeg"),
        "boxes": list(boxes)[:MOST_BOXES],
        "inside": inside,
    }


def _cut(image: Any, box: Box) -> Image.Image:
    """A region in the pixels of the original; enlarged if it is tiny, so that it can be seen."""
    region = open_region(image, box) or open_image(image).crop(box)
    times = min(8, 96 // max(region.size))
    return (
        region.resize((region.width * times, region.height * times), Image.Resampling.NEAREST) if times > 1 else region
    )


def _name(where: str) -> str:
    """The place of a row without the folders of its file."""
    return shortened(where.rsplit("/", 1)[-1], CHOICE)


def _printable(page: str) -> str:
    """The page without halves of characters, which a path may hold and no file does."""
    return page.encode("utf-8", "backslashreplace").decode()

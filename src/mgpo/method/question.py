"""The one question type that training, evaluation, inference and serving share."""

from __future__ import annotations

import string
from dataclasses import dataclass
from numbers import Real
from typing import Any

from mgpo.method.lists import absent, list_in

LETTERS = string.ascii_uppercase
Box = tuple[int, int, int, int]
MAX_IMAGES = 8
"""Most images that a question may show."""
MAX_COORDINATE = 2**31
"""Largest coordinate in pixels; no image has a side as long."""


@dataclass(frozen=True)
class Question:
    """A question about an image, or about several.

    Attributes:
        image: a path, bytes, a Hugging Face `{"bytes", "path"}` row or a PIL image; only `mgpo.images.imaging` opens
            it.
        question: the question, without choices.
        choices: texts of 2 to 26 choices, lettered A to Z in this order; empty for an open question.
        answer: the right letter, or the answer's text for an open question; empty if unknown. Where a dataset gives one
            letter to two choices, either is right: "D|E".
        gold_boxes_px_original: boxes (x1, y1, x2, y2) of what must be seen. They are for metrics only and are used in
            neither the prompt nor the reward.
        category: what kind of question it is, for tables.
        id: names the row in logs and errors.
        source: file and row number that it was read from; empty if it was not read from a file.
        more_images: the second image and later ones, of a question about several.
        gold_image: number of the image that the gold boxes are in, from 1.
    """

    image: Any
    question: str
    choices: tuple[str, ...] = ()
    answer: str = ""
    gold_boxes_px_original: tuple[Box, ...] = ()
    category: str = ""
    id: str = ""
    source: str = ""
    more_images: tuple[Any, ...] = ()
    gold_image: int = 1

    def __post_init__(self) -> None:
        where = f"Question {self.id!r}" if self.id else "A question"
        if not isinstance(self.question, str) or not isinstance(self.answer, str):
            raise ValueError(f"{where} needs a question and an answer that are text.")
        if not self.question.strip():
            raise ValueError(f"{where} has no text.")
        if self.choices and not 2 <= len(self.choices) <= len(LETTERS):
            raise ValueError(f"{where} has {len(self.choices)} choices; 2 to {len(LETTERS)} are supported.")
        if self.choices and self.answer and not set(self.answer.split("|")) <= set(LETTERS[: len(self.choices)]):
            meant = [letter for letter, choice in zip(LETTERS, self.choices) if choice == self.answer]
            meant = meant or [letter for letter in LETTERS[: len(self.choices)] if letter == self.answer.upper()]
            raise ValueError(
                f"{where} has the answer {self.answer!r}, which is not one of its letters {LETTERS[: len(self.choices)]}."
                + (f" Write {meant[0]!r} if that choice is meant." if meant else "")
            )
        if len(self.images) > MAX_IMAGES:
            raise ValueError(f"{where} shows {len(self.images)} images; at most {MAX_IMAGES} are supported.")
        if not 1 <= self.gold_image <= len(self.images):
            raise ValueError(f"{where} has gold_image {self.gold_image}, but shows {len(self.images)} image(s).")

    @property
    def images(self) -> tuple[Any, ...]:
        """All images in the order in which they are shown and numbered."""
        return (self.image, *self.more_images)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Question:
        """Build a question from a dataset row whose columns are this class' fields (`gold_boxes` may name the boxes).

        Raises:
            ValueError: the row has no image or no question, or a value of the wrong type; the message names the row's
                id.
        """
        name = _as_text(row.get("id"), "id", "")
        for field in ("image", "question"):
            if row.get(field) is None:
                raise ValueError(
                    f"Row {name!r} has no {field!r} column. A row needs image, question, answer and any choices."
                )
        boxes = row.get("gold_boxes_px_original") or row.get("gold_boxes") or ()
        choices, answer = row.get("choices") or (), row.get("answer")
        if not isinstance(choices, (list, tuple)):
            raise ValueError(f"Row {name!r} has {type(choices).__name__} in 'choices', but a list of texts is needed.")
        try:
            boxes = tuple((int(x1), int(y1), int(x2), int(y2)) for x1, y1, x2, y2 in boxes)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"Row {name!r} has a gold box that is not four numbers. gold_boxes is a list of boxes: [[x1, y1, x2, y2]]."
            ) from error
        if inverted := [list(box) for box in boxes if box[2] <= box[0] or box[3] <= box[1]]:
            raise ValueError(
                f"Row {name!r} has the gold box {inverted[0]}, whose right or lower edge is not beyond its left or upper one. "
                "Boxes are x1, y1, x2, y2; x, y, width, height must be converted."
            )
        if any(abs(side) > MAX_COORDINATE for box in boxes for side in box):
            raise ValueError(
                f"Row {name!r} has a gold box with a coordinate beyond {MAX_COORDINATE}; no image is that large."
            )
        more = _more_images(row.get("more_images"), name)
        return cls(
            image=row["image"],
            question=row["question"],
            choices=tuple(_as_text(choice, "choices", name) for choice in choices),
            answer="" if answer is None else answer,
            gold_boxes_px_original=boxes,
            category=_as_text(row.get("category"), "category", name),
            id=name,
            source=row.get("source") or "",
            more_images=more,
            gold_image=_gold_image(row, name, boxes, len(more) + 1),
        )

    @property
    def chance(self) -> float:
        """Accuracy of guessing: right letters over the number of choices, 0 for an open question."""
        return len(self.answer.split("|")) / len(self.choices) if self.choices else 0.0


def _more_images(value: Any, name: str) -> tuple[Any, ...]:
    """A row's second image and later ones; an empty cell holds none."""
    if absent(value):
        return ()
    try:
        images = list_in(value)
    except ValueError as error:
        raise ValueError(f"Row {name!r} has text in 'more_images' that is no list of images: {error}.") from error
    if images is None:
        raise ValueError(f"Row {name!r} has {type(value).__name__} in 'more_images', but a list of images is needed.")
    return tuple(images)


def _gold_image(row: dict[str, Any], name: str, boxes: tuple[Box, ...], images: int) -> int:
    """The number of the image that a row's gold boxes are in. Where there are several images, the row must say it.

    Tables with empty cells turn whole numbers into 2.0, and a TSV into "2": both are the number 2.
    """
    value = row.get("gold_image")
    if absent(value):
        if boxes and images > 1:
            raise ValueError(
                f"Row {name!r} has gold boxes and {images} images. Its column gold_image must give the number of the "
                "image that the boxes are in, counted from 1."
            )
        return 1
    try:
        number = float(value) if isinstance(value, (str, Real)) and not isinstance(value, bool) else 0.5
    except (ValueError, OverflowError):
        number = 0.5
    if not number.is_integer():
        raise ValueError(f"Row {name!r} has {value!r} in 'gold_image', but the number of an image is needed.")
    return int(number)


def _as_text(value: Any, column: str, name: str) -> str:
    """A cell as text; it may also be a number. An empty cell gives empty text, but a choice must not be empty."""
    if value is None and column != "choices":
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"Row {name!r} has {type(value).__name__} in {column!r}, but text is needed.")
    return str(value)

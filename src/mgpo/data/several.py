"""Layouts whose rows may show several images, and what they share: columns of images, and texts that name images.

`mgpo.data.schemas` lists these layouts among the others. With one image, texts are read as those of any other layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgpo.data.cells import as_options, boxes_xyxy, gold_answer, pictures
from mgpo.data.texts import letter_choices, numbered, split_choices, with_numbered_images, without_image_marker
from mgpo.method.lists import absent, list_in
from mgpo.method.question import MAX_IMAGES

Row = Mapping[str, Any]
NUMBERED = tuple(f"image_{number}" for number in range(1, MAX_IMAGES + 1))
"""Columns of layouts that have one for each image."""
CHOICE_COLUMNS = ("choices", "options", "choice", "candidates")
"""Where rows may hold their choices."""
MARKER = "<image>"
IMAGE_PARTS = ("image", "image_url", "input_image")
"""How the parts of a conversation's turn are called that stand for images."""


def choice_column(row: Row) -> str | None:
    """The column that holds a row's choices; None if none does."""
    return next((name for name in CHOICE_COLUMNS if row.get(name) not in (None, "", [], ())), None)


def how_many(shown: Mapping[str, Any]) -> int:
    """How many images these fields of a `Question` show."""
    return 1 + len(shown.get("more_images", ()))


def shown_images(row: Row, root: Path) -> dict[str, Any]:
    """The images of a row that has them in `image`, in `images`, or the first in one of these and the rest in `more_images`.

    Raises:
        ValueError: there is none, or several columns hold images and do not say which are shown.
    """
    one, several, more = (_filled(row.get(name)) for name in ("image", "images", "more_images"))
    if one and several:
        short, long = sorted((one, several), key=len)
        if not _same(short, long if len(short) > 1 else long[:1]):
            raise ValueError(
                "its columns 'image' and 'images' both hold images, and one of them is not the first of the other: "
                "leave one of the two empty"
            )
        one, several = long, []
    first = one or several
    if more and list_in(row["more_images"]) is None:
        raise ValueError(
            f"its column 'more_images' holds {str(row['more_images'])[:60]!r}, but a list of images is needed"
        )
    if more and len(first) > 1:
        raise ValueError(
            f"its column 'more_images' stands beside {len(first)} images, but it may only stand beside one: put all of "
            "them into 'images'"
        )
    return pictures([*first, *more] if first else None, root)


def _filled(value: Any) -> list[Any]:
    """The images of a cell: several, one, or none."""
    if absent(value):
        return []
    found = list_in(value)
    return [value] if found is None else found


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether these are the same images; embedded ones may have different names."""
    contents = [
        [image.get("bytes") or image.get("path") if isinstance(image, Mapping) else image for image in images]
        for images in (some, others)
    ]
    return contents[0] == contents[1]


def in_text(text: Any, gold: Any, row: Row, images: int = 1) -> dict[str, Any]:
    """Question, choices and answer from a text that may hold the options; if it does not, a column may hold them.

    Markers of images are left out, or numbered where there are several `images`.
    """
    column = choice_column(row)
    listed: Sequence[str] = ()
    if images > 1:
        listed = [] if column is None or split_choices(str(text))[1] else as_options(row[column])
        text, listed = numbered(str(text), listed, images)
    # Some files write a backslash and an n before options; in a formula (\neq) these mean something else.
    question, options = split_choices(re.sub(r"\\n(?=\s*\(?[A-K][).:]\s|\s*$)", "\n", str(text)))
    gold = gold_answer(gold)
    if not options and column is not None:
        choices, answer = letter_choices(listed or as_options(row[column]), gold)
        return {"question": question, "choices": choices, "answer": answer}
    if not options:
        return {"question": question, "choices": [], "answer": gold}
    try:
        choices, answer = letter_choices(options, gold)
    except ValueError:
        if len(gold) == 1:
            raise
        return {"question": without_image_marker(str(text)), "choices": [], "answer": gold}  # a free-text answer
    return {"question": question, "choices": choices, "answer": answer}


def verl(row: Row, root: Path) -> dict[str, Any]:
    """verl's rows, DeepEyes-47k among them: the bare question from `extra_info` if it is there, else the user turn."""
    extra = row.get("extra_info") or {}
    shown = pictures(row["images"], root)
    text = extra.get("question") or _user_text(row["prompt"], how_many(shown))
    return shown | in_text(text, row["reward_model"]["ground_truth"], row, how_many(shown)) | {
        "category": row.get("data_source") or "", "id": str(extra.get("index", "")),
    }  # fmt: skip


def problem(row: Row, root: Path) -> dict[str, Any]:
    """VisualProbe and EasyR1: `problem` and `solution` or `answer`."""
    gold = row["solution"] if row.get("solution") is not None else row.get("answer")
    shown = pictures(row["images"], root)
    return shown | in_text(row["problem"], gold, row, how_many(shown)) | {
        "category": row.get("data_source") or "",
        "id": str(row.get("doc_id") or row.get("id") or ""),
    }  # fmt: skip


def trl(row: Row, root: Path) -> dict[str, Any]:
    """TRL's conversational rows: `prompt` and the answer in a column of its own."""
    gold = next((row[name] for name in ("answer", "solution", "ground_truth") if row.get(name) is not None), None)
    shown = shown_images(row, root)
    text = _user_text(row["prompt"], how_many(shown))
    return shown | in_text(text, gold, row, how_many(shown)) | {
        "category": row.get("category") or "", "id": str(row.get("id") or ""), "gold_image": row.get("gold_image"),
        "gold_boxes_px_original": boxes_xyxy(row.get("gold_boxes")),
    }  # fmt: skip


def blink(row: Row, root: Path) -> dict[str, Any]:
    """BLINK: one to four images in columns of their own, the answer as "(A)"; its test split hides answers."""
    shown = pictures([row[name] for name in NUMBERED if not absent(row.get(name))], root)
    question, options = numbered(str(row["question"]), as_options(row["choices"]), how_many(shown))
    choices, answer = letter_choices(options, gold_answer(row["answer"]))
    return shown | {
        "question": question.strip(), "choices": choices, "answer": answer,
        "category": row.get("sub_task") or "", "id": str(row.get("idx") or ""),
    }  # fmt: skip


def muirbench(row: Row, root: Path) -> dict[str, Any]:
    """MuirBench: a list of images, which markers in the question and in the options stand for."""
    shown = pictures(row["image_list"], root)
    question, *options = with_numbered_images([str(row["question"]), *as_options(row["options"])], how_many(shown))
    choices, answer = letter_choices(options, gold_answer(row["answer"]))
    return shown | {
        "question": question, "choices": choices, "answer": answer, "category": row.get("task") or "",
        "id": str(row.get("idx") or ""),
    }  # fmt: skip


def _user_text(prompt: Any, images: int) -> str:
    """Text of the last user turn of a prompt, which may be text itself. With several images, a marker for each one in it."""
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in prompt if turn.get("role") == "user"]
    if not turns:
        raise ValueError("its prompt has no user turn")
    content = turns[-1]["content"]
    if isinstance(content, str):
        return content
    if images < 2:
        return "\n".join(part["text"] for part in content if part.get("text"))
    return _joined([MARKER if part.get("type") in IMAGE_PARTS else part.get("text") for part in content])


def _joined(parts: Sequence[str | None]) -> str:
    """Parts of a turn as one text: a text after a text on a line of its own, an image in the line where it stands."""
    text, before = "", None
    for part in filter(None, parts):
        if before is not None and MARKER not in (before, part):
            text += "\n"
        elif text and not text[-1].isspace() and (part[0].isalnum() or part == MARKER):
            text += " "
        text, before = text + part, part
    return text

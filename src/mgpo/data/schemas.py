"""Recognises the layouts of known datasets by their columns, and reads their rows into `Question`'s fields.

Sources of the layouts: the datasets' own files and cards, lmms-eval, VLMEvalKit, verl, EasyR1 and DeepEyes; see
`docs/data.md` for their columns. Choices keep their order, except where a dataset lists the right one first (V*'s own
files): those are shuffled into an order that depends on nothing but the row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from mgpo.data import several
from mgpo.data.cells import as_options, boxes_xywh, boxes_xyxy, gold_answer, picture
from mgpo.data.several import NUMBERED, Row, choice_column, how_many, in_text, shown_images
from mgpo.data.texts import letter_choices, lettered, numbered, one_line, split_choices, without_image_marker
from mgpo.method.question import LETTERS

PICTURE_COLUMNS = ("image", "images", "more_images", "image_list", "bytes", "crop_image", "Image", *NUMBERED)
"""Columns that may hold whole pictures."""
OWN = "mgpo"
"""The project's own layout: `Question`'s fields."""


@dataclass(frozen=True)
class Schema:
    """A layout: its name, the columns that identify it, and the function that reads its rows.

    Rows with a column of `absent` have another layout. `read(row, root)` gives the fields of `Question.from_row`;
    relative image paths start at `root`. It raises ValueError with a reason if the row cannot be used.
    """

    name: str
    columns: frozenset[str]
    read: Callable[[Row, Path], dict[str, Any]]
    absent: frozenset[str] = frozenset()


def schema_of(columns: Sequence[str], among: Sequence[str] | None = None) -> Schema:
    """The layout of rows with these columns.

    Args:
        columns: the columns of the rows.
        among: names of the layouts that are expected beside the project's own; all if None.

    Raises:
        ValueError: none fits; the message lists the columns.
    """
    found = next((s for s in SCHEMAS if s.columns <= set(columns) and not s.absent & set(columns)), None)
    if found is not None and (among is None or found.name in (*among, OWN)):
        return found
    if found is not None:
        raise ValueError(f"its layout is {found.name!r}, but {' or '.join(map(repr, among or ()))} is expected")
    wanted = ("question", "answer") if "images" in columns else ("image", "question", "answer")
    missing = " and no ".join(repr(name) for name in wanted if name not in columns)
    known = ", ".join(dict.fromkeys(s.name for s in SCHEMAS if among is None or s.name in among))
    raise ValueError(
        f"it has no {missing}: a row needs image, question, answer and any choices, or the columns of a known dataset ({known}). "
        f"Its columns are: {', '.join(map(str, columns))}."
    )


def _own(row: Row, root: Path) -> dict[str, Any]:
    """The project's own layout, and published tables that name the choices `options`, as text or as a list.

    Copies of V*, HR-Bench, MME-RealWorld-Lite and TreeBench are published like that: `question_id, image, question,
    options, answer, category`, TreeBench with `target_instances`. A list of bare texts in `choices` is taken as it
    stands.
    """
    found = {name: value for name, value in row.items() if name not in ("image", "images", "more_images")}
    found |= shown_images(row, root)
    images = how_many(found)
    if not found.get("id"):
        found["id"] = next((str(row[name]) for name in ("question_id", "index") if row.get(name) is not None), "")
    if not found.get("gold_boxes") and not found.get("gold_boxes_px_original") and row.get("target_instances"):
        found["gold_boxes"] = boxes_xyxy(row["target_instances"])
    column = choice_column(row)
    bare = column == "choices" and isinstance(row["choices"], (list, tuple)) and not lettered(row["choices"])
    if column is None or bare and not any(isinstance(choice, Mapping) for choice in row["choices"]):
        question, choices = numbered(row["question"], row["choices"] if column else (), images)
        return found | {"question": question} | ({"choices": choices} if column else {})
    if not isinstance(row["answer"], str):
        raise ValueError(f"its answer {row['answer']!r} is not text")
    question, options = numbered(row["question"], as_options(row[column]), images)
    choices, answer = letter_choices(options, gold_answer(row["answer"]))
    found = {name: value for name, value in found.items() if name != column}
    return found | {"question": question, "choices": choices, "answer": answer}


def _vstar_own(row: Row, root: Path) -> dict[str, Any]:
    """V*'s files beside the images: the right option first, boxes as x, y, width, height."""
    if not isinstance(row["options"], (list, tuple)):
        raise ValueError("it has no answer, and its options are not a list with the right one first")
    options = list(dict.fromkeys(one_line(option) for option in row["options"]))
    seed = f"{Path(str(row.get('image', ''))).name}\n{row['question']}\n"
    mixed = sorted(options, key=lambda option: hashlib.sha256((seed + option).encode()).digest())
    return {
        "image": picture(row.get("image"), root),
        "question": str(row["question"]).strip(),
        "choices": mixed,
        "answer": LETTERS[: len(mixed)][mixed.index(one_line(row["options"][0]))],
        "gold_boxes_px_original": boxes_xywh(row["bbox"]),
        "category": row.get("category") or "",
        "id": row.get("id") or Path(str(row.get("image", ""))).stem,
    }


def _vstar(row: Row, root: Path) -> dict[str, Any]:
    """V*'s shuffled questions: options and an instruction inside the text; boxes from the file beside the image."""
    image = picture(row["image"], root)
    beside = Path(image).with_suffix(".json") if isinstance(image, str) else None
    boxes = boxes_xywh(json.loads(beside.read_text())["bbox"]) if beside and beside.is_file() else []
    question, options = split_choices(_breaks_before_options(row["text"]))
    choices, answer = letter_choices(options, row["label"])
    return {
        "image": image, "question": question, "choices": choices, "answer": answer, "gold_boxes_px_original": boxes,
        "category": row["category"], "id": str(row["question_id"]),
    }  # fmt: skip


def _breaks_before_options(text: str) -> str:
    """The text with line breaks before options that follow the question on its own line."""
    if "\n" in text:
        return text
    start = text.rfind(" (A) ")
    question, rest = (text[:start], text[start:]) if start >= 0 else (text, "")
    for letter in LETTERS:
        rest = rest.replace(f" ({letter}) ", f"\n({letter}) ", 1)
    return question + rest.replace(" Answer with", "\nAnswer with", 1)


def _mme_own(row: Row, root: Path) -> dict[str, Any]:
    """MME-RealWorld's own JSON."""
    choices, answer = letter_choices(as_options(row["Answer choices"]), row["Ground truth"])
    return {
        "image": picture(row["Image"], root), "question": row["Text"].strip(), "choices": choices, "answer": answer,
        "category": f"{row.get('Task', '')}/{row.get('Subtask', '')}", "id": str(row["Question_id"]),
    }  # fmt: skip


def _mme(row: Row, root: Path) -> dict[str, Any]:
    """MME-RealWorld as lmms-eval and VLMEvalKit publish it."""
    choices, answer = letter_choices(as_options(row["multi-choice options"]), row["answer"])
    return {
        "image": picture(row.get("bytes") or row.get("image"), root), "question": row["question"].strip(),
        "choices": choices, "answer": answer, "category": row.get("category") or "", "id": str(row.get("index", "")),
    }  # fmt: skip


def _lettered_columns(row: Row, root: Path) -> dict[str, Any]:
    """A question with its options in columns A, B, C, ...: HR-Bench and VLMEvalKit's tables."""
    cells = {letter: row[letter] for letter in takewhile(row.__contains__, LETTERS)}  # X and Y may be coordinates
    unused = {
        None,
        "",
        "nan",
        "NaN",
    }  # and "None" after D, where TreeBench pads columns with it; up to D it is an option
    given = {k: one_line(v) for k, v in cells.items() if v not in unused and (v != "None" or k <= "D") and v == v}
    choices, answer = letter_choices([f"({k}) {v}" for k, v in given.items()], str(row["answer"]).strip().upper())
    return {
        "image": picture(row["image"], root), "question": row["question"].strip(), "choices": choices, "answer": answer,
        "category": row.get("category") or "", "id": str(row.get("index", "")),
    }  # fmt: skip


def _treebench(row: Row, root: Path) -> dict[str, Any]:
    """TreeBench: as above, with target boxes x1, y1, x2, y2 written as text."""
    return _lettered_columns(row, root) | {"gold_boxes_px_original": boxes_xyxy(row["target_instances"])}


def _zoombench(row: Row, root: Path) -> dict[str, Any]:
    """ZoomBench: choices or a number, depending on the text; older files have `prompt` and `answer`."""
    text, gold = row.get("query") or row.get("prompt"), row.get("response") or row.get("answer")
    return in_text(text, gold, row) | {
        "image": picture(row["image"], root), "category": row.get("question_type") or "",
        "id": str(row.get("id", "")), "gold_boxes_px_original": boxes_xyxy(row.get("bbox")),
    }  # fmt: skip


def _pope(row: Row, root: Path) -> dict[str, Any]:
    """POPE: yes or no, here as two choices. The first files call the columns text and label."""
    gold = str(row.get("answer") or row.get("label")).strip().lower()
    if gold not in ("yes", "no"):
        raise ValueError(f"its answer is {gold!r}, not yes or no")
    return {
        "image": picture(row["image"], root), "question": (row.get("question") or row["text"]).strip(),
        "choices": ["yes", "no"], "answer": "A" if gold == "yes" else "B", "category": row.get("category") or "",
        "id": str(row.get("id") or row.get("question_id") or ""),
    }  # fmt: skip


def _paper(row: Row, root: Path) -> dict[str, Any]:
    """The paper's 21K training set."""
    options, gold = row["choices"], gold_answer(row["reward_model"]["ground_truth"])
    options = split_choices("?\n" + options)[1] if isinstance(options, str) else list(options)
    choices, answer = letter_choices(options, gold) if options else ([], gold)
    image = row.get("image") if row.get("image") is not None else row.get("image_path")
    return {
        "image": picture(image, root), "question": without_image_marker(row["question"]), "choices": choices,
        "answer": answer, "category": row.get("data_source") or "", "id": str(row.get("id") or ""),
    }  # fmt: skip


SCHEMAS = (
    Schema(
        "vstar files", frozenset({"question", "options", "target_object", "bbox"}), _vstar_own, frozenset({"answer"})
    ),
    Schema("vstar", frozenset({"image", "text", "label", "category", "question_id"}), _vstar),
    Schema(
        "mme-realworld json", frozenset({"Question_id", "Image", "Text", "Answer choices", "Ground truth"}), _mme_own
    ),
    Schema("treebench", frozenset({"image", "question", "answer", "target_instances", "A", "B"}), _treebench),
    Schema("mme-realworld", frozenset({"question", "multi-choice options", "answer"}), _mme),
    Schema("lettered columns", frozenset({"image", "question", "answer", "A", "B"}), _lettered_columns),
    Schema("zoombench", frozenset({"image", "crop_image", "query", "response"}), _zoombench),
    Schema("zoombench", frozenset({"image", "crop_image", "prompt", "answer"}), _zoombench),
    Schema("pope", frozenset({"image", "question", "answer", "image_source"}), _pope),
    Schema("pope", frozenset({"image", "text", "label", "question_id"}), _pope),
    Schema("paper 21k", frozenset({"question", "choices", "reward_model"}), _paper),
    Schema("verl", frozenset({"prompt", "images", "reward_model"}), several.verl),
    Schema("problem and solution", frozenset({"images", "problem", "solution"}), several.problem),
    Schema("problem and answer", frozenset({"images", "problem", "answer"}), several.problem),
    Schema("trl", frozenset({"prompt", "images"}), several.trl),
    Schema("trl", frozenset({"prompt", "image"}), several.trl),
    Schema("blink", frozenset({"image_1", "question", "choices", "answer"}), several.blink),
    Schema("muirbench", frozenset({"image_list", "question", "options", "answer"}), several.muirbench),
    Schema(OWN, frozenset({"image", "question", "answer"}), _own),
    Schema(OWN, frozenset({"images", "question", "answer"}), _own),
)
"""Tried in order: a layout comes before those whose columns it also has."""

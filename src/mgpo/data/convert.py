"""`mgpo data convert`: writes questions of any readable layout in another one, which reads back as the same questions.

Example: `mgpo data convert my_folder out --to trl`. Pictures are copied where a copy will do (`mgpo.data.pictures`), and nothing that is
there already is overwritten unasked.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mgpo.data.pictures import Written
from mgpo.data.reading import SUFFIXES
from mgpo.data.texts import holds_image_marker
from mgpo.files import whole, whole_folder
from mgpo.images.identity import images_digest
from mgpo.method.question import LETTERS, Question

Rows = Iterable[dict[str, Any]]
BATCH = 64
VERL_MARKERS = ("<image>", "<video>", "<audio>")
"""Where verl's dataset splits a prompt."""


def convert(
    rows: Rows, to: str, folder: Path, split: str, overwrite: bool = False, written: Written | None = None
) -> tuple[Path, int]:
    """Write questions into a folder.

    Args:
        rows: usable rows (`mgpo.data.loading.usable`): an error in them leaves no finished file behind.
        to: one of `WRITERS`.
        folder: the folder to write to; images that were inside a file are written there too.
        split: names the file.
        overwrite: replace what an earlier conversion wrote there.
        written: makes the pictures ready, and counts afterwards what was copied and what was written anew.

    Returns:
        The file that was written, and its number of questions.

    Raises:
        ValueError: the form is unknown, or cannot hold a question; a picture of a form that holds pictures cannot be decoded.
        FileExistsError: there is something already where it would be written. Nothing was read yet.
    """
    if to not in WRITERS:
        raise ValueError(f"--to {to!r} is unknown. Choose one of: {', '.join(WRITERS)}.")
    if folder.is_file() or folder.suffix in SUFFIXES:
        raise FileExistsError(f"{folder} is the name of a file. Name a folder: its files are called after the split.")
    written = written or Written()
    if to == "vstar":
        _refuse_foreign(folder, overwrite)
        with whole_folder(folder, PART, last=VSTAR_FILE) as aside:
            _, count = to_vstar(written.for_others(rows), aside, split)
        return folder / VSTAR_FILE, count
    file = folder / (f"{split}.jsonl" if to == "jsonl" else f"{split}.parquet")
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} exists already. Name another folder, or replace the file with --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    return WRITERS[to](written.for_mgpo(rows) if to == "jsonl" else written.for_others(rows), folder, split)


VSTAR_FILE = "test_questions.jsonl"
PART = ".mgpo-part-"
"""How folders begin in which a conversion is written before it is whole."""
_VSTAR_NAME = re.compile(r"[^/]+/sa_\d{5,}\.\w+")


def _refuse_foreign(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything; if it may be overwritten, anything that `to_vstar` has not written."""
    there = [path for path in sorted(folder.rglob("*")) if not path.relative_to(folder).parts[0].startswith(PART)]
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} holds files already, and V*'s layout takes a folder of its own. Name another one, or replace what an earlier "
            "conversion wrote there with --overwrite."
        )
    files = (path.relative_to(folder) for path in there if not path.is_dir() or path.is_symlink())
    foreign = [str(file) for file in files if file != Path(VSTAR_FILE) and not _VSTAR_NAME.fullmatch(file.as_posix())]
    if foreign:
        raise FileExistsError(
            f"--overwrite: {folder} holds files that mgpo data convert did not write ({', '.join(foreign[:3])}), so it is not replaced. "
            "Name another folder."
        )


def to_jsonl(rows: Rows, folder: Path, split: str) -> tuple[Path, int]:
    """Write the project's own form. Images that are files stay where they are, named relative to the folder.

    Others are written to `images/`, named after their content: equal images are one file, and none replaces a different one.
    """
    file, count = folder / f"{split}.jsonl", 0
    with whole(file) as aside, aside.open("w", encoding="utf-8") as out:
        for count, row in enumerate(rows, 1):
            question = _writable(row)
            images = [_reference(image, folder) for image in question.images]
            line: dict[str, Any] = (
                {"image": images[0]} if len(images) == 1 else {"images": images, "gold_image": question.gold_image}
            )
            line |= {
                "question": question.question,
                "choices": list(question.choices), "answer": question.answer, "category": question.category,
                "gold_boxes": [list(box) for box in question.gold_boxes_px_original], "id": question.id or str(count),
            }  # fmt: skip
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return file, count


def to_trl(rows: Rows, folder: Path, split: str) -> tuple[Path, int]:
    """Write Parquet with TRL's columns: a conversational `prompt`, `images`, and the answer in a column."""

    def row_of(question: Question, number: int) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": _with_choices(question)}],
            "images": [_embedded(image) for image in question.images],
            "gold_image": question.gold_image,
            "choices": list(question.choices),
            "answer": question.answer,
            "category": question.category,
            "gold_boxes": [list(box) for box in question.gold_boxes_px_original] or None,
            "id": question.id or str(number),
        }

    return _parquet(rows, folder / f"{split}.parquet", row_of)


def to_verl(rows: Rows, folder: Path, split: str) -> tuple[Path, int]:
    """Write Parquet with verl's columns, which have no place for gold boxes; `mgpo.verl` reads it in verl's agent loop.

    Raises:
        ValueError: a text holds a marker at which verl would look for a further image, video or sound.
    """

    def row_of(question: Question, number: int) -> dict[str, Any]:
        text = _with_choices(question)
        if marker := next((marker for marker in VERL_MARKERS if marker in text), None):
            raise ValueError(
                f"Question {question.id!r} holds {marker} in its text or choices, where verl would look for one more. Write it "
                "in other words."
            )
        return {
            "data_source": question.category or "mgpo",
            "prompt": [{"role": "user", "content": "<image>" * len(question.images) + text}],
            "images": [_embedded(image) for image in question.images],
            "ability": "vqa",
            "reward_model": {"style": "rule", "ground_truth": question.answer},
            "extra_info": {
                "split": split,
                "index": question.id or str(number),
                "question": text,
                "answer": question.answer,
            },
        }

    return _parquet(rows, folder / f"{split}.parquet", row_of)


def to_vstar(rows: Rows, folder: Path, split: str) -> tuple[Path, int]:
    """Write V*'s layout: images and box files in folders by category, the shuffled questions in `test_questions.jsonl`.

    Each picture is the file that the row had, byte for byte: `Written.for_others` has seen to it that other programs read it alike.

    Raises:
        ValueError: a question has no choices, several right ones, or several images: V* has none of these.
    """
    file, count = folder / VSTAR_FILE, 0
    with whole(file) as aside, aside.open("w", encoding="utf-8") as out:
        for count, row in enumerate(rows, 1):
            question = Question.from_row(row)
            if not question.choices or question.answer not in LETTERS:
                raise ValueError(f"Question {question.id!r} has no single right choice, which V*'s layout requires.")
            if len(question.images) > 1:
                raise ValueError(f"Question {question.id!r} shows several images, which V*'s layout cannot hold.")
            category = question.category.replace("/", "_").lstrip(".") or "direct_attributes"
            stem = folder / category / f"sa_{count:05d}"
            stem.parent.mkdir(exist_ok=True)
            data, suffix = _bytes_of(question.image)
            image = stem.with_suffix(f".{suffix}")
            image.write_bytes(data)
            right = question.choices[LETTERS.index(question.answer)]
            beside = {
                "target_object": [], "question": question.question,
                "bbox": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in question.gold_boxes_px_original],
                "options": [right, *(choice for choice in question.choices if choice != right)],
            }  # fmt: skip
            stem.with_suffix(".json").write_text(json.dumps(beside, ensure_ascii=False))
            lines = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, question.choices)]
            text = "\n".join([question.question, *lines, "Reply with the letter of one of these options."])
            line = {"image": f"{category}/{image.name}", "text": text, "category": question.category,
                    "label": question.answer, "question_id": question.id or str(count)}  # fmt: skip
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return file, count


WRITERS: dict[str, Callable[[Rows, Path, str], tuple[Path, int]]] = {
    "jsonl": to_jsonl, "trl": to_trl, "verl": to_verl, "vstar": to_vstar,
}  # fmt: skip


def _writable(row: dict[str, Any]) -> Question:
    """A row's question, if its text is read back as it is."""
    question = Question.from_row(row)
    if len(question.images) > 1 and any(map(holds_image_marker, (question.question, *question.choices))):
        raise ValueError(
            f"Question {question.id!r} shows several images, and its text or choices hold <image>, which would be read back "
            'as the place of one of them: write "image 2", or other words.'
        )
    return question


def _with_choices(question: Question) -> str:
    if question.choices and question.answer not in LETTERS:
        raise ValueError(
            f"Question {question.id!r} has several right choices ({question.answer}), which only the jsonl layout can store."
        )
    return "\n".join([question.question, *(f"{k}. {v}" for k, v in zip(LETTERS, question.choices))])


def _reference(image: Any, folder: Path) -> str:
    """Path of an image relative to the folder; an image that is not a file is written there first."""
    if isinstance(image, dict) and not image.get("bytes"):
        image = image["path"]
    if isinstance(image, (str, Path)):
        return os.path.relpath(image, folder)
    data, suffix = _bytes_of(image)
    file = folder / "images" / f"{images_digest([data])}.{suffix}"
    if not file.exists():
        with whole(file) as aside:
            aside.write_bytes(data)
    return str(file.relative_to(folder))


def _embedded(image: Any) -> dict[str, Any]:
    data, suffix = _bytes_of(image)
    return {"bytes": data, "path": f"image.{suffix}"}


def _bytes_of(image: Any) -> tuple[bytes, str]:
    """A file's own bytes, and the ending of a name for it."""
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") else image["path"]
    data = image if isinstance(image, (bytes, bytearray)) else Path(image).read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        kind = (opened.format or "bin").lower()
    return bytes(data), {"jpeg": "jpg"}.get(kind, kind)


def _parquet(rows: Rows, file: Path, row_of: Callable[[Question, int], dict[str, Any]]) -> tuple[Path, int]:
    with whole(file) as aside:
        return file, _write_parquet(rows, aside, row_of)


def _write_parquet(rows: Rows, file: Path, row_of: Callable[[Question, int], dict[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    text, boxes = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.list_(pyarrow.int64()))
    kinds = {"choices": text, "gold_boxes": boxes}
    writer, count = None, 0
    for batch in _batches(rows):
        made = [row_of(_writable(row), count + at) for at, row in enumerate(batch, 1)]
        count += len(made)
        table = pyarrow.Table.from_pylist(made, schema=writer.schema if writer else None)
        for name, kind in kinds.items():  # a first batch of empty lists has no type of its own
            if writer is None and name in table.column_names:
                at = table.schema.get_field_index(name)
                table = table.set_column(at, name, table[name].cast(kind))
        writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return count


def _batches(rows: Rows) -> Iterator[list[dict[str, Any]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch

"""Small files in the layouts of public datasets, with the traps that their real files hold."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from mgpo.data.reading import BadRow
from mgpo.data.sources import read_questions
from mgpo.method.question import Question

SIZE = (60, 40)


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", SIZE, (shade, 90, 200)).save(file, "PNG")
    return file.getvalue()


def b64(shade: int = 0) -> str:
    return base64.b64encode(png(shade)).decode()


def embedded(shade: int = 0) -> dict[str, Any]:
    return {"bytes": png(shade), "path": f"{shade}.png"}


def write_jsonl(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_json(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return file


def write_tsv(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return file


def write_parquet(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def write_image(file: Path, shade: int = 0) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(shade))
    return str(file)


VSTAR_TEXT = (
    "What is the glove's material?\n(A) rubber\n(B) cotton\n(C) kevlar\n(D) leather\nAnswer with the option's letter."
)


def vstar_questions(folder: Path) -> Path:
    """`test_questions.jsonl` with images; one box file beside its image, one option list inline, one with two options."""
    for name in ("direct_attributes/sa_1", "direct_attributes/sa_2", "relative_position/sa_3"):
        write_image(folder / f"{name}.jpg")
    beside = {"target_object": ["glove"], "bbox": [[5, 6, 10, 20]], "question": "?", "options": ["kevlar", "cotton"]}
    (folder / "direct_attributes/sa_1.json").write_text(json.dumps(beside))
    rows = [
        {"image": "direct_attributes/sa_1.jpg", "text": VSTAR_TEXT, "category": "direct_attributes", "label": "C",
         "question_id": "0"},
        {"image": "direct_attributes/sa_2.jpg", "text": "Is (A) it red? (A) yes (B) no Answer with the letter.",
         "category": "direct_attributes", "label": "B", "question_id": "1"},
        {"image": "relative_position/sa_3.jpg", "text": "Left or right?\n(A) left\n(B) right\nAnswer.",
         "category": "relative_position", "label": "A", "question_id": "2"},
    ]  # fmt: skip
    return write_jsonl(folder / "test_questions.jsonl", rows)


def vstar_folders(folder: Path) -> Path:
    """V*'s own folders, the right option first; `OCR` and `GPT4V-hard` are left out by convention."""
    for number, category in enumerate(("direct_attributes", "relative_position", "OCR", "GPT4V-hard")):
        write_image(folder / category / f"sa_{number}.jpg")
        row = {"target_object": ["cup"], "bbox": [[1, 2, 30, 10]], "question": f"Which colour, {number}?",
               "options": ["red", "blue", "green", "white"]}  # fmt: skip
        (folder / category / f"sa_{number}.json").write_text(json.dumps(row))
    return folder


def hrbench() -> list[dict]:
    """One question in its four rotations; the index column is a number, everything else text."""
    options = ["red", "green", "blue", "white"]
    rows = []
    for turn in range(4):
        turned = options[turn:] + options[:turn]
        rows.append({"index": turn, "question": "Which colour?", "answer": "ABCD"[turned.index("blue")],
                     "category": "single" if turn < 2 else "cross", **dict(zip("ABCD", turned)),
                     "cycle_category": str(turn), "image": b64(turn)})  # fmt: skip
    return rows


MME_TRAPS = [
    (["(A) 1", "(B) 2", "(C) 3", "(D) 4", "(E) The image does not feature the object."], "E", 5, "E"),
    (["(A) 1", "(B) 2", "(C) 3", "(D) 4", "(D) 40", "(E) not there"], "E", 6, "F"),
    (["(A) 1", "(B) 2", "(C) 3", "(D) 4", "(D) 40", "(E) not there"], "D", 6, "D|E"),
    (["(A) first\nline", "(B) 2", "(C) 3", "(D) 4", "(E) 5"], "A", 5, "A"),
    (["（A）one", "（B）two", "（C）three", "（D）four", "（E）five"], "B", 5, "B"),
]
"""Options, the gold letter, how many choices that makes, and the right letter by position."""


def mme_raw(folder: Path) -> Path:
    rows = []
    for number, (options, gold, _, _) in enumerate(MME_TRAPS):
        write_image(folder / f"imgs/{number}.png")
        rows.append({"Question_id": f"perception/x/{number}", "Image": f"imgs/{number}.png", "Text": "How many?",
                     "Question Type": "Multiple Choice", "Answer choices": options, "Ground truth": gold,
                     "Category": "c", "Subtask": "OCR with Complex Context", "Task": "Perception"})  # fmt: skip
    return write_json(folder / "MME-RealWorld-Lite.json", rows)


def mme_port() -> list[dict]:
    return [
        {"index": str(number), "bytes": b64(number), "question": "How many?", "multi-choice options": options,
         "answer": gold, "category": "Perception/OCR with Complex Context", "l2-category": "x"}
        for number, (options, gold, _, _) in enumerate(MME_TRAPS)
    ]  # fmt: skip


def treebench() -> list[dict]:
    first = {"index": "0", "image": b64(), "question": "What is it?", "multi-choice options": "A. cup\nB. pot\nC. pan",
             "answer": "c", "category": "Perception/OCR", "l2-category": "x",
             "target_instances": "[[10, 10, 20, 20], [40, 10, 50, 30]]", "A": "cup", "B": "pot", "C": "pan", "D": "",
             "E": "nan"}  # fmt: skip
    return [first, first | {"index": "1", "image": "0", "answer": "A", "D": "can", "E": "None"}]


def paper(choices: Any = ("(A) red", "(B) blue")) -> list[dict]:
    """The paper's training set: images inside the file, and the path that they had on the authors' machine."""
    row = {"prompt": "<image> Which?", "image_path": "/far/away.jpg", "question": "<image>Which?",
           "choices": choices if isinstance(choices, str) else list(choices), "data_source": "Perception/OCR",
           "reward_model": {"ground_truth": "B", "style": "rule"}}  # fmt: skip
    return [row | {"image": embedded(shade)} for shade in (0, 9)]


def one(folder: Path, row: dict) -> Any:
    """The only row of a file, as it is read."""
    return next(iter(read_questions(str(write_jsonl(folder / "rows.jsonl", [row])))))


def names(row: Any) -> list[str]:
    """File names of a question's images, in order."""
    assert not isinstance(row, BadRow), row.reason
    return [str(path).rsplit("/", 1)[-1] for path in Question.from_row(row).images]

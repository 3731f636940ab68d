"""Training questions by name: the `needle` world, a JSONL file, a folder with one, or a dataset of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mgpo.data.question import Question
from mgpo.worlds.needle import load_needle, resized

COLUMNS = ("image", "question", "answer")


def load_questions(
    name: str,
    split: str = "train",
    seed: int = 0,
    size: int = 2000,
    megapixels: float | None = None,
    backgrounds: str | None = None,
) -> Any:
    """A dataset whose rows are questions (see `mgpo.data.question.Question`).

    Args:
        name: `needle`; a `.jsonl` file with `image, question, choices, answer`, image paths relative to the file; a
            folder that holds `{split}.jsonl`; or a dataset of the Hugging Face hub with these columns.
        split: split to read.
        seed, size: for `needle`: which questions, and how many.
        megapixels, backgrounds: for `needle`: canvas area and a folder of photographs, if not the split's own.

    Raises:
        ValueError: a column is missing, or rows cannot be used; the message names the first of them.
        FileNotFoundError: the file or folder does not exist.
    """
    if name == "needle":
        return load_needle(split, seed, size, backgrounds, look=resized(split, megapixels))
    import datasets

    path = Path(name)
    if path.is_dir():
        path = path / f"{split}.jsonl"
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist. A folder must hold {split}.jsonl.")
        _check_lines(path)
        data = datasets.load_dataset("json", data_files=str(path), split="train")
        data = (
            data.map(lambda row: row | {"image": row["image"] and str(path.parent / row["image"])})
            if "image" in data.features
            else data
        )
    else:
        data = datasets.load_dataset(name, split=split)
        if "image" in data.features:
            data = data.cast_column("image", datasets.Image(decode=False))
    missing = [column for column in COLUMNS if column not in data.features]
    if missing:
        raise ValueError(
            f"{name} has no column {' and '.join(map(repr, missing))}. Needed are: image, question, choices, answer; "
            f"it has: {', '.join(data.features)}."
        )
    _check_rows(data, name)
    return data


def _check_lines(path: Path) -> None:
    """Refuse a JSONL file with a line that is no JSON object, by its number."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    if not isinstance(json.loads(line), dict):
                        raise ValueError("it is no JSON object")
                except ValueError as error:
                    raise ValueError(f"Line {number} of {path} cannot be read: {error}.") from None


def _check_rows(data: Any, name: str, told: int = 5) -> None:
    """Refuse rows that would stop a run when they are drawn, or teach it nothing. Opens no image."""
    paths = getattr(data.features["image"], "dtype", None) == "string"
    texts = data if paths else data.remove_columns("image")  # embedded images may be many gigabytes
    bad = []
    for number, row in enumerate(texts, 1):
        try:
            if not Question.from_row({"image": "embedded"} | row).answer.strip():
                raise ValueError("it has no answer")
            if paths and not Path(row["image"]).is_file():
                raise ValueError(f"its image {row['image']} does not exist")
        except ValueError as error:
            bad.append(f"  row {number}: {error}")
    if bad:
        more = f"\n  and {len(bad) - told} more" if len(bad) > told else ""
        raise ValueError(f"{len(bad)} of {len(data)} rows of {name} cannot be used:\n" + "\n".join(bad[:told]) + more)

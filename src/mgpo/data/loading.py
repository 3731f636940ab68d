"""Training questions by name: the `needle` world, a JSONL file, a folder with one, or a dataset of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgpo.worlds.needle import load_needle

COLUMNS = ("image", "question")


def load_questions(name: str, split: str = "train", seed: int = 0, size: int = 2000) -> Any:
    """A dataset whose rows are questions (see `mgpo.data.question.Question`).

    Args:
        name: `needle`; a `.jsonl` file with `image, question, choices, answer`, image paths relative to the file; a
            folder that holds `{split}.jsonl`; or a dataset of the Hugging Face hub with these columns.
        split: split to read.
        seed, size: for `needle`: which questions, and how many.

    Raises:
        ValueError: the data has no image or question column.
        FileNotFoundError: the file or folder does not exist.
    """
    if name == "needle":
        return load_needle(split, seed, size)
    import datasets

    path = Path(name)
    if path.is_dir():
        path = path / f"{split}.jsonl"
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist. A folder must hold {split}.jsonl.")
        data = datasets.load_dataset("json", data_files=str(path), split="train")
        data = (
            data.map(lambda row: row | {"image": str(path.parent / row["image"])}) if "image" in data.features else data
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
    return data

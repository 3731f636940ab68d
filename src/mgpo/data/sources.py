"""Reads rows from a file, a folder in its dataset's own layout, or a dataset of the Hugging Face hub.

Callers use `read_questions`, which gives usable rows as `Question`'s fields, and a `BadRow` for every other row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from mgpo.data.reading import SUFFIXES, BadRow, RawRow, count_rows, read_rows
from mgpo.data.schemas import OWN, PICTURE_COLUMNS, schema_of
from mgpo.data.texts import lettered
from mgpo.errors import suggestion
from mgpo.hub import fetched
from mgpo.method.question import Question

VSTAR_FOLDERS = ("direct_attributes", "relative_position")
"""V*'s own categories; its other folders (`GPT4V-hard`, `OCR`) are left out by convention."""
QUESTION_COLUMNS = frozenset(
    {
        "image", "images", "more_images", "question", "choices", "answer", "gold_boxes", "gold_boxes_px_original",
        "gold_image", "category", "id", "source",
    }
)  # fmt: skip
"""What `Question.from_row` reads."""
RESERVED = frozenset({"prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments"})
"""TRL calls reward functions with these beside the columns of the row."""
SPLITS = ({"train", "training"}, {"test", "testing", "testmini"}, {"val", "valid", "validation", "dev", "eval"})
"""Names that files of a split have, one set per split. A single file of another name may be any split's."""
LOOKED_AT = 1000
"""Number of JSON rows that are searched for columns that nothing reads."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def read_questions(
    name: str, split: str = "train", config: str | None = None, among: Sequence[str] | None = None
) -> Iterator[dict[str, Any] | BadRow]:
    """Rows with `Question`'s fields as columns, in order, as they are read; `source` is the place of each.

    Args:
        name: a file, a folder, or a dataset of the hub (read as a stream).
        split, config: of a folder or a hub dataset.
        among: names of the layouts to expect (`mgpo.data.schemas`); any known one if None.

    Raises:
        FileNotFoundError: a file or folder does not exist, or holds no such split.
        ValueError: a file cannot be read at all.
    """
    for raw in raw_rows(name, split, config):
        yield raw if isinstance(raw, BadRow) else question_row(raw, among)


def unread_columns(name: str, split: str, config: str | None = None, among: Sequence[str] | None = None) -> list[str]:
    """Columns that nothing reads; rows that cannot be read are ignored.

    In JSON the first rows are searched (`LOOKED_AT`), since each may have columns of its own; in tables only the first
    one. Your own rewards get the columns of a row in the project's own layout, but such columns are listed here all the
    same.
    """
    looked_at = LOOKED_AT if _is_json(Path(name), split) else 1
    rows = islice((raw for raw in raw_rows(name, split, config) if isinstance(raw, RawRow)), looked_at)
    kinds = {tuple(raw.columns): raw for raw in rows}  # rows with the same columns are read alike
    return list(dict.fromkeys(column for raw in kinds.values() for column in _unread(raw, among)))


def _is_json(path: Path, split: str) -> bool:
    files = files_of(path, split) if path.is_dir() else [path]
    return not files or any(file.suffix in (".json", ".jsonl") for file in files)


def _unread(raw: RawRow, among: Sequence[str] | None) -> list[str]:
    noting = _Noting(raw.columns)
    try:
        schema = schema_of(tuple(raw.columns), among)
        read = schema.read(noting, raw.root)
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # it is listed among the rows that cannot be used
    passed_on = QUESTION_COLUMNS & read.keys() if schema.name == OWN else frozenset()
    return [column for column in raw.columns if column not in noting.asked | schema.columns | passed_on]


def unread_note(columns: Sequence[str], name: str) -> str:
    """A line that names the columns; empty if there are none."""
    return (
        f"These columns of {name} are not used: {', '.join(map(repr, columns))} (docs/data.md lists those that are)."
        if columns
        else ""
    )


class _Noting(dict[str, Any]):
    """A row that records which of its columns were read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.asked: set[str] = set()

    def __getitem__(self, column: str) -> Any:
        self.asked.add(column)
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:
        self.asked.add(column)
        return super().get(column, default)


_INLINE = re.compile(r"(?:^|[\s(:])A\s*[).:]\s*\S[^\n]*?[\s(,;]B\s*[).:]\s*\S")
"""Choices inside a line: "Options: A: red, B: blue", "(A) red (B) blue"."""


def _refuse_unread_choices(question: Question, columns: Mapping[str, Any]) -> None:
    """Refuse a gold answer of one letter whose choices were not read: "A" would be learned as a word."""
    if question.choices or len(question.answer.strip(" ().:")) != 1 or not question.answer.strip(" ().:").isalpha():
        return
    if lettered(question.question) or _INLINE.search(question.question):
        raise ValueError(
            f"its answer is the letter {question.answer!r} and its choices are part of its text: put them into a column "
            "named choices, as a list"
        )
    for column, value in columns.items():
        if column not in PICTURE_COLUMNS and (lettered(value) or _several_texts(value)):
            raise ValueError(
                f"its answer is the letter {question.answer!r}, and its column {column!r} looks like its choices, but "
                "that column is not read: rename it to choices, or remove it"
            )
    stems = {name[:-1] for name in columns if name[-1:] in ("a", "A")}
    if pair := next((name for name in columns if name[-1:] in ("b", "B") and name[:-1] in stems), None):
        raise ValueError(
            f"its answer is the letter {question.answer!r}, and the columns {pair[:-1]}a, {pair} ... look like its choices: "
            "put them into one column named choices, as a list"
        )


def _several_texts(value: Any) -> bool:
    """Whether a cell holds a list of texts, or texts by letter."""
    if isinstance(value, Mapping):
        return len(value) > 1 and all(len(str(key)) == 1 for key in value) or {"label", "text"} <= value.keys()
    return isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(text, str) for text in value)


def question_row(raw: RawRow, among: Sequence[str] | None = None) -> dict[str, Any] | BadRow:
    """One row with `Question`'s fields, or why it cannot be used. Opens no image, but a path must lead to a file."""
    try:
        row = schema_of(tuple(raw.columns), among).read(raw.columns, raw.root) | {"source": raw.where}
        question = Question.from_row(row)
        if not question.answer.strip():
            raise ValueError("it has no answer")
        _refuse_broken_text(question)
        _refuse_unread_choices(question, raw.columns)
        if taken := sorted(RESERVED & row.keys()):
            raise ValueError(
                f"its column {taken[0]!r} has a name that TRL uses for an argument of reward functions: rename it"
            )
        for image in question.images:
            _refuse_no_image(image)
        row.pop("gold_boxes", None)
        if question.more_images:
            row["more_images"] = list(question.more_images)
        if row.get("gold_image") is not None:  # a table may hold "2" or 2.0, and a column needs one type
            row["gold_image"] = question.gold_image
        return row | {
            "choices": list(question.choices), "category": question.category, "id": question.id,
            "gold_boxes_px_original": [list(box) for box in question.gold_boxes_px_original],
        }  # fmt: skip
    except KeyError as error:
        return BadRow(raw.where, f"it has no {error}")
    except (ValueError, TypeError, AttributeError, OSError, LookupError, ArithmeticError) as error:
        return BadRow(raw.where, shortened(str(error), 500))


def _refuse_no_image(image: Any) -> None:
    if isinstance(image, str):
        if not Path(image).is_file():
            raise ValueError(f"its image {shortened(image)} does not exist")
    elif isinstance(image, Mapping):
        if not isinstance(image.get("bytes"), bytes):
            raise ValueError("its image has neither bytes nor a path")
    elif not isinstance(image, (bytes, Image.Image)):
        raise ValueError(f"its image is neither a path nor a picture, but of type {type(image).__name__}")


def _refuse_broken_text(question: Question) -> None:
    """Refuse half of a character (a lone surrogate): JSON can hold one, but no file and no tokenizer accepts it."""
    for text in (question.question, question.answer, question.category, question.id, *question.choices):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("its text contains half of a character (a lone surrogate)") from error


def shortened(text: str, most: int = 200) -> str:
    """A text, shortened for a message."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def raw_rows(name: str, split: str, config: str | None = None) -> Iterator[RawRow | BadRow]:
    """Rows as they are written, with the place of each."""
    path = Path(name)
    if path.is_dir():
        files = files_of(path, split)
        yield from (row for file in files for row in read_rows(file)) if files else _vstar_folders(path)
    elif path.is_file():
        yield from read_rows(path)
    elif path.suffix in SUFFIXES or name.startswith((".", "/", "~")):
        beside = [other.name for other in path.parent.glob("*")]
        raise FileNotFoundError(f"{path} does not exist.{suggestion(path.name, beside)}")
    else:
        refuse_typo(name)
        yield from _hub_rows(name, split, config)


def how_many_rows(name: str, split: str) -> int | None:
    """How many rows `read_questions` will yield, for a progress bar; None where only reading them tells."""
    path = Path(name)
    files = files_of(path, split) if path.is_dir() else [path] if path.is_file() else []
    counts = [count_rows(file) for file in files]
    return sum(count for count in counts if count is not None) if counts and None not in counts else None


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split in a dataset's folder; none if it is V*'s, whose rows are beside its images.

    These are looked for in order: files named after the split (`train.jsonl`, `data/train-00000-of-00002.parquet`); for
    a test split also `val` and `validation`; V*'s `test_questions.jsonl`, which has no other split; the only file there
    is, unless it is named after another split.

    Raises:
        FileNotFoundError: none or several could be meant; the message lists what is there.
    """
    there = sorted(f for place in (folder, folder / "data") for f in place.glob("*") if f.suffix in SUFFIXES)
    for name in {"test": ("test", "val", "validation")}.get(split, (split,)):
        named = [f for f in there if f.stem == name or f.name.startswith(f"{name}-")]
        if len({f.suffix for f in named}) > 1:
            listed = ", ".join(f.name for f in named)
            raise FileNotFoundError(
                f"{folder} has several files of {split}: {listed}. Give the path of the one you mean."
            )
        if named:
            return named
    if (folder / "test_questions.jsonl").is_file():
        return [folder / "test_questions.jsonl"]
    if any((folder / category).is_dir() for category in VSTAR_FOLDERS):
        return []
    if len(there) == 1 and not _names_another_split(there[0], split):
        return there
    listed = ", ".join(str(f.relative_to(folder)) for f in there[:8]) or "no data file"
    raise FileNotFoundError(
        f"{folder} has no {split}.jsonl, .json, .parquet or .tsv. It contains {listed}. Give the path of a file, or another split."
    )


def _names_another_split(file: Path, split: str) -> bool:
    """Whether a part of a file's name is another split's: `vstar_test`, `train_v1`, `testmini`."""
    parts = [re.sub(r"\d+$", "", part) for part in re.split(r"[-_.\s]+", file.stem.lower())]
    return any(part in names for names in SPLITS if split not in names for part in parts)


def _vstar_folders(folder: Path) -> Iterator[RawRow | BadRow]:
    """V*'s categories, a JSON file beside each image."""
    for category in VSTAR_FOLDERS:
        for file in sorted((folder / category).glob("*.json")):
            image = next((p for suffix in PICTURES if (p := file.with_suffix(suffix)).is_file()), None)
            try:
                row = json.loads(file.read_bytes())
                if not isinstance(row, dict):
                    raise ValueError("it is not a JSON object")
                if image is None:
                    raise ValueError(f"there is no image of the same name beside it ({', '.join(PICTURES)})")
            except ValueError as error:
                yield BadRow(str(file), str(error))
                continue
            yield RawRow(row | {"image": image.name, "category": category}, str(file), file.parent)


def refuse_typo(name: str) -> None:
    """Refuse a name that is no local file and cannot be a dataset of the hub, since those are called owner/name.

    Raises:
        FileNotFoundError: it is raised at once, where a request to the hub would take half a minute.
    """
    if "/" not in name:
        here = [path.name for path in Path().glob("*") if path.is_dir() or path.suffix in SUFFIXES]
        raise FileNotFoundError(
            f"{name!r} is neither a file or folder here nor a hub dataset (those are named owner/name).{suggestion(name, ['needle', *here])}"
            " docs/data.md lists the tasks: needle, vstar, hrbench4k, mme_realworld_lite, ..."
        )


def _hub_rows(name: str, split: str, config: str | None) -> Iterator[RawRow]:
    import datasets

    with fetched_dataset(name):
        data = undecoded(datasets.load_dataset(name, config, split=split, streaming=True))
        for number, row in enumerate(data, 1):
            yield RawRow(row, f"{name} {split} row {number}", Path())


def fetched_dataset(name: str) -> AbstractContextManager[None]:
    """Inside, this dataset of the hub is read; see `mgpo.hub.fetched`."""
    return fetched(name, "dataset", "name FOLDER as the dataset")


def undecoded(data: Any) -> Any:
    """A dataset with undecoded image columns, since `mgpo.images.imaging` decodes images within its limits."""
    import datasets

    for column, kind in (data.features or {}).items():
        if isinstance(kind, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(kind, "feature", None), datasets.Image):
            data = data.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return data

"""Loads training questions by name: the `needle` world, files and folders in any known layout, and hub datasets.

    questions = load_questions("my_data.jsonl")

Everything is read once before a run starts, so that an unusable row stops the run then, with file and row number, and
not hours later. Images are not read until they are shown: paths stay paths, and images inside Parquet files stay in the
files, of which `datasets` maps an Arrow copy into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

from mgpo.data.reading import BadRow, RawRow, by_reason
from mgpo.data.repeats import Repeats
from mgpo.data.schemas import PICTURE_COLUMNS
from mgpo.data.sources import fetched_dataset, files_of, question_row, read_questions, refuse_typo, undecoded
from mgpo.worlds.needle import load_needle, resized

LISTED = 5
ARROW_ERRORS = (ValueError, TypeError, OverflowError, NotImplementedError)
"""pyarrow's own errors are kinds of these."""
PLACEHOLDER = "data:image/png;base64,iVBORw0KGgo="
"""Takes the place of an image inside a file while the rest of its row is checked."""


@dataclass(frozen=True)
class Loaded:
    """The rows that can be read, as a dataset; the place of each of them; the rows that cannot be read; and notes on the rest."""

    questions: Any
    places: Sequence[str]
    bad: list[BadRow]
    notes: Sequence[str] = ()


def load_questions(name: str, split: str = "train", **which: Any) -> Any:
    """A dataset whose rows are questions (see `mgpo.method.question.Question`). Arguments and errors as in `load_rows`.

    Raises:
        ValueError: rows cannot be used; the message names the first of them.
    """
    loaded = load_rows(name, split, **which)
    if loaded.bad:
        raise refused(loaded.bad, len(loaded.places), name)
    return loaded.questions


def load_rows(name: str, split: str = "train", **which: Any) -> Loaded:
    """As `read_all`, with the same arguments, but a dataset without any row that can be read is an error.

    Raises:
        ValueError: the file as a whole cannot be read, or none of its rows can.
        FileNotFoundError: the file or folder does not exist.
    """
    loaded = read_all(name, split, **which)
    if not loaded.places:
        raise refused(loaded.bad, 0, name) if loaded.bad else empty(name)
    return loaded


def read_all(
    name: str,
    split: str = "train",
    seed: int = 0,
    size: int = 2000,
    megapixels: float | None = None,
    backgrounds: str | None = None,
) -> Loaded:
    """All rows of a dataset, read once; no image is opened.

    Args:
        name: `needle`; a file (`.jsonl`, `.json`, `.tsv`, `.parquet`) or a folder in a layout of `mgpo.data.schemas`;
            or a dataset of the Hugging Face hub in one of them.
        split: split to read.
        seed, size: for `needle`: which questions, and how many.
        megapixels, backgrounds: for `needle`: canvas area and a folder of photographs, if not the split's own.

    Returns:
        Rows that can be used and rows that cannot; there may be none.

    Raises:
        ValueError: the file as a whole cannot be read.
        FileNotFoundError: the file or folder does not exist.
    """
    if name == "needle":
        questions = load_needle(split, seed, size, backgrounds, look=resized(split, megapixels))
        return Loaded(questions, [f"needle row {number}" for number in range(1, len(questions) + 1)], [])
    import datasets

    path = Path(name)
    files = files_of(path, split) if path.is_dir() else [path] if path.is_file() else []
    if files and all(file.suffix == ".parquet" and file.stat().st_size for file in files):
        return _mapped(_parquet(files, name), name, files[0].parent)
    if not files and not path.exists() and path.suffix == "" and not name.startswith((".", "/", "~")):
        refuse_typo(name)
        with fetched_dataset(name):
            data = datasets.load_dataset(name, split=split)
        return _mapped(data, name, Path())
    rows: list[dict[str, Any]] = []
    bad: list[BadRow] = []
    repeats = Repeats()
    for row in read_questions(name, split):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            rows.append(row)
            repeats.see(row, row["source"])
    return replace(_in_memory(rows, bad, name), notes=repeats.notes())


def _parquet(files: Sequence[Path], name: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except (*ARROW_ERRORS, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{name} cannot be read: {error.__cause__ or error}") from error


def _in_memory(rows: list[dict[str, Any]], bad: list[BadRow], name: str) -> Loaded:
    """Rows as a dataset, without rows whose values do not fit the type of a column."""
    from datasets import Dataset

    # from_list would keep only the columns of the first row
    columns = dict.fromkeys(column for row in rows for column in row)
    rows = [dict.fromkeys(columns) | row for row in rows]
    try:
        return Loaded(Dataset.from_list(rows), [row["source"] for row in rows], bad)
    except ARROW_ERRORS:
        odd = _of_another_kind(rows, columns)
    rows = [row for number, row in enumerate(rows) if number not in odd]
    try:
        return Loaded(Dataset.from_list(rows), [row["source"] for row in rows], [*bad, *odd.values()])
    except ARROW_ERRORS as error:
        raise ValueError(f"The rows of {name} have values of different types in one column: {error}") from error


def _of_another_kind(rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> dict[int, BadRow]:
    """Rows, by number, with a value whose type does not fit what earlier rows hold in the same column."""
    import pyarrow

    odd: dict[int, BadRow] = {}
    for column in columns:
        held: list[Any] = []  # the first and last value: an empty list fits any list
        for number, row in enumerate(rows):
            if number in odd or row[column] is None:
                continue
            try:
                pyarrow.array([*held, row[column]])
                held = [*held[:1], row[column]]
            except ARROW_ERRORS as error:
                odd[number] = BadRow(
                    row["source"], f"its column {column!r} has a different type than in earlier rows: {error}"
                )
    return odd


def refused(bad: Sequence[BadRow], good: int, name: str) -> ValueError:
    """The error that names the first unusable rows and counts all of them."""
    listed = "\n".join(f"  {line}" for line in by_reason(bad, LISTED))
    return ValueError(f"{len(bad)} of {len(bad) + good} rows of {name} cannot be used:\n{listed}")


def usable(rows: Iterable[dict[str, Any] | BadRow], name: str) -> Iterator[dict[str, Any]]:
    """Yield the usable rows; after the last one, raise an error if there were unusable ones.

    Raises:
        ValueError: some rows cannot be used (the message names the first and counts all), or there are no rows.
    """
    good, bad = 0, []
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            good += 1
            yield row
    if bad:
        raise ValueError(
            f"{refused(bad, good, name)}\nMend these rows, or remove them from the data: `mgpo data check {name} --list FILE` writes all of them into a file."
        )
    if not good:
        raise empty(name)


def empty(name: str) -> ValueError:
    """The error of a dataset without rows."""
    return ValueError(f"{name} is empty: it has no rows, but at least one question is needed.")


def count_usable(rows: Iterable[dict[str, Any] | BadRow], name: str) -> int:
    """How many rows there are, all of them usable; raises the errors of `usable`."""
    return sum(1 for _ in usable(rows, name))


def _mapped(data: Any, name: str, root: Path) -> Loaded:
    """A dataset with embedded images, each row of which is read on access; its texts and answers are checked now."""
    data = undecoded(data)
    embedded = _embedded(data)
    texts = data.remove_columns(embedded)  # else whole images would be read for nothing
    stand_ins = {column: _stand_ins(data.data.column(column)) for column in embedded}
    good, bad, repeats = [], [], Repeats()
    for number, row in enumerate(texts):
        where = f"{name} row {number + 1}"
        read = question_row(RawRow(row | {c: cells[number] for c, cells in stand_ins.items()}, where, root))
        if isinstance(read, BadRow):
            bad.append(read)
        else:
            good.append(number)
            repeats.see(read, where)
    kept = data.select(good) if bad else data
    places = [f"{name} row {number + 1}" for number in good]
    return Loaded(kept.with_transform(_ReadRows(name, root)), places, bad, repeats.notes())


def _embedded(data: Any) -> list[str]:
    """Columns of embedded images that need not be read to check a row."""
    found = [c for c in PICTURE_COLUMNS if c in data.features and not _holds_text(data.features[c])]
    both = {"image", "images"}
    # Whether a row may fill both depends on whether they hold the same image, which stand-ins cannot tell.
    return [c for c in found if c not in both] if both <= set(found) else found


def _stand_ins(column: Any) -> list[Any]:
    """What stands for each cell of a column of embedded images: as many images as it holds, none of them read.

    Empty cells stay empty, also inside a list: how many images a row shows depends on them.
    """
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
        cells = iter(_placeholders(pyarrow.compute.list_flatten(column)))
        lengths = pyarrow.compute.list_value_length(column).to_pylist()
        return [None if length is None else list(islice(cells, length)) for length in lengths]
    return _placeholders(column)


def _placeholders(column: Any) -> list[str | None]:
    import pyarrow
    import pyarrow.compute

    there = column.is_valid()
    if pyarrow.types.is_struct(column.type):  # a struct of bytes and path may be there and hold neither
        parts = [pyarrow.compute.struct_field(column, n).is_valid() for n in range(column.type.num_fields)]
        there = reduce(pyarrow.compute.or_, parts)
    return [PLACEHOLDER if full else None for full in there.to_pylist()]


def _holds_text(kind: Any) -> bool:
    return (
        getattr(kind, "dtype", None) == "string" or getattr(getattr(kind, "feature", None), "dtype", None) == "string"
    )


class _ReadRows:
    """Dataset transform from rows of a known layout to rows of questions. A class, so that processes can receive it."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        raws = [dict(zip(batch, values)) for values in zip(*batch.values())]
        rows = []
        for raw in raws:
            row = question_row(RawRow(raw, self.name, self.root))
            if isinstance(row, BadRow):
                raise ValueError(str(row))
            rows.append(row)
        # a row about one image has fewer columns than one about several
        columns = dict.fromkeys(column for row in rows for column in row)
        return {column: [row.get(column) for row in rows] for column in columns}

"""Reads rows of JSON lines, JSON lists, TSV and Parquet files, one at a time, each with its place in the file.

This module knows formats only; `mgpo.data.schemas` knows what the columns mean. What cannot be read as a row is yielded
as a `BadRow`, not skipped.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".json", ".parquet", ".tsv")
REFERENCE = 64
"""In a TSV, an `image` of at most this length is no image but the index of the row that holds it (VLMEvalKit)."""


@dataclass(frozen=True)
class RawRow:
    """One row: its columns, its place (file and row number, from 1), and the folder that its paths are relative to."""

    columns: dict[str, Any]
    where: str
    root: Path


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its place, and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def by_reason(bad: Sequence[BadRow], most: int) -> list[str]:
    """A line for each reason, with the first row that has it and how many more; at most so many lines, then how many rows they leave out."""
    groups: dict[str, list[str]] = {}
    for row in bad:
        groups.setdefault(row.reason, []).append(row.where)
    lines = []
    for reason, places in list(groups.items())[:most]:
        more = f" and {len(places) - 1:,} more row{'s' * (len(places) > 2)}" if len(places) > 1 else ""
        lines.append(f"{places[0]}{more}: {reason}")
    if left := sum(len(places) for places in list(groups.values())[most:]):
        lines.append(f"and {left:,} more")
    return lines


def read_rows(file: Path) -> Iterator[RawRow | BadRow]:
    """All rows of a file, in order, a few in memory at a time (a JSON list is read whole).

    Raises:
        ValueError: the file's kind is unknown, or the file as a whole cannot be read.
    """
    readers = {".jsonl": _lines, ".json": _json_list, ".tsv": _tsv, ".parquet": _parquet}
    if file.suffix not in readers:
        raise ValueError(f"{file} has an unsupported file type. Supported are: {', '.join(SUFFIXES)}.")
    if file.is_file() and not file.stat().st_size:
        return  # no rows, which callers say better than a parser
    try:
        yield from readers[file.suffix](file)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def count_rows(file: Path) -> int | None:
    """How many rows a file has, for a progress bar; None where that takes as long as reading them, or it cannot be read."""
    try:
        if file.suffix == ".jsonl":
            with file.open("rb") as lines:
                return sum(1 for line in lines if line.strip())
        if file.suffix == ".parquet":
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (OSError, ValueError):
        pass  # `read_rows` says it better
    return None


def _lines(file: Path) -> Iterator[RawRow | BadRow]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _parsed(line, file, number)


def _parsed(line: bytes, file: Path, number: int) -> RawRow | BadRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(f"{file} row {number}", f"it is not JSON: {error}")
    return _object(row, file, number)


def _object(row: Any, file: Path, number: int) -> RawRow | BadRow:
    if isinstance(row, dict):
        return RawRow(row, f"{file} row {number}", file.parent)
    return BadRow(f"{file} row {number}", "it is not a JSON object")


def _json_list(file: Path) -> Iterator[RawRow | BadRow]:
    rows = json.loads(file.read_bytes())
    if not isinstance(rows, list):
        raise ValueError("it does not contain a list of rows")
    for number, row in enumerate(rows, 1):
        yield _object(row, file, number)


def _tsv(file: Path) -> Iterator[RawRow | BadRow]:
    """Rows whose `image` is the index of another row get that row's image."""
    shared: dict[str, str] = {}
    wanted = {row["image"] for _, row in _table(file) if 0 < len(row.get("image") or "") <= REFERENCE}
    if wanted:
        shared = {row["index"]: row["image"] for _, row in _table(file) if row.get("index") in wanted}
    for number, row in _table(file):
        if None in row or None in row.values():
            yield BadRow(f"{file} row {number}", "its number of columns differs from that of the table's header")
        else:
            image = row.get("image")
            row = row | {"image": shared.get(image, image)} if image else row
            yield RawRow(row, f"{file} row {number}", file.parent)


def _table(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # cells may hold whole images
    with file.open(encoding="utf-8", newline="") as lines:
        yield from enumerate(csv.DictReader(lines, delimiter="\t"), 1)


def _parquet(file: Path) -> Iterator[RawRow | BadRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=8):
            for row in batch.to_pylist():
                number += 1
                yield RawRow(row, f"{file} row {number}", file.parent)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error

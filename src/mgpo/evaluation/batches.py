"""The batches of a task on disk: the results file holds the first ones in order, a folder beside it those after a gap.

runs/eval/mine/vstar.jsonl             the first batches
runs/eval/mine/vstar.parts/12.jsonl    a later one, answered while an earlier one was not

Processes answer batches in any order, and a kill can leave any of them out. Each batch is written whole or not at all; the
main process moves it into the results file when all before it are there. A batch's seed and composition depend on its number
alone, so it does not matter which process answers it, or in which start.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mgpo.evaluation.results import append, finished_batches, line_of
from mgpo.files import write_whole

Record = dict[str, Any]


class Batches:
    """What is answered of a task.

    Args:
        file: the results file; what a kill left of an unfinished batch is cut off.
        size: questions per batch.
        total: questions of the task.

    Attributes:
        records: what the results file holds.
    """

    def __init__(self, file: Path, size: int, total: int) -> None:
        self.file, self.size, self.total = file, size, total
        self.folder = file.with_suffix(".parts")
        self.records = finished_batches(file, size, total)
        for number in range(len(self.records) // size):  # moved by a process that died before it deleted them
            part_of(self.folder, number).unlink(missing_ok=True)

    def later(self) -> dict[int, list[Record]]:
        """The batches in the folder, by number."""
        found = {number: self._part(number) for number in self._after_records()}
        return {number: part for number, part in found.items() if part is not None}

    def missing(self) -> list[int]:
        """Numbers of the batches that are not answered."""
        there = self.later()
        return [number for number in self._after_records() if number not in there]

    def join(self, appears: Callable[[Path], bool] = Path.is_file) -> None:
        """Move batches from the folder into the results file, up to the first that is missing.

        Args:
            appears: whether a batch's file is there; it may wait for it.
        """
        for number in self._after_records():
            if not appears(part_of(self.folder, number)) or (part := self._part(number)) is None:
                break
            append(self.file, part)
            self.records += part
            part_of(self.folder, number).unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _after_records(self) -> range:
        if len(self.records) >= self.total:
            return range(0)
        return range(len(self.records) // self.size, -(-self.total // self.size))

    def _part(self, number: int) -> list[Record] | None:
        file = part_of(self.folder, number)
        if not file.is_file():
            return None
        records = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
        # The last batch of a start with a smaller --n is too short for this one.
        return records if len(records) == min(self.size, self.total - number * self.size) else None


def part_of(folder: Path, number: int) -> Path:
    """File of a batch in the folder of a task's parts."""
    return folder / f"{number}.jsonl"


def add_part(folder: Path, number: int, records: list[Record]) -> None:
    """Keep a finished batch; it is on disk when this returns."""
    write_whole(part_of(folder, number), "".join(map(line_of, records)))

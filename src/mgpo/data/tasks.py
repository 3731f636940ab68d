"""Evaluation tasks by name: where each dataset is, which layouts it comes in, and what is reported besides accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mgpo.data.reading import SUFFIXES, BadRow
from mgpo.data.sources import read_questions, unread_columns
from mgpo.errors import suggestion
from mgpo.hub import fetched
from mgpo.method.boxes import iou

Records = list[dict[str, Any]]
"""Lines of a results file (`mgpo.evaluation.evaluate.Result.record`)."""


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        layouts: names in `mgpo.data.schemas`; the project's own is always accepted.
        hub: dataset of the Hugging Face hub.
        split, config: of the dataset.
        files: patterns of the files to download, if the dataset is files rather than rows; it is then read as a folder.
        stem: name of its file in a local folder, where that is not the split's.
        figures: named numbers beyond accuracy, from the records.
    """

    name: str
    layouts: tuple[str, ...]
    hub: str
    split: str = "test"
    config: str | None = None
    files: tuple[str, ...] = ()
    stem: str = ""
    figures: Callable[[Records], dict[str, float]] | None = None

    def rows(self, data: str | None, split: str | None = None) -> Iterator[dict[str, Any] | BadRow]:
        """Questions as rows; rows that cannot be used as `BadRow`.

        Args:
            data: a file or folder in one of the layouts; the hub's dataset if None.
            split: a split other than the task's own.
        """
        with self._fetched(data):
            yield from read_questions(self._place(data), split or self.split, self.config, self.layouts)

    def unread(self, data: str | None, split: str | None = None) -> list[str]:
        """Columns of its data that nothing reads. Arguments as in `rows`."""
        with self._fetched(data):
            return unread_columns(self._place(data), split or self.split, self.config, self.layouts)

    def _fetched(self, data: str | None) -> AbstractContextManager[None]:
        if data or self.name == self.hub:
            return nullcontext()
        use = f"give it by --data FOLDER, or by --data {self.name}=FOLDER beside other tasks"
        return fetched(self.hub, "dataset", use, f"The data of {self.name} ({self.hub} on the hub)")

    def _place(self, data: str | None) -> str:
        if data is None and self.files:
            from huggingface_hub import snapshot_download

            data = snapshot_download(self.hub, repo_type="dataset", allow_patterns=list(self.files))
        if not data:
            return self.hub
        for suffix in SUFFIXES if self.stem else ():
            file = Path(data) / (self.stem + suffix)
            data = str(file) if file.is_file() else data
        return data


def by_columns(records: Records) -> dict[str, float]:
    """MME-RealWorld's two means: over its columns (task and subtask; the paper's "Overall"), and over all questions."""
    columns: dict[str, list[bool]] = {}
    for record in records:
        columns.setdefault(record["category"], []).append(record["correct"])
    return {
        "mean of columns (unweighted, as the paper)": fmean(fmean(right) for right in columns.values()),
        "mean of questions (weighted, as lmms-eval)": fmean(record["correct"] for record in records),
    }


def yes_or_no(records: Records) -> dict[str, float]:
    """POPE's figures; yes is the positive answer. `share of yes` is the share among the model's answers."""
    said = [record["chosen"] == "A" for record in records]
    gold = [record["answer"] == "A" for record in records]
    both = sum(s and g for s, g in zip(said, gold))
    precision, recall = both / max(1, sum(said)), both / max(1, sum(gold))
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {"F1": f1, "precision": precision, "recall": recall, "share of yes": fmean(said)}


def mean_iou(records: Records) -> dict[str, float]:
    """TreeBench's mean IoU: each target's best IoU with the boxes that were looked at, averaged per question."""
    found = []
    for record in records:
        boxes = [tuple(turn["box_px_original"]) for turn in record["turns"] if turn["box_px_original"]]
        targets = [tuple(target) for target in record["gold_boxes"]]
        if targets:
            found.append(fmean(max((iou(box, target) for box in boxes), default=0.0) for target in targets))
    return {"mean IoU": fmean(found)} if found else {}


VISUALPROBE = ("*.json", "data/*", "**/*.jpg", "**/*.png")
TASKS = {
    task.name: task
    for task in (
        Task(
            "vstar",
            ("vstar", "vstar files"),
            "craigwu/vstar_bench",
            files=("test_questions.jsonl", "direct_attributes/*", "relative_position/*"),
        ),
        *(
            Task(
                f"hrbench{size}",
                ("lettered columns",),
                "DreamMr/HR-Bench",
                f"hrbench_{size}",
                "hrbench_version_split",
                stem=f"hr_bench_{size}",
            )
            for size in ("4k", "8k")
        ),
        *(
            Task(name, ("mme-realworld", "mme-realworld json"), hub, "train", figures=by_columns)
            for name, hub in (
                ("mme_realworld", "yifanzhang114/MME-RealWorld-Lmms-eval"),
                ("mme_realworld_lite", "yifanzhang114/MME-RealWorld-lite-lmms-eval"),
            )
        ),
        *(
            Task(
                f"visualprobe_{level}",
                ("problem and solution",),
                f"Mini-o3/VisualProbe_{level.title()}",
                "val",
                files=VISUALPROBE,
            )
            for level in ("easy", "medium", "hard")
        ),
        Task(
            "treebench",
            ("treebench",),
            "HaochenWang/TreeBench",
            "train",
            files=("*.tsv", "*.parquet", "data/*"),
            figures=mean_iou,
        ),
        Task("zoombench", ("zoombench",), "inclusionAI/ZoomBench"),
        Task("pope", ("pope",), "lmms-lab/POPE", figures=yes_or_no),
    )
}


def task_of(name: str) -> Task:
    """A known task, or a new one for a file, folder or hub dataset of any known layout.

    Raises:
        FileNotFoundError: it is none of these, but close to a known task's name; the message names that.
    """
    from mgpo.data.schemas import SCHEMAS

    close = suggestion(name, [*TASKS, "needle"])
    if close and name not in TASKS and "/" not in name and not Path(name).exists():
        raise FileNotFoundError(f"There is no task, file or folder {name!r}.{close}")
    return TASKS.get(name) or Task(name, tuple(schema.name for schema in SCHEMAS), name)

"""A request for an evaluation, and the questions that it asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mgpo.data.loading import count_usable, usable
from mgpo.data.tasks import TASKS, task_of
from mgpo.evaluation.batches import Batches
from mgpo.images.identity import images_digest
from mgpo.method.lenient import Answers
from mgpo.method.question import Question
from mgpo.worlds.needle import make_question, needle_rows, resized

WORLD = "needle"


@dataclass(frozen=True)
class EvaluationRequest:
    """A request for an evaluation, as the command line makes it.

    Settings of the protocol that are None are those that the model was trained with, from the run settings beside it.

    Attributes:
        tasks: names in `mgpo.data.tasks.TASKS`, `needle`, or files, folders and hub datasets in a known layout.
        out: folder of the results.
        beside: if `out` holds results under other settings, use a numbered folder beside it; else they are refused.
        data: where a task's data is, by task; a task that is not in it uses the hub's.
        n: largest number of questions per task; all if None (500 for needle, which has no end).
        sampled: measure boxes in a first turn sampled at temperature 1, not in the greedy episode.
        pictures: number of questions per task whose images are saved for `mgpo view`.
        thinking: `enable_thinking` of the chat template.
        engine, endpoint, seconds: what runs the model: see `mgpo.asking.settings.load_policy`.
        moved: another address of the endpoint than before serves the same model: go on with what is answered.
        refused_is_wrong: count a question that the endpoint refuses as a wrong answer; else it stops the evaluation.
        crop_alone: also ask each question with the image alone that the model looked at.
        judge, judge_model: endpoint and model that judge open answers.
        controls: names in `mgpo.evaluation.controls.Control`, which every question is also asked under.
        answers: whether the accuracy of answers that are read without a box is shown beside the strict one.
    """

    model: str
    tasks: tuple[str, ...]
    out: Path
    data: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    seed: int = 1
    n: int | None = None
    protocol: str | None = None
    max_turns: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    coordinates: str | None = None
    thinking: bool | None = None
    grounding_tokens: int | None = None
    answer_tokens: int | None = None
    batch_size: int = 16
    sampled: bool = False
    pictures: int = 24
    megapixels: float | None = None
    backgrounds: str | None = None
    engine: str = "transformers"
    endpoint: str | None = None
    seconds: float | None = None
    moved: bool = False
    refused_is_wrong: bool = False
    crop_alone: bool = True
    judge: str | None = None
    judge_model: str = ""
    controls: tuple[str, ...] = ()
    answers: Answers = Answers.STRICT
    beside: bool = False

    def places(self) -> dict[str, str]:
        """Where the questions of each task come from, by the stem of its results file."""
        return {Path(file_of(task)).stem: os.path.normpath(self.data.get(task, task)) for task in self.tasks}


def file_of(task: str) -> str:
    """Name of a task's results file."""
    return (task if task in TASKS or task == WORLD else Path(task).stem) + ".jsonl"


def questions_of(request: EvaluationRequest, task: str, first: int = 0) -> Iterator[Question]:
    """The questions of a task from number `first` on."""
    if task == WORLD:
        split = request.split or "test"
        look, count = resized(split, request.megapixels), request.n or 500
        rows: Iterator[dict[str, Any]] = needle_rows(
            split, request.seed, count - first, first, request.backgrounds, look
        )
    else:
        rows = islice(usable(task_of(task).rows(request.data.get(task), request.split), task), first, request.n)
    return (Question.from_row(row) for row in rows)


def batches_of(request: EvaluationRequest, task: str, numbers: list[int]) -> Iterator[tuple[int, list[Question]]]:
    """The batches with these numbers, in order. Only the needle world makes none of the questions between them."""
    questions, at = questions_of(request, task), 0
    for number in numbers:
        start = number * request.batch_size
        if task == WORLD and start != at:
            questions, at = questions_of(request, task, start), start
        batch = list(islice(questions, start - at, start - at + request.batch_size))
        at = start + len(batch)
        yield number, batch


def total_of(request: EvaluationRequest, task: str) -> int:
    """How many questions a task has. Reads all of its rows, so that bad ones are reported before anything is asked."""
    if task == WORLD:
        make_question(request.split or "test", request.seed, 0)  # refuses a split that does not exist
        return request.n or 500
    there = count_usable(task_of(task).rows(request.data.get(task), request.split), request.data.get(task, task))
    return min(there, request.n or there)


def refuse_other_data(request: EvaluationRequest, task: str, done: Batches) -> None:
    """Refuse to go on with records of questions that have changed."""
    records = dict(enumerate(done.records))
    for number, part in done.later().items():
        records |= dict(enumerate(part, number * request.batch_size))
    for place, question in enumerate(islice(questions_of(request, task), max(records, default=-1) + 1)):
        if place not in records:
            continue
        record = records[place]
        now = {
            "id": question.id,
            "question": question.question,
            "choices": list(question.choices),
            "answer": question.answer,
        }
        if "images_digest" in record:
            now["images_digest"] = images_digest(question.images)
        changed = [key for key, value in now.items() if record[key] != value]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{done.file} was made from other data: question number {place + 1} has changed ({key}: {record[key]!r} -> "
                f"{now[key]!r}). Choose another --out, or delete the file."
            )

"""`mgpo eval`: evaluates a policy on named tasks, with results on disk that a second start resumes, and prints a table.

Example: `mgpo eval --model runs/mine --tasks vstar,hrbench4k --out runs/eval/mine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mgpo.asking.settings import limits_for, load_policy, protocol_for, refuse_unknown_policy
from mgpo.data.loading import count_usable, usable
from mgpo.data.sources import unread_note
from mgpo.data.tasks import TASKS, task_of
from mgpo.errors import RunError
from mgpo.evaluation.batches import Batches, add_part
from mgpo.evaluation.controls import Control, chosen_controls, controls_beside, refuse_unknown_controls
from mgpo.evaluation.evaluate import Result, adaptive_shares, evaluate_batch, lenient_share, summarise
from mgpo.evaluation.judge import Judge
from mgpo.evaluation.processes import Processes, appears, processes
from mgpo.evaluation.results import add_summary, begin, weights_of
from mgpo.evaluation.tables import result_tables
from mgpo.images.identity import images_digest
from mgpo.method.lenient import Answers
from mgpo.method.protocol import Method, Protocol, method_named
from mgpo.method.question import Question
from mgpo.policies.names import trained_with
from mgpo.policies.turn_loop import TurnLimits
from mgpo.runs.folder import only_one
from mgpo.runs.trajectories import with_pictures
from mgpo.worlds.needle import make_question, needle_rows, resized

WORLD = "needle"


@dataclass(frozen=True)
class EvaluationRequest:
    """A request for an evaluation, as the command line makes it.

    Settings of the protocol that are None are those that the model was trained with, from the run settings beside it.

    Attributes:
        tasks: names in `mgpo.data.tasks.TASKS`, `needle`, or files, folders and hub datasets in a known layout.
        out: folder of the results.
        data: where a task's data is, by task; a task that is not in it uses the hub's.
        n: largest number of questions per task; all if None (500 for needle, which has no end).
        sampled: measure boxes in a first turn sampled at temperature 1, not in the greedy episode.
        pictures: number of questions per task whose images are saved for `mgpo view`.
        thinking: `enable_thinking` of the chat template.
        engine, endpoint: what runs the model: see `mgpo.asking.settings.load_policy`.
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
    judge: str | None = None
    judge_model: str = ""
    controls: tuple[str, ...] = ()
    answers: Answers = Answers.STRICT


def run_evaluation(request: EvaluationRequest, console: Console) -> list[dict[str, Any]]:
    """Evaluate one policy on all tasks; prints a table and returns its rows.

    Where a launcher has started several processes, they share the questions, and the main process prints.

    Raises:
        ValueError: rows cannot be used, or the folder holds results under other settings. It is raised before any
            question is asked.
        RunError: another process of this evaluation has ended.
    """
    files = [file_of(task) for task in request.tasks]
    for task, name in zip(request.tasks, files):
        if files.count(name) > 1:
            raise ValueError(
                f"{task} and another task would both be saved as {name}. Evaluate them one by one, each with its own --out."
            )
    refuse_unknown_policy(request.model, request.engine, request.endpoint, request.thinking)
    refuse_unknown_controls(request.controls)
    if request.protocol is not None:
        method_named(request.protocol)
    with processes() as team:
        if team.count > 1 and request.engine == "vllm" and not request.endpoint:
            raise ValueError(
                "--engine vllm is not split over processes. Start a server, vllm serve MODEL --data-parallel-size N, and "
                "evaluate it by --endpoint; or run mgpo eval --engine vllm in one process."
            )
        return _evaluate(request, console if team.is_main else Console(quiet=True), team)


def _totals(request: EvaluationRequest, console: Console) -> dict[str, int]:
    """How many questions each task has; columns of its rows that are not read are named."""
    totals = {task: _total(request, task) for task in request.tasks}
    for task in request.tasks:
        unread = [] if task == WORLD else task_of(task).unread(request.data.get(task), request.split)
        if unread:
            console.print(unread_note(unread, request.data.get(task, task)), markup=False, soft_wrap=True)
    return totals


def _evaluate(request: EvaluationRequest, console: Console, team: Processes) -> list[dict[str, Any]]:
    totals = team.from_main(lambda: _totals(request, console))
    policy, trained = (
        load_policy(request.model, request.engine, request.endpoint, request.thinking),
        trained_with(request.model),
    )
    protocol = protocol_for(
        policy,
        request.protocol,
        request.max_turns,
        request.min_pixels,
        request.max_pixels,
        request.coordinates,
        trained,
    )
    limits = limits_for(trained, request.grounding_tokens, request.answer_tokens)
    controls = chosen_controls(request.controls, protocol, policy)
    settings = {
        "model": request.model, "weights": weights_of(Path(request.model)), "protocol": str(protocol.method),
        "max_turns": protocol.turns, "min_pixels": protocol.budget.min_pixels, "pixel_budget": protocol.budget.max_pixels,
        "grounding_tokens": limits.grounding, "answer_tokens": limits.answer, "batch_size": request.batch_size,
        "sampled": request.sampled, "seed": request.seed, "split": request.split, "data": request.data,
        "megapixels": request.megapixels, "backgrounds": request.backgrounds,
        "controls": [str(control) for control in controls] or None, "engine": request.engine, "endpoint": request.endpoint, "judge": request.judge and f"{request.judge_model} at {request.judge}",
    }  # fmt: skip
    settings |= {k: v for k in ("coordinates", "thinking") if (v := getattr(request, k)) is not None}
    judge = _judge(request, team)  # refuses a URL that holds a secret, before it is written anywhere
    team.from_main(lambda: begin(request.out, settings))
    team.see(request.out / "settings.json")
    asker = Asker(policy, protocol, limits, controls, judge)
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        only_one(request.out) if team.is_main else nullcontext(),
        Progress(*columns, console=console) as progress,
    ):
        for task in request.tasks:
            bar = progress.add_task(task, total=totals[task])
            records = _finish(request, task, totals[task], asker, team, progress, bar)
            rows.append(team.from_main(partial(_summary, request, task, records, protocol, trained)))
            if team.is_main:
                add_summary(request.out, rows[-1])
    console.print(result_tables(rows, request.model))
    return rows


def file_of(task: str) -> str:
    """Name of a task's results file."""
    return (task if task in TASKS or task == WORLD else Path(task).stem) + ".jsonl"


def _questions(request: EvaluationRequest, task: str, first: int = 0) -> Iterator[Question]:
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


def _batches(request: EvaluationRequest, task: str, numbers: list[int]) -> Iterator[tuple[int, list[Question]]]:
    """The batches with these numbers, in order. Only the needle world makes none of the questions between them."""
    questions, at = _questions(request, task), 0
    for number in numbers:
        start = number * request.batch_size
        if task == WORLD and start != at:
            questions, at = _questions(request, task, start), start
        batch = list(islice(questions, start - at, start - at + request.batch_size))
        at = start + len(batch)
        yield number, batch


def _total(request: EvaluationRequest, task: str) -> int:
    """How many questions a task has. Reads all of its rows, so that bad ones are reported before anything is asked."""
    if task == WORLD:
        make_question(request.split or "test", request.seed, 0)  # refuses a split that does not exist
        return request.n or 500
    there = count_usable(task_of(task).rows(request.data.get(task), request.split), request.data.get(task, task))
    return min(there, request.n or there)


@dataclass(frozen=True)
class Asker:
    """Asks the questions of a batch: the policy, and how it is asked and judged."""

    policy: Any
    protocol: Protocol
    limits: TurnLimits
    controls: list[Control]
    judge: Judge | None

    def records(
        self, request: EvaluationRequest, stem: str, number: int, batch: list[Question]
    ) -> list[dict[str, Any]]:
        """The records of a batch, with pictures of the first questions of the task."""
        results = evaluate_batch(
            self.policy, batch, self.protocol, self.limits, number, request.seed, request.sampled, self.controls
        )
        found = []
        for place, result in enumerate(results, number * request.batch_size):
            record = _judged(result.record(), self.judge)
            if place < request.pictures:
                record = with_pictures(record, result.episode, request.out, f"{stem}_{place}")
            found.append(record)
        return found


def _finish(
    request: EvaluationRequest, task: str, total: int, asker: Asker, team: Processes, progress: Progress, bar: Any
) -> list[dict[str, Any]]:
    """Answer the questions that are not answered yet, this process its share; in the main process, all records in order."""
    file = request.out / file_of(task)
    done = Batches(file, request.batch_size, total) if team.is_main else None

    def begun() -> list[int]:
        assert done is not None
        _refuse_other_data(request, task, done)
        done.join()
        missing = done.missing()
        if answered := total - sum(min(request.batch_size, total - number * request.batch_size) for number in missing):
            told = f"{task}: skipping {answered} of {total} questions, which are already answered"
            progress.console.print(told, markup=False)
        if len(missing) < team.count and missing and team.count > 1:
            few = f"{task}: {len(missing)} batches for {team.count} processes; a smaller --batch-size would use all of them"
            progress.console.print(few, markup=False, soft_wrap=True)
        return missing

    mine = team.from_main(begun)[team.rank :: team.count]
    if done is not None:
        progress.update(bar, completed=len(done.records))
    folder = file.with_suffix(".parts")
    for number, batch in _batches(request, task, mine):
        add_part(folder, number, asker.records(request, file.stem, number, batch))
        if done is not None:
            done.join()
            progress.update(bar, completed=len(done.records))
    team.wait()
    if done is None:
        return []
    done.join(appears)
    progress.update(bar, completed=len(done.records))
    if len(done.records) != total:
        raise RunError(
            f"{task}: {len(done.records)} of {total} answers can be seen in {request.out}. It must be a folder that all machines share; "
            "start the evaluation again to finish it."
        )
    return done.records


def _refuse_other_data(request: EvaluationRequest, task: str, done: Batches) -> None:
    """Refuse to go on with records of questions that have changed."""
    records = dict(enumerate(done.records))
    for number, part in done.later().items():
        records |= dict(enumerate(part, number * request.batch_size))
    for place, question in enumerate(islice(_questions(request, task), max(records, default=-1) + 1)):
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
                f"{done.file} was made from other data: question {question.id!r} has changed ({key}: {record[key]!r} -> "
                f"{now[key]!r}). Choose another --out, or delete the file."
            )


def _judge(request: EvaluationRequest, team: Processes) -> Judge | None:
    """The judge; each process keeps its verdicts in a file of its own, and knows those of all."""
    if not request.judge:
        return None
    own = request.out / ("judge.jsonl" if team.is_main else f"judge/{team.rank}.jsonl")
    known = [request.out / "judge.jsonl", *sorted((request.out / "judge").glob("*.jsonl"))]
    return Judge(request.judge, request.judge_model, own, known)


def _judged(record: dict[str, Any], judge: Judge | None) -> dict[str, Any]:
    """A record; if it is an open answer that does not match, with the judge's verdict."""
    if judge is None or record["choices"] or record["correct"] or not record["given"]:
        return record
    verdict = judge.same(record["question"], record["answer"], record["given"])
    return record | {"correct": verdict, "judged": verdict}


def _summary(request: EvaluationRequest, task: str, records: list, protocol: Protocol, trained: dict) -> dict[str, Any]:
    split = request.split or "test" if task == WORLD else request.split or task_of(task).split
    named = {
        "task": task, "split": split, "model": request.model, "method": trained.get("method", "base"), "seed": request.seed,
        "boxes": "sampled" if request.sampled else "greedy",
    }  # fmt: skip
    row = summarise([Result.from_record(record) for record in records], protocol, **named)
    figures = None if task == WORLD else task_of(task).figures
    row["figures"] = figures(records) if figures else {}
    if protocol.method is Method.ADAPTIVE:
        row["figures"] |= adaptive_shares(records)
    if request.answers is Answers.LENIENT:
        row |= lenient_share(records)
    row["controls"] = controls_beside(records)
    row["judged"] = sum("judged" in record for record in records)
    row["seconds_per_question"] = sum(record["seconds"] for record in records) / len(records)
    return row

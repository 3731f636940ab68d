"""`mgpo eval`: evaluates a policy on named tasks, with results on disk that a second start resumes, and prints a table.

Example: `mgpo eval --model runs/mine --tasks vstar,hrbench4k --out runs/eval/mine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from mgpo.asking.settings import limits_for, load_policy, protocol_for
from mgpo.data.loading import count_usable, usable
from mgpo.data.sources import unread_note
from mgpo.data.tasks import TASKS, task_of
from mgpo.evaluation.controls import Control, chosen_controls, controls_beside
from mgpo.evaluation.evaluate import Result, adaptive_shares, evaluate_batches, summarise
from mgpo.evaluation.judge import Judge
from mgpo.evaluation.results import add_summary, append, begin, finished_batches, weights_of
from mgpo.images.identity import images_digest
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.policies.loading import trained_with
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


def run_evaluation(request: EvaluationRequest, console: Console) -> list[dict[str, Any]]:
    """Evaluate one policy on all tasks; prints a table and returns its rows.

    Raises:
        ValueError: rows cannot be used, or the folder holds results under other settings. It is raised before any
            question is asked.
    """
    files = [file_of(task) for task in request.tasks]
    for task, name in zip(request.tasks, files):
        if files.count(name) > 1:
            raise ValueError(
                f"{task} and another task would both be saved as {name}. Evaluate them one by one, each with its own --out."
            )
    totals = {task: _total(request, task) for task in request.tasks}
    for task in request.tasks:
        unread = [] if task == WORLD else task_of(task).unread(request.data.get(task), request.split)
        if unread:
            console.print(unread_note(unread, request.data.get(task, task)), markup=False, soft_wrap=True)
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
    judge = Judge(request.judge, request.judge_model, request.out / "judge.jsonl") if request.judge else None
    begin(request.out, settings)
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for task in request.tasks:
            bar = progress.add_task(task, total=totals[task])
            records = _finish(request, task, totals[task], policy, protocol, limits, controls, judge, progress, bar)
            rows.append(_summary(request, task, records, protocol, trained))
            add_summary(request.out, rows[-1])
    console.print(result_tables(rows, request.model))
    return rows


def file_of(task: str) -> str:
    """Name of a task's results file."""
    return (task if task in TASKS or task == WORLD else Path(task).stem) + ".jsonl"


def _questions(request: EvaluationRequest, task: str) -> Iterator[Question]:
    if task == WORLD:
        split = request.split or "test"
        look, count = resized(split, request.megapixels), request.n or 500
        rows: Iterator[dict[str, Any]] = needle_rows(split, request.seed, count, 0, request.backgrounds, look)
    else:
        rows = usable(task_of(task).rows(request.data.get(task), request.split), task)
    return (Question.from_row(row) for row in islice(rows, request.n))


def _total(request: EvaluationRequest, task: str) -> int:
    """How many questions a task has. Reads all of its rows, so that bad ones are reported before anything is asked."""
    if task == WORLD:
        make_question(request.split or "test", request.seed, 0)  # refuses a split that does not exist
        return request.n or 500
    there = count_usable(task_of(task).rows(request.data.get(task), request.split), request.data.get(task, task))
    return min(there, request.n or there)


def _finish(
    request: EvaluationRequest, task: str, total: int, policy: Any, protocol: Protocol, limits: Any,
    controls: list[Control], judge: Any, progress: Progress, bar: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Answer the questions that a results file does not hold yet; returns all of its records, in order."""
    file, size = request.out / file_of(task), request.batch_size
    records = finished_batches(file, size, total)
    questions = _questions(request, task)
    for record, question in zip(records, questions):  # the data must not have changed
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
                f"{file} was made from other data: question {question.id!r} has changed ({key}: {record[key]!r} -> "
                f"{now[key]!r}). Choose another --out, or delete the file."
            )
    progress.update(bar, completed=len(records))
    if records:
        progress.console.print(
            f"{task}: skipping {len(records)} of {total} questions, which are already answered", markup=False
        )
    first = len(records) // size
    if len(records) < total:
        for batch in evaluate_batches(
            policy, questions, protocol, limits, size, request.seed, request.sampled, first, controls
        ):
            new = [_judged(result.record(), judge) for result in batch]
            for number, result in enumerate(batch[: max(0, request.pictures - len(records))]):
                stem = f"{file.stem}_{len(records) + number}"
                new[number] = with_pictures(new[number], result.episode, request.out, stem)
            append(file, new)
            records += new
            progress.advance(bar, len(new))
    return records


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
    row["controls"] = controls_beside(records)
    row["judged"] = sum("judged" in record for record in records)
    row["seconds_per_question"] = sum(record["seconds"] for record in records) / len(records)
    return row


def result_tables(rows: list[dict[str, Any]], model: str) -> Group:
    """Tables in percent: a row per task, then the controls, then each task's categories and figures."""
    budgets = ", ".join(sorted({f"{row['min_pixels']:,} to {row['pixel_budget']:,}" for row in rows}))
    protocol = ", ".join(sorted({row["protocol"] for row in rows}))
    title = f"{model}, {protocol}, {budgets} pixels per image, in percent"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    heads = ("accuracy", "95 %", "chance", "same\nletter", "valid\nbox", "hit", "IoU", "crop\narea", "crop\nalone")
    table.add_column("task", overflow="fold")
    for head in ("n", *heads):
        table.add_column(head, justify="right", no_wrap=True)
    parts = Table("task", "part", Column("accuracy", justify="right"), box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        low, high = row["ci95"]
        cells = [row["accuracy"], None, row["chance"], row["majority"], row["valid_box_rate"], row["hit_rate"], row["iou"],
                 row["crop_area"], row["crop_only_accuracy"]]  # fmt: skip
        texts = [_percent(cell) for cell in cells]
        texts[1] = f"{100 * low:.0f}-{100 * high:.0f}"
        table.add_row(Text(row["task"], "bold"), str(row["n"]), *texts)
        categories = row["by_category"] if len(row["by_category"]) > 1 else {}
        for name, share in (categories | row["figures"]).items():
            parts.add_row(Text(row["task"], "dim"), Text(name), _percent(share))
    controlled = [controls_table(row["task"], row["controls"]) for row in rows if row.get("controls")]
    return Group(table, *controlled, *([parts] if parts.row_count else []))


def controls_table(task: str, controls: dict[str, Any]) -> Table:
    """How much the look contributed in a task: a row per control, in percent and percentage points."""
    title = f"{task}: the same questions with the look and under each control, in percent"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("control", no_wrap=True)
    for head in ("n", "look", "control", "look -\ncontrol", "95 %", "gained", "harmed", "p"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, found in controls.items():
        if found is None:  # it applied to no question, e.g. no gold boxes
            table.add_row(name, "0", *["-"] * 7)
            continue
        low, high = (100 * end for end in found["ci95"])
        table.add_row(
            name, str(found["n"]), _percent(found["with_look"]), _percent(found["accuracy"]),
            f"{100 * found['difference']:+.1f}", f"{low:+.0f} to {high:+.0f}", str(found["gained"]),
            str(found["harmed"]), f"{found['p']:.1g}",
        )  # fmt: skip
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

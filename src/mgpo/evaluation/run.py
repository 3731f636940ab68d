"""`mgpo eval`: evaluates a policy on named tasks, with results on disk that a second start resumes, and prints a table.

Example: `mgpo eval --model runs/mine --tasks vstar,hrbench4k --out runs/eval/mine`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mgpo.asking.settings import limits_for, load_policy, protocol_for, refuse_unknown_policy
from mgpo.data.sources import unread_note
from mgpo.data.tasks import task_of
from mgpo.errors import RunError
from mgpo.evaluation.batches import Batches, add_part
from mgpo.evaluation.controls import Control, chosen_controls, controls_beside, refuse_unknown_controls
from mgpo.evaluation.evaluate import Result, adaptive_shares, evaluate_batch, lenient_share, summarise
from mgpo.evaluation.judge import KEY as JUDGE_KEY
from mgpo.evaluation.judge import Judge
from mgpo.evaluation.processes import Processes, appears, processes
from mgpo.evaluation.request import WORLD, EvaluationRequest, batches_of, file_of, refuse_other_data, total_of
from mgpo.evaluation.results import add_summary, claim, weights_of
from mgpo.evaluation.tables import result_tables
from mgpo.method.episode import End
from mgpo.method.lenient import Answers
from mgpo.method.protocol import Method, Protocol, method_named
from mgpo.method.question import Question
from mgpo.policies.client import Refused, refuse_bad_address
from mgpo.policies.names import trained_with
from mgpo.policies.turn_loop import TurnLimits
from mgpo.runs.trajectories import with_pictures


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
    if request.judge:
        refuse_bad_address(request.judge, JUDGE_KEY)  # before anything is written
    with processes() as team:
        if team.count > 1 and request.engine == "vllm" and not request.endpoint:
            raise ValueError(
                "--engine vllm is not split over processes. Start a server, vllm serve MODEL --data-parallel-size N, and "
                "evaluate it by --endpoint; or run mgpo eval --engine vllm in one process."
            )
        return _evaluate(request, console if team.is_main else Console(quiet=True), team)


def _totals(request: EvaluationRequest, console: Console) -> dict[str, int]:
    """How many questions each task has; columns of its rows that are not read are named."""
    totals = {task: total_of(request, task) for task in request.tasks}
    for task in request.tasks:
        unread = [] if task == WORLD else task_of(task).unread(request.data.get(task), request.split)
        if unread:
            console.print(unread_note(unread, request.data.get(task, task)), markup=False, soft_wrap=True)
    return totals


def _evaluate(request: EvaluationRequest, console: Console, team: Processes) -> list[dict[str, Any]]:
    totals = team.from_main(lambda: _totals(request, console))
    policy = load_policy(
        request.model, request.engine, request.endpoint, request.thinking, request.seconds, request.refused_is_wrong
    )
    trained = trained_with(request.model)
    protocol = protocol_for(
        policy,
        request.protocol,
        request.max_turns,
        request.min_pixels,
        request.max_pixels,
        request.coordinates,
        trained,
    )
    limits = limits_for(trained, protocol, request.grounding_tokens, request.answer_tokens)
    controls = chosen_controls(request.controls, protocol, policy)
    settings = {
        "model": request.model, "weights": weights_of(Path(request.model)), "protocol": str(protocol.method),
        "max_turns": protocol.turns, "min_pixels": protocol.budget.min_pixels, "pixel_budget": protocol.budget.max_pixels,
        "grounding_tokens": limits.grounding, "answer_tokens": limits.answer, "batch_size": request.batch_size,
        "sampled": request.sampled, "seed": request.seed, "split": request.split, "data": request.places(),
        "megapixels": request.megapixels, "backgrounds": request.backgrounds,
        "controls": [str(control) for control in controls] or None, "engine": request.engine, "endpoint": request.endpoint, "judge": request.judge and f"{request.judge_model} at {request.judge}",
    }  # fmt: skip
    settings |= {k: v for k in ("coordinates", "thinking") if (v := getattr(request, k)) is not None}
    settings |= {} if request.crop_alone else {"crop_alone": False}
    with ExitStack() as held:
        folder, note = team.from_main(lambda: claim(request.out, settings, held, request.beside, request.moved))
        if note:
            console.print(note, markup=False, soft_wrap=True)
        team.see(folder / "settings.json")
        request = replace(request, out=folder)
        asker = Asker(policy, protocol, limits, controls, _judge(request, team))
        return _ask_all(request, totals, asker, trained, console, team)


def _ask_all(
    request: EvaluationRequest,
    totals: dict[str, int],
    asker: Asker,
    trained: dict[str, Any],
    console: Console,
    team: Processes,
) -> list[dict[str, Any]]:
    """Ask the questions of all tasks, print the tables, and return a row per task."""
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for task in request.tasks:
            bar = progress.add_task(task, total=totals[task])
            records = _finish(request, task, totals[task], asker, team, progress, bar)
            rows.append(team.from_main(partial(_summary, request, task, records, asker.protocol, trained)))
            if team.is_main and not add_summary(request.out, rows[-1], file_of(task)):
                kept = f"{task}: summary.json keeps its row over more questions, from an earlier start"
                console.print(kept, markup=False, soft_wrap=True)
    console.print(result_tables(rows, request.model))
    console.print(f"results: {request.out}", markup=False, soft_wrap=True)
    return rows


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
            self.policy, batch, self.protocol, self.limits, number, request.seed, request.sampled, self.controls,
            request.crop_alone,
        )  # fmt: skip
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
        refuse_other_data(request, task, done)
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
    for number, batch in batches_of(request, task, mine):
        try:
            records = asker.records(request, file.stem, number, batch)
        except ConnectionError as error:
            raise ConnectionError(_kept(request, task, number, total, done, error)) from error
        add_part(folder, number, records)
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


def _kept(
    request: EvaluationRequest, task: str, number: int, total: int, done: Batches | None, error: ConnectionError
) -> str:
    """What a server's failure says, at which questions it came, and that the answers until then are kept."""
    first = number * request.batch_size + 1
    told = f"{error} It was asked questions {first} to {min(first + request.batch_size - 1, total)} of {task}."
    if done is not None and done.records:
        told += f" {len(done.records)} answers are kept in {request.out}."
    if not isinstance(error, Refused):
        return f"{told} The same command goes on from there."
    raised = "Let the server take more (vllm serve --max-model-len), or lower --max-pixels or --answer-tokens"
    return f"{told} {raised}" + (
        "." if request.refused_is_wrong else "; or count such questions as wrong by --refused-is-wrong."
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
    row["cut_off_answers"] = sum(record["end"] == End.TRUNCATED for record in records)
    row["cut_off_grounding"] = sum(turn["truncated"] for record in records for turn in record["turns"][:-1])
    row["refused"] = sum(bool(record.get("refused")) for record in records)
    row["judged"] = sum("judged" in record for record in records)
    row["seconds_per_question"] = sum(record["seconds"] for record in records) / len(records)
    return row

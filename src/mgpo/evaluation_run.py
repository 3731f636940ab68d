"""`mgpo eval`: a named task, a policy, a progress bar, a row of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mgpo.asking import protocol_for
from mgpo.data.loading import load_questions
from mgpo.data.question import Question
from mgpo.engines.local import LocalPolicy
from mgpo.evaluation import evaluate, summarise
from mgpo.report import print_results
from mgpo.rollout import TurnLimits
from mgpo.worlds.needle import needle_rows


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate on what, as the command line asks for it; `n` questions at most."""

    model: str
    task: str
    split: str
    seed: int
    n: int
    protocol: str = "mgpo"
    max_turns: int = 2
    max_pixels: int | None = None
    limits: TurnLimits = TurnLimits()
    batch_size: int = 50


def run_evaluation(request: EvaluationRequest, console: Console) -> dict[str, Any]:
    """Evaluate one policy on one split; prints a table and returns its row."""
    policy = LocalPolicy.load(request.model)
    protocol = protocol_for(policy, request.protocol, request.max_turns, request.max_pixels)
    policy.set_budget(protocol.budget)
    if request.task == "needle":
        rows, total = needle_rows(request.split, request.seed, request.n), request.n
    else:
        data = load_questions(request.task, request.split)
        total = min(request.n, len(data))
        rows = (data[i] for i in range(total))
    with Progress(console=console) as progress:
        bar = progress.add_task(f"{request.task}/{request.split}", total=total)
        results = evaluate(
            policy,
            (Question.from_row(row) for row in rows),
            protocol,
            request.limits,
            request.batch_size,
            request.seed,
            on_batch=lambda count: progress.advance(bar, count),
        )
    named = {"method": request.protocol, "split": request.split, "seed": request.seed}
    row = summarise(results, protocol, **named, task=request.task, model=request.model)
    print_results([row], console)
    return row

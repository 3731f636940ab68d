"""`mgpo eval`: a named task, a policy, a progress bar, a row of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mgpo.asking import limits_for, protocol_for, trained_with
from mgpo.data.loading import load_questions
from mgpo.data.question import Question
from mgpo.engines.local import LocalPolicy
from mgpo.evaluation import evaluate, summarise
from mgpo.report import print_results
from mgpo.worlds.needle import needle_rows, resized


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate on what, as the command line asks for it; `n` questions at most.

    What is None is as the model was trained: the settings of its run lie beside it.
    """

    model: str
    task: str
    split: str
    seed: int
    n: int
    protocol: str | None = None
    max_turns: int | None = None
    max_pixels: int | None = None
    grounding_tokens: int | None = None
    answer_tokens: int | None = None
    batch_size: int = 50
    megapixels: float | None = None
    backgrounds: str | None = None


def run_evaluation(request: EvaluationRequest, console: Console) -> dict[str, Any]:
    """Evaluate one policy on one split; prints a table and returns its row."""
    policy, trained = LocalPolicy.load(request.model), trained_with(request.model)
    protocol = protocol_for(policy, request.protocol, request.max_turns, request.max_pixels, trained)
    limits = limits_for(trained, request.grounding_tokens, request.answer_tokens)
    policy.set_budget(protocol.budget)
    if request.task == "needle":
        look, total = resized(request.split, request.megapixels), request.n
        rows = needle_rows(request.split, request.seed, request.n, 0, request.backgrounds, look)
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
            limits,
            request.batch_size,
            request.seed,
            on_batch=lambda count: progress.advance(bar, count),
        )
    named = {"method": trained.get("method", "base"), "split": request.split, "seed": request.seed}
    row = summarise(results, protocol, **named, task=request.task, model=request.model)
    print_results([row], console)
    return row

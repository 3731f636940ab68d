"""`mgpo eval`: a named task, a policy, a progress bar, a row of results."""

from __future__ import annotations

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


def run_evaluation(
    model: str,
    task: str,
    split: str,
    seed: int,
    n: int,
    protocol_name: str,
    max_turns: int,
    max_pixels: int | None,
    grounding_tokens: int,
    answer_tokens: int,
    batch_size: int,
    console: Console,
) -> dict[str, Any]:
    """Evaluate one policy on one split; prints a table and returns its row."""
    policy = LocalPolicy.load(model)
    protocol = protocol_for(policy, protocol_name, max_turns, max_pixels)
    policy.set_budget(protocol.budget)
    if task == "needle":
        rows, total = needle_rows(split, seed, n), n
    else:
        data = load_questions(task, split)
        total = min(n, len(data))
        rows = (data[i] for i in range(total))
    questions = (Question.from_row(row) for row in rows)
    limits = TurnLimits(grounding_tokens, answer_tokens)
    with Progress(console=console) as progress:
        bar = progress.add_task(f"{task}/{split}", total=total)
        results = evaluate(
            policy, questions, protocol, limits, batch_size, seed, on_batch=lambda count: progress.advance(bar, count)
        )
    row = summarise(results, protocol, method=protocol_name, split=split, seed=seed, task=task, model=model)
    print_results([row], console)
    return row

"""Throughput of `mgpo eval`, against asking one question after the other.

    python -m benchmarks.evaluate --out evaluate.json

The peer is the loop that one writes first: the same model, the same two turns and the same crop-only question, one
question at a time. Ratios are questions per second, ours / peer, medians over pairs; both give the same answers, which is
checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mgpo.asking.settings import protocol_for
from mgpo.evaluation.evaluate import Result, evaluate_batches
from mgpo.method.question import Question
from mgpo.policies.local import LocalPolicy
from mgpo.policies.turn_loop import TurnLimits
from mgpo.worlds.needle import needle_rows

LIMITS = TurnLimits(28, 12)


def ask(policy: LocalPolicy, questions: list[Question], protocol: Any, batch_size: int) -> tuple[float, list[Result]]:
    """Questions per second, and what was answered."""
    start = time.perf_counter()
    batches = evaluate_batches(policy, questions, protocol, LIMITS, batch_size, sampled=False)
    results = [result for batch in batches for result in batch]
    return len(questions) / (time.perf_counter() - start), results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("evaluate.json"))
    parser.add_argument("--model", default="mgpo-tiny")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    policy = LocalPolicy.load(args.model)
    protocol = protocol_for(policy)
    questions = [Question.from_row(row) for row in needle_rows("test", 1, args.questions)]
    rows = []
    for size in args.batch_sizes:
        ratios, speeds, alone, agree = [], [], [], []
        for pair in range(args.pairs + 1):
            peer, singly = ask(policy, questions, protocol, 1)
            ours, batched = ask(policy, questions, protocol, size)
            if pair:  # the first pair warms up
                ratios.append(ours / peer), speeds.append(ours), alone.append(peer)
            agree.append(sum(a.correct == b.correct for a, b in zip(singly, batched)) / len(questions))
        rows.append({"batch_size": size, "ratio": statistics.median(ratios), "questions_per_s": statistics.median(speeds),
                     "peer_questions_per_s": statistics.median(alone), "same_verdict": min(agree), "pairs": args.pairs})  # fmt: skip
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    table = Table("batch", "questions / s", "one by one", "ratio", "same verdict")
    for row in rows:
        numbers = (row["questions_per_s"], row["peer_questions_per_s"], row["ratio"])
        table.add_row(str(row["batch_size"]), *(f"{x:.2f}" for x in numbers), f"{row['same_verdict']:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()

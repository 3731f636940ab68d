"""A training on a vLLM server whose rollouts are sampled during the update before, against one that takes turns.

    make test-vllm    # once: builds the environment with vLLM's CPU build
    PYTHONPATH=tests/policies_vllm/startup:tests/policies_vllm .venv-vllm/bin/python -m benchmarks.rollouts_ahead --out ahead.json

The recipe `tiny_mgpo` on `needle`, each way (`WAYS`) with each seed. The server has one core and the trainer has another one, in both. A
file carries the weights to the server, since NCCL needs GPUs (`tests/policies_vllm/cpu.py`). Reported are seconds per step
(median; the first step is left out), the seconds for which a step waits for its rollouts, and the learning curve: shares of right answers and of boxes that
hit, in windows of ten steps (each question is seen once, so these are shares on fresh questions).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mgpo.jsonl import read_jsonl
from mgpo.policies.names import resolve
from mgpo.training.run import parse, train

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny_mgpo.yaml"
WINDOW = 10
WAYS: dict[str, dict[str, str]] = {
    "taking turns": {},
    "ahead": {"rollouts_ahead": "true"},
    "ahead, sequence_mask": {"rollouts_ahead": "true", "vllm_importance_sampling_mode": "sequence_mask"},
}
"""Settings of each way of sampling."""


def measure(url: str, way: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """One training: seconds by step, waiting, and shares of right answers and of hits by step."""
    data, config = parse(
        [
            "--config", str(RECIPE), "--max_steps", str(steps), "--seed", str(seed), "--output_dir", str(folder), "--save_strategy", "no",
            "--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_base_url", url,
            "--disable_tqdm", "true", *(word for name, value in WAYS[way].items() for word in (f"--{name}", value)),
        ]
    )  # fmt: skip
    train(data, config)
    rows = [row for row in read_jsonl(folder / "metrics.jsonl")[0] if "loss" in row]
    return {
        "way": way,
        "seed": seed,
        "seconds": [row["step_time"] for row in rows],
        "waited": [row.get("rollouts_ahead/wait_time") for row in rows],
        "right": [row["rewards/accuracy_reward/mean"] for row in rows],
        "hit": [row["grounding/hit_rate"] for row in rows],
        "ratio": [row["sampling/importance_sampling_ratio/mean"] for row in rows],
    }


def windows(values: list[float]) -> list[float]:
    """Means of consecutive windows of steps."""
    return [round(statistics.mean(values[i : i + WINDOW]), 3) for i in range(0, len(values), WINDOW)]


def summary(runs: list[dict[str, Any]]) -> Table:
    """One line per training, and the ratio of seconds per step between the two ways of each seed."""
    table = Table(title="Rollouts from a vLLM server")
    for column in ("way", "seed", "s/step", "waited", "right, by ten steps", "hit, by ten steps"):
        table.add_column(column)
    for run in runs:
        waited = [seconds for seconds in run["waited"][1:] if seconds is not None]
        table.add_row(
            run["way"], str(run["seed"]), f"{per_step(run):.2f}",
            f"{statistics.median(waited):.2f}" if waited else "", str(windows(run["right"])), str(windows(run["hit"])),
        )  # fmt: skip
    return table


def per_step(run: dict[str, Any]) -> float:
    """Median seconds of a step, the first left out."""
    return statistics.median(run["seconds"][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("rollouts_ahead.json"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["taking turns", "ahead"])
    parser.add_argument("--cores", nargs=2, default=["0", "1"], help="the trainer's core and the server's")
    args = parser.parse_args()
    from cpu import push_by_file, served  # beside the tests of vLLM

    torch.set_num_threads(1)
    push_by_file()
    runs: list[dict[str, Any]] = []
    with served(resolve("mgpo-tiny"), "--weight-transfer-config", '{"backend": "file"}', cores=args.cores[1]) as url:
        os.sched_setaffinity(0, {int(args.cores[0])})
        with tempfile.TemporaryDirectory() as name:
            for seed in args.seeds:
                for number, way in enumerate(args.ways):
                    runs.append(measure(url, way, seed, args.steps, Path(name) / f"{seed}_{number}"))
                    args.out.write_text(json.dumps(runs, indent=1))
                    Console().print(summary(runs))
    for way in args.ways[1:]:
        first, other = ([per_step(run) for run in runs if run["way"] == one] for one in (args.ways[0], way))
        ratio = statistics.mean(first) / statistics.mean(other)
        Console().print(f"seconds per step, {args.ways[0]} / {way}: {ratio:.2f}")


if __name__ == "__main__":
    main()

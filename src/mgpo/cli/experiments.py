"""`mgpo demo`, `mgpo sweep` and `mgpo reproduce`: the method and its baselines on `needle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it writes.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps of each method.")] = 60,
    n: Annotated[int, typer.Option(help="Evaluation questions per split.")] = 150,
    seed: Annotated[int, typer.Option(help="Training seed.")] = 0,
) -> None:
    """See it work: train MGPO and GRPO from mgpo-tiny, evaluate both and the base with controls, and write a report."""
    from mgpo.experiments.plan import Plan
    from mgpo.experiments.run import run_experiment

    run_experiment(Plan(out, (seed,), steps, n, validation=min(100, n), checkpoints=3, methods=("mgpo", "grpo")))


def sweep_rates(
    out: Annotated[Path, typer.Option(help="Folder for everything it writes.")] = Path("runs/sweep-tiny"),
    methods: Annotated[
        str, typer.Option(help="Methods to sweep, comma-separated: mgpo, grpo, direct, sft.")
    ] = "grpo,direct,sft",
    steps: Annotated[int, typer.Option(help="Training steps of each run.")] = 120,
    validation: Annotated[int, typer.Option(help="Validation questions per checkpoint.")] = 300,
) -> None:
    """Choose each method's learning rate on validation questions of needle. Run it again to resume where it stopped."""
    from mgpo.experiments.plan import Plan
    from mgpo.experiments.run import SWEEP_SEED, sweep

    sweep(Plan(out, (SWEEP_SEED,), steps, 0, validation, methods=tuple(methods.split(","))))


def reproduce(
    out: Annotated[Path, typer.Option(help="Folder for everything it writes.")] = Path("runs/reproduce-tiny"),
    seeds: Annotated[str, typer.Option(help="Training seeds, comma-separated.")] = "0,1,2",
    steps: Annotated[int, typer.Option(help="Training steps of each method and seed.")] = 200,
    n: Annotated[int, typer.Option(help="Evaluation questions per split and seed.")] = 1000,
) -> None:
    """Train every method with several seeds, and evaluate it on 1,000 questions per split. Run it again to resume where it stopped."""
    from mgpo.experiments.plan import Plan
    from mgpo.experiments.run import run_experiment

    run_experiment(Plan(out, tuple(int(seed) for seed in seeds.split(",")), steps, n))

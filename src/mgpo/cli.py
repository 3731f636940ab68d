"""The command line: `mgpo COMMAND --help` says what each one takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()
OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=OPEN)
def train(context: typer.Context) -> None:
    """Train by a recipe: mgpo train --config recipes/tiny_mgpo.yaml [--learning_rate 1e-6 ...]."""
    from mgpo.training import parse
    from mgpo.training import train as run

    if not context.args:
        raise ValueError("mgpo train needs a recipe: --config recipes/tiny_mgpo.yaml, or your own.")
    data, config = parse(context.args)
    console.print(f"run folder: {run(data, config)}")


@app.command(context_settings=OPEN)
def validate(context: typer.Context, recipe: Path) -> None:
    """Check a recipe without running it, for so many GPUs: mgpo validate RECIPE [--num_gpus 8] [--max_steps 10 ...]."""
    from mgpo.validation import validate_recipe

    for line in validate_recipe(recipe, context.args):
        console.print(line, markup=False, soft_wrap=True)


@app.command(name="eval")
def evaluate_command(
    model: Annotated[str, typer.Option(help="mgpo-tiny, a run folder, or a hub id.")] = "mgpo-tiny",
    task: Annotated[str, typer.Option(help="needle, a JSONL file, or a dataset of the hub.")] = "needle",
    split: str = "test",
    seed: Annotated[int, typer.Option(help="Seed of the questions (needle) and of sampling.")] = 1,
    n: Annotated[int, typer.Option(min=1, help="Number of questions.")] = 500,
    protocol: Annotated[str | None, typer.Option(help="mgpo, grpo or direct; as it was trained if not set.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="As it was trained if not set, else 2.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixel budget; the model's own if not set.")] = None,
    grounding_tokens: Annotated[int | None, typer.Option(help="As it was trained if not set, else 128.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(help="As it was trained if not set, else 512.")] = None,
    batch_size: int = 50,
    megapixels: Annotated[float | None, typer.Option(help="needle: canvas area, if not the split's (8K: 33).")] = None,
    backgrounds: Annotated[str | None, typer.Option(help="needle: a folder of photographs to draw on.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
) -> None:
    """Evaluate a policy: accuracy, valid boxes, hits, crop-only accuracy."""
    from mgpo.evaluation_run import EvaluationRequest, run_evaluation

    request = EvaluationRequest(
        model=model,
        task=task,
        split=split,
        seed=seed,
        n=n,
        protocol=protocol,
        max_turns=max_turns,
        max_pixels=max_pixels,
        grounding_tokens=grounding_tokens,
        answer_tokens=answer_tokens,
        batch_size=batch_size,
        megapixels=megapixels,
        backgrounds=backgrounds,
    )
    row = run_evaluation(request, console)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(row, indent=1) + "\n")


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="A photograph.")],
    question: str,
    choice: Annotated[list[str] | None, typer.Option(help="A choice; give it again for each one.")] = None,
    model: str = "mgpo-tiny",
    max_turns: Annotated[int | None, typer.Option(help="As it was trained if not set, else 2.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixel budget; the model's own if not set.")] = None,
    save: Annotated[Path, typer.Option(help="Where to save the picture with the box and the crop.")] = Path(
        "asked.png"
    ),
) -> None:
    """Ask a question of a photograph and see where the model looked."""
    from mgpo.asking import ask_image
    from mgpo.picture import draw_episode

    episode = ask_image(image, question, tuple(choice or ()), model, max_turns, max_pixels)
    for number, turn in enumerate(episode.model_turns, 1):
        console.print(f"[bold]turn {number}[/bold] ", end="")
        console.print(turn.text.strip(), markup=False)
    grounding = episode.first_grounding
    if grounding is not None:
        where = f": {grounding.box_px_original} in pixels of the photograph" if grounding.box_px_original else ""
        console.print(f"box {grounding.status}{where}")
    draw_episode(episode).save(save)
    console.print(f"picture: {save}")


@app.command()
def demo(
    out: Path = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps of each method.")] = 60,
    n: Annotated[int, typer.Option(help="Evaluation questions per split.")] = 150,
    seed: int = 0,
) -> None:
    """See it work: train MGPO and GRPO from mgpo-tiny, evaluate both and the base, write a report."""
    from mgpo.experiment import Plan, run_experiment

    run_experiment(Plan(out, (seed,), steps, n))


@app.command()
def reproduce(
    out: Path = Path("runs/reproduce-tiny"),
    seeds: Annotated[str, typer.Option(help="Training seeds, comma-separated.")] = "0,1,2",
    steps: int = 120,
    n: int = 1000,
) -> None:
    """The three-seed result of the README; goes on where it was stopped."""
    from mgpo.experiment import Plan, run_experiment

    run_experiment(Plan(out, tuple(int(seed) for seed in seeds.split(",")), steps, n))


@app.command()
def env() -> None:
    """Versions and machine, for bug reports."""
    from mgpo.environment import describe_environment

    console.print_json(data=describe_environment())


def main() -> None:
    """Entry point: a wrong setting is a sentence, not a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"[bold red]mgpo:[/bold red] {escape(str(error))}", markup=True, highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()

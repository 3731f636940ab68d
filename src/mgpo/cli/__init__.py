"""Train, evaluate, ask and serve. `mgpo COMMAND --help` lists the options of a command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mgpo.cli.arguments import (
    AnswerTokens,
    BoxForms,
    Endpoint,
    Engine,
    HelpAll,
    MaxPixels,
    MaxTurns,
    MinPixels,
    Model,
    Thinking,
)
from mgpo.cli.ask import ask
from mgpo.cli.data import data_app
from mgpo.cli.experiments import demo, reproduce, sweep_rates
from mgpo.cli.export import export_app
from mgpo.cli.launching import asked, launch
from mgpo.cli.options import able_to_complete, options
from mgpo.cli.recipes import recipes
from mgpo.cli.settings import SettingsCommand, refuse_words
from mgpo.cli.sharing import push
from mgpo.errors import OF_USERS, ProcessFailed, Stopped
from mgpo.method.lenient import Answers
from mgpo.planning.early import refuse_request
from mgpo.planning.gpus import Gpus
from mgpo.policies.shipped import TINY_TRAINED
from mgpo.recipes import find_recipe, names
from mgpo.runs.quiet import quieten

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")
app.callback()(options)
SEVERAL = (
    "Several GPUs: --accelerate_config multi_gpu [--num_processes 8 ...] splits the questions over processes, and the records are those of "
    "one. Options of accelerate launch may be given beside it (docs/cluster.md)."
)
OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=OPEN, cls=SettingsCommand)
def train(context: typer.Context, help_all: HelpAll = False) -> None:
    """Train from a recipe: mgpo train --config tiny_mgpo [--learning_rate 1e-6 ...].

    --config takes a file, or the name of a shipped recipe (mgpo recipes lists them). Every setting of a recipe is an option.

    On several GPUs: --accelerate_config multi_gpu, fsdp2, zero2, zero3 or a file, with any option of accelerate launch (docs/cluster.md).
    """
    if not context.args:
        raise ValueError(
            "mgpo train needs a recipe: --config tiny_mgpo, or your own file. mgpo recipes lists those that are shipped."
        )
    if not context.args[0].startswith("-"):
        raise ValueError(f"mgpo train takes its recipe by name: --config {context.args[0]}.")
    refuse_words(context.args)
    from mgpo.training.run import parse
    from mgpo.training.run import train as run

    data, config = parse(context.args)
    folder = run(data, config)
    if config.process_index == 0:
        console.print(f"run folder: {folder}")


@app.command(context_settings=OPEN, cls=SettingsCommand)
def validate(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A file, or the name of a shipped recipe.", autocompletion=names)],
    help_all: HelpAll = False,
) -> None:
    """Check a recipe for a number of GPUs without running it: mgpo validate RECIPE [--num_gpus 8] [--max_steps 10 ...]."""
    file = find_recipe(recipe)
    refuse_words(["--config", str(file), *context.args], "num_gpus")
    from mgpo.planning.validate import validate_recipe

    for line in validate_recipe(file, context.args):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def recipe(
    model: Annotated[str, typer.Option(help="A hub id, e.g. Qwen/Qwen3-VL-4B-Instruct.")],
    gpus: Annotated[
        str, typer.Option(help="Number of GPUs and GB of each, as sold: 1x24, 8x80; or GiB as measured: 1x23.6.")
    ],
    method: Annotated[str, typer.Option(help="mgpo, grpo, direct or sft.")] = "mgpo",
    data: Annotated[str, typer.Option(help="needle, a JSONL file, a folder, or a hub id.")] = "needle",
    images: Annotated[int, typer.Option(min=1, max=8, help="Most images that a question shows.")] = 1,
    out: Annotated[Path, typer.Option(help="Where to write the recipe.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe that fits your GPUs by a rough estimate: full training, LoRA or 4-bit LoRA. Says why."""
    owned = Gpus.read(gpus)
    refuse_request(model, method, out)
    from mgpo.planning.choosing import write_recipe

    for line in write_recipe(model, owned, method, data, out, images):
        console.print(line, markup=False, soft_wrap=True)


@app.command(name="eval", epilog=SEVERAL)
def evaluate_command(
    model: Model = "mgpo-tiny",
    tasks: Annotated[str, typer.Option(help="Comma-separated: needle, vstar, hrbench4k, ..., or a file or folder.")] = (
        "needle"
    ),
    data: Annotated[
        list[str] | None, typer.Option(help="Where a task's data is: PATH, or TASK=PATH with several tasks.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="needle: test or ood_.... Default: the task's own split.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the questions (needle) and of sampling.")] = 1,
    n: Annotated[
        int | None,
        typer.Option(
            "--limit", "--n", min=1, help="Maximum number of questions per task. Default: 500 for needle, else all."
        ),
    ] = None,
    answers: Annotated[
        str,
        typer.Option(
            metavar="[strict|lenient]",
            autocompletion=lambda: list(Answers),
            help="lenient: also show the accuracy if answers without a box are read.",
        ),
    ] = "strict",
    protocol: Annotated[
        str | None, typer.Option(help="mgpo, grpo, direct or adaptive. Default: as in training.")
    ] = None,
    max_turns: MaxTurns = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    coordinates: BoxForms = None,
    thinking: Thinking = None,
    grounding_tokens: Annotated[
        int | None, typer.Option(help="Token limit of a grounding turn. Default: as in training, else 128.")
    ] = None,
    answer_tokens: AnswerTokens = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 16,
    sampled: Annotated[bool, typer.Option(help="Measure boxes in a first turn sampled at temperature 1.")] = False,
    megapixels: Annotated[
        float | None, typer.Option(help="needle: canvas area (8K: 33). Default: the split's own.")
    ] = None,
    backgrounds: Annotated[str | None, typer.Option(help="needle: a folder of photographs to draw on.")] = None,
    pictures: Annotated[int, typer.Option(help="Questions per task whose pictures are saved for mgpo view.")] = 24,
    engine: Engine = "transformers",
    endpoint: Endpoint = None,
    endpoint_seconds: Annotated[float, typer.Option(min=1, help="Time limit of one request to the endpoint.")] = 300.0,
    endpoint_moved: Annotated[
        bool,
        typer.Option("--endpoint-moved", help="Go on with answers of another address: it served the same model."),
    ] = False,
    refused_is_wrong: Annotated[
        bool,
        typer.Option(
            "--refused-is-wrong",
            help="Count questions that the endpoint refuses, e.g. as too long, as wrong answers. Default: stop at the first.",
        ),
    ] = False,
    crop_alone: Annotated[
        bool, typer.Option(help="Also ask each question with the crop alone: a third request per question.")
    ] = True,
    controls: Annotated[
        str,
        typer.Option(
            help="Controls to run as well, comma-separated: direct, random_crop, black_crop, gold_crop, resampled_box, forced_box, crop_only."
        ),
    ] = "",
    judge: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint that judges open answers.")] = None,
    judge_model: Annotated[str, typer.Option(help="Name of the judge's model.")] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. A stopped evaluation resumes from it. Default: one in runs/eval for each model and settings.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Evaluate a policy: accuracy, valid boxes, hits, crop-only accuracy. Run it again to resume where it stopped."""
    reading = Answers(answers)
    from mgpo.evaluation.request import EvaluationRequest
    from mgpo.evaluation.run import run_evaluation

    beside = out is None
    out = out or Path("runs/eval") / f"{Path(model).name}-{protocol or 'as-trained'}-{max_pixels or 'own'}px"
    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    request = EvaluationRequest(
        model=model, tasks=names, out=out, data=_data_by_task(names, data or []), split=split, seed=seed, n=n,
        protocol=protocol, max_turns=max_turns, min_pixels=min_pixels, max_pixels=max_pixels, coordinates=coordinates, thinking=thinking, grounding_tokens=grounding_tokens,
        answer_tokens=answer_tokens, batch_size=batch_size, sampled=sampled, megapixels=megapixels,
        backgrounds=backgrounds, pictures=pictures, engine=engine, endpoint=endpoint, seconds=endpoint_seconds, moved=endpoint_moved, refused_is_wrong=refused_is_wrong,
        crop_alone=crop_alone, judge=judge, judge_model=judge_model,
        controls=tuple(name.strip() for name in controls.split(",") if name.strip()), answers=reading, beside=beside,
    )  # fmt: skip
    run_evaluation(request, console)


def _data_by_task(tasks: tuple[str, ...], data: list[str]) -> dict[str, str]:
    """PATH or TASK=PATH, by task."""
    found = {}
    for given in data:
        task, equals, path = given.partition("=")
        if equals and task in tasks:
            found[task] = path
        elif len(tasks) == 1:
            found[tasks[0]] = given
        else:
            raise ValueError(f"--data {given!r}: with several tasks, write TASK=PATH with one of {', '.join(tasks)}.")
    return found


@app.command(name="compare")
def compare_command(a: Path, b: Path) -> None:
    """Compare two evaluations of the same questions: paired difference, bootstrap interval, McNemar's p."""
    from mgpo.evaluation.comparing import compare, comparison_table

    found = compare(a, b)
    for name, folder in (("A", a), ("B", b)):
        console.print(f"{name}: {folder}", markup=False, soft_wrap=True)
    console.print(comparison_table(found))


@app.command()
def view(
    run: Path,
    out: Annotated[Path | None, typer.Option(help="Where to write the page. Default: RUN/view.html.")] = None,
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
) -> None:
    """Look at a training run or an evaluation: curves, results, and where the model looked."""
    import webbrowser

    from mgpo.pages.viewing import write_view

    page = write_view(run, out)
    console.print(f"page: {page}", markup=False, soft_wrap=True)
    if browser:
        webbrowser.open(page.resolve().as_uri())


@app.command()
def serve(
    model: Model = TINY_TRAINED,
    host: Annotated[str, typer.Option(help="A public address needs a key in MGPO_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    name: Annotated[str, typer.Option(help="Name by which clients request the model. Default: its own.")] = "",
    endpoint: Endpoint = None,
    engine: Engine = "transformers",
    protocol: Annotated[str, typer.Option(help="mgpo, adaptive, grpo or direct.")] = "mgpo",
    max_turns: MaxTurns = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    coordinates: BoxForms = None,
    thinking: Thinking = None,
    answer_tokens: AnswerTokens = None,
    batch: Annotated[int, typer.Option(min=1, help="Maximum number of questions per batch.")] = 16,
    waiting: Annotated[
        int, typer.Option(min=1, help="Maximum number of requests in the queue or running; further ones get 429.")
    ] = 256,
    bodies_mb: Annotated[
        int, typer.Option(min=1, help="Maximum size of all requests together, in MiB; further ones get 503.")
    ] = 1024,
    seconds: Annotated[float, typer.Option(help="Time limit of one request.")] = 120.0,
    image_host: Annotated[
        list[str] | None, typer.Option(help="Fetch image URLs from this host. Repeat the option for each host.")
    ] = None,
    page: Annotated[bool, typer.Option(help="Serve the web page at /.")] = True,
) -> None:
    """Serve a policy: an OpenAI-compatible API and a web page."""
    Console(stderr=True).print(f"loading {model} ...", markup=False, highlight=False, soft_wrap=True)
    from mgpo.serving.limits import Limits
    from mgpo.serving.run import ServeRequest
    from mgpo.serving.run import serve as run

    limits = Limits(
        waiting=waiting,
        batch=batch,
        seconds=seconds,
        image_hosts=tuple(image_host or ()),
        bodies_bytes=bodies_mb * 1024**2,
    )
    settings = {"engine": engine, "endpoint": endpoint, "protocol": protocol, "max_turns": max_turns,
                "min_pixels": min_pixels, "max_pixels": max_pixels, "coordinates": coordinates, "thinking": thinking, "answer_tokens": answer_tokens}  # fmt: skip
    run(ServeRequest(model, settings, host, port, name, limits, page))


app.command()(ask)
app.command()(recipes)
app.command()(demo)
app.command("sweep")(sweep_rates)
app.command()(reproduce)
app.command()(push)


@app.command()
def env() -> None:
    """Print package versions and machine details for bug reports."""
    from mgpo.runs.environment import describe_environment

    console.print_json(data=describe_environment())


def main() -> None:
    """Entry point: a wrong setting is a sentence, not a traceback."""
    quieten()
    able_to_complete()
    try:
        if asked(sys.argv[1:]):
            launch(sys.argv[1:])
        else:
            app(prog_name="mgpo")
    except ProcessFailed as failed:
        _say(str(failed))
        sys.exit(failed.status)
    except OF_USERS as error:
        _say(str(error))
        sys.exit(2)
    except Stopped as stopped:
        _say(str(stopped))
        sys.exit(128 + stopped.by)  # the status that a shell reports for a program that a signal ended


def _say(sentence: str) -> None:
    rank = os.environ.get("RANK") if "TORCHELASTIC_RUN_ID" in os.environ else None
    name = "mgpo:" if rank is None else f"mgpo (process {rank}):"
    Console(stderr=True).print(
        f"[bold red]{name}[/bold red] {escape(sentence)}", markup=True, highlight=False, soft_wrap=True
    )

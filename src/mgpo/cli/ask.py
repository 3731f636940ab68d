"""`mgpo ask`: a question of photographs, or of a scene that is drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mgpo.cli.arguments import BoxForms, Endpoint, Engine, MaxPixels, MaxTurns, MinPixels, Model, Thinking
from mgpo.policies.shipped import KNOWS, SHIPPED, TINY_TRAINED

console = Console()
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def ask(
    asked: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE... QUESTION]",
            help="Photographs (- reads standard input). Without any, a scene of signs is drawn.",
        ),
    ] = None,
    choice: Annotated[list[str] | None, typer.Option(help="A choice. Repeat the option for each choice.")] = None,
    model: Model = TINY_TRAINED,
    endpoint: Endpoint = None,
    engine: Engine = "transformers",
    protocol: Annotated[str, typer.Option(help="mgpo, adaptive, grpo or direct.")] = "mgpo",
    max_turns: MaxTurns = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    coordinates: BoxForms = None,
    thinking: Thinking = None,
    save: Annotated[Path | None, typer.Option(help="Save a picture of the box, the crop and the answer.")] = None,
    together: Annotated[bool, typer.Option(help="Ask one question about all of 2 to 8 photographs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Ask a question of photographs and see where the model looked."""
    *images, question = asked or [""]
    if asked and (not images or os.path.isfile(question)) or choice and not asked:
        last = f" The last argument is the question, but {question} is a file." if images else ""
        raise ValueError(f'mgpo ask needs a photograph and a question: mgpo ask photo.jpg "Which brand is it?".{last}')
    if together and len(images) < 2:
        raise ValueError(f"--together asks one question about 2 to 8 photographs, but {len(images)} was given.")
    if save is not None and save.suffix.lower() not in PICTURES:
        raise ValueError(
            f"--save {save}: the name of a picture must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}."
        )
    from mgpo.asking.run import ask_photographs, ask_scene, print_answer, print_scene

    settings = {"engine": engine, "endpoint": endpoint, "protocol": protocol, "max_turns": max_turns,
                "min_pixels": min_pixels, "max_pixels": max_pixels, "coordinates": coordinates, "thinking": thinking}  # fmt: skip
    aside = Console(stderr=True)
    with aside.status("asking ..."):
        if not asked:
            scene, drawn = ask_scene(model, settings)
        else:
            answers = ask_photographs(images, question, choice or [], model, settings, together)
    if not asked:
        print_scene(scene, drawn, save, as_json, console)
        return
    names = [", ".join(images)] if together else images
    for number, (image, answer) in enumerate(zip(names, answers), 1):
        picture = save
        if save is not None and len(names) > 1:
            picture = save.with_stem(f"{save.stem}_{number}")
        print_answer(image, answer, picture, as_json, console, named=len(names) > 1)
    if model in SHIPPED and not endpoint:
        aside.print(f"{model} {KNOWS}", markup=False, highlight=False, soft_wrap=True)

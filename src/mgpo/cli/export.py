"""`mgpo export`: a recipe as the command of another trainer."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from mgpo.cli.settings import refuse_words

console = Console()
export_app = typer.Typer(no_args_is_help=True, help="Write a recipe as the command of another trainer.")


@export_app.command(name="verl", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def export_verl(context: typer.Context, recipe: Path) -> None:
    """Print a script that trains by a recipe with verl: mgpo export verl RECIPE [--num_gpus 32] [--gpus_per_node 8] [--beta 0 ...]."""
    from mgpo.recipes import find_recipe

    recipe = find_recipe(recipe)
    refuse_words(["--config", str(recipe), *context.args], "num_gpus", "gpus_per_node")
    from mgpo.planning.verl_command import verl_script

    for line in verl_script(recipe, context.args):
        print(line)

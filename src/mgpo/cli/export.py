"""`mgpo export`: a recipe as the command of another trainer."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

console = Console()
export_app = typer.Typer(no_args_is_help=True, help="Write a recipe as the command of another trainer.")


@export_app.command(name="verl", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def export_verl(context: typer.Context, recipe: Path) -> None:
    """Print a script that trains by a recipe with verl: mgpo export verl RECIPE [--num_gpus 32] [--gpus_per_node 8] [--beta 0 ...]."""
    from mgpo.planning.early import refuse_words, written
    from mgpo.recipes import find_recipe

    recipe = find_recipe(recipe)
    written(recipe)
    refuse_words(context.args)
    from mgpo.planning.verl_command import verl_script

    for line in verl_script(recipe, context.args):
        print(line)

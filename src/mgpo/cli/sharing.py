"""`mgpo push`: shares a trained model on the Hugging Face hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def push(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    hub_id: Annotated[str, typer.Argument(help="Its name on the hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded, and its size.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before uploading.")] = False,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that mgpo eval wrote for this run, if it does not lie beside it. May be repeated."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Picture of an episode (mgpo ask --save). Default: a drawn one, if it was trained on needle."
        ),
    ] = None,
) -> None:
    """Upload a model with its card, settings and results. Checkpoints, trajectories and data stay here."""
    from mgpo.sharing.push import prepare, refuse_name, refuse_offline, show, upload

    refuse_name(hub_id)
    if not dry_run:
        refuse_offline()
    contents = prepare(run, hub_id, results or [], picture)
    show(contents, hub_id, private, console)
    if dry_run:
        console.print("Nothing was uploaded (--dry-run).")
        return
    if not yes and sys.stdin.isatty() and not typer.confirm("Upload?"):
        console.print("Nothing was uploaded.")
        return
    console.print(f"uploaded: {upload(contents, hub_id, private)}", markup=False, soft_wrap=True)

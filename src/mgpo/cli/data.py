"""`mgpo data`: check a dataset before it is trained on, and convert it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()
data_app = typer.Typer(no_args_is_help=True, help="Check and convert training and evaluation data.")


@data_app.command(name="check")
def data_check(
    path: Annotated[str, typer.Argument(help="A file, a folder, or a hub dataset.")],
    split: str = "train",
    against: Annotated[str | None, typer.Option(help="A test set. Images that are in both sets are reported.")] = None,
    against_split: str = "test",
    figure: Annotated[Path, typer.Option(help="Where to save the plot of the image sizes.")] = Path(
        "runs/data_check.png"
    ),
) -> None:
    """Read every row and decode every image. The exit status is 1 if any row cannot be used, or there are none."""
    from rich.progress import track

    from mgpo.data.check import check, draw_sizes, shared_images, show
    from mgpo.data.sources import read_questions, unread_columns, unread_note

    if note := unread_note(unread_columns(path, split), path):
        console.print(note, markup=False, soft_wrap=True)
    found = check(track(read_questions(path, split), "reading", console=console, transient=True))
    empty = not found.rows
    show(found, f"{path}, {split}", console)
    if found.sizes:
        draw_sizes(found, figure)
        console.print(f"image sizes: {figure}", markup=False, soft_wrap=True)
    if against is not None:
        other = check(track(read_questions(against, against_split), "reading", console=console, transient=True))
        show(other, f"{against}, {against_split}", console)
        both = shared_images(found, other)
        console.print(f"{len(both)} images are in both sets")
        for here, there, how in both[:20]:
            console.print(f"  {here} and {there}: {how}", markup=False, soft_wrap=True)
        found.bad += other.bad
        empty = empty or not other.rows
    if found.bad or empty:
        raise typer.Exit(1)


@data_app.command(name="convert")
def data_convert(
    path: Annotated[str, typer.Argument(help="needle, a file, a folder, or a hub dataset.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    to: Annotated[str, typer.Option(help="jsonl, trl, verl (Parquet) or vstar (folders).")] = "jsonl",
    split: str = "train",
    n: Annotated[int, typer.Option(help="needle: number of questions.")] = 100,
    seed: Annotated[int, typer.Option(help="needle: seed of the questions.")] = 0,
) -> None:
    """Convert a dataset from any readable layout to another one."""
    from mgpo.data.convert import convert
    from mgpo.data.loading import usable
    from mgpo.data.sources import read_questions
    from mgpo.worlds.needle import needle_rows

    rows = needle_rows(split, seed, n) if path == "needle" else usable(read_questions(path, split), path)
    file, count = convert(rows, to, out, split)
    console.print(f"{count} questions: {file}", markup=False, soft_wrap=True)

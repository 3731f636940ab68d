"""`mgpo data`: check a dataset before it is trained on, look at it, and convert it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()
data_app = typer.Typer(no_args_is_help=True, help="Check, look at and convert training and evaluation data.")
NEEDLE = "needle"


@data_app.command(name="check")
def data_check(
    path: Annotated[
        str | None,
        typer.Argument(help="A file, a folder, or a hub dataset. Default: the recipe's.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: the recipe's, else train.", show_default=False)] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A recipe: texts and numbers of images are then held against its limits too.", show_default=False
        ),
    ] = None,
    against: Annotated[str | None, typer.Option(help="A test set. Images that are in both sets are reported.")] = None,
    against_split: str = "test",
    figure: Annotated[Path, typer.Option(help="Where to save the plot of the image sizes.")] = Path(
        "runs/data_check.png"
    ),
    listing: Annotated[
        Path | None,
        typer.Option(
            "--list",
            help="Write all rows that cannot be used or have a gold box beyond their image, and why, as JSON lines.",
        ),
    ] = None,
) -> None:
    """Read every row and decode every image, as mgpo train does. The exit status is 1 if any row cannot be used, or there are none."""
    if path is None and config is None:
        raise ValueError(
            "mgpo data check needs data: a file, a folder, a hub dataset, or --config RECIPE for that of a recipe."
        )
    if listing is not None and listing.exists():
        raise ValueError(f"--list {listing} exists already. Name another file.")
    from mgpo.data.check import check, draw_sizes, shared_images, show, write_findings

    admission, name, of_recipe = _of_recipe(config, path, split)
    split = split or of_recipe
    found = check(_read(name, split), admission)
    empty = not found.rows
    show(found, f"{name}, {split}", console)
    if admission is None:
        _say("max_reply_tokens and max_images belong to a policy: --config RECIPE checks the rows against them too.")
    if found.sizes:
        draw_sizes(found, figure)
        _say(f"image sizes: {figure}")
    if listing is not None:
        _say(f"{write_findings(found, listing)} lines about rows: {listing}")
    if against is not None:
        other = check(_read(against, against_split), admission)
        show(other, f"{against}, {against_split}", console)
        both = shared_images(found, other)
        console.print(f"{len(both)} images are in both sets")
        for here, there, how in both[:20]:
            _say(f"  {here} and {there}: {how}")
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
    jpeg: Annotated[
        int | None,
        typer.Option(
            help="Write pictures that cannot be copied as JPEG of this quality (95 loses little). Default: PNG, which loses nothing.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier conversion wrote there.")
    ] = False,
) -> None:
    """Convert a dataset from any readable layout to another one. Picture files are copied, not encoded again."""
    from mgpo.data.convert import convert
    from mgpo.data.loading import usable
    from mgpo.data.pictures import Written
    from mgpo.data.sources import how_many_rows, read_questions
    from mgpo.worlds.needle import needle_rows

    written = Written(jpeg)
    if path == NEEDLE:
        rows, total = needle_rows(split, seed, n), n
    else:
        rows, total = usable(read_questions(path, split), path), how_many_rows(path, split)
    file, count = convert(with_bar(rows, total, Console(stderr=True)), to, out, split, overwrite, written)
    _say(f"{count} questions: {file}")
    for note in written.notes():
        _say(note)


def with_bar(rows: Iterable[Any], total: int | None, terminal: Console, doing: str = "converting") -> Iterator[Any]:
    """The rows, counted by a progress bar while they are taken; without a terminal there is none."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        yield from bar.track(rows, total=total)


@data_app.command(name="look")
def data_look(
    path: Annotated[str, typer.Argument(help="needle, a file, a folder, or a hub dataset.")],
    split: str = "train",
    n: Annotated[int, typer.Option(help="Rows shown at most, spread evenly over the dataset.")] = 48,
    row: Annotated[
        list[int] | None,
        typer.Option(help="Show this row, by the number that messages call it. Repeat the option for each row."),
    ] = None,
    seed: Annotated[int, typer.Option(help="needle: seed of the questions.")] = 0,
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("runs/data_look.html"),
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
) -> None:
    """Look at the rows of a dataset as a page: pictures with their gold boxes, questions, choices and answers."""
    import webbrowser

    from mgpo.data.loading import read_all
    from mgpo.pages.data_page import write_data_page

    if out.suffix != ".html":
        raise ValueError(f"--out {out}: the name of the page must end in .html.")
    with console.status("reading rows"):
        loaded = read_all(path, split, seed, n)
    terminal = Console(stderr=True)
    shown = write_data_page(
        loaded, f"{path}, {split}", out, n, row or (), lambda rows: with_bar(rows, len(rows), terminal, "drawing")
    )
    _say(f"{shown} of {len(loaded.places)} {'usable ' if loaded.bad else ''}rows: {out}")
    if loaded.bad:
        _say(
            f"{len(loaded.bad)} row{'s' * (len(loaded.bad) != 1)} cannot be used; the page lists them, and mgpo data check finds those with damaged images too."
        )
    if browser:
        webbrowser.open(out.resolve().as_uri())


def _of_recipe(config: Path | None, path: str | None, split: str | None) -> tuple[Any, str, str]:
    """What a row must pass (None without a recipe), the data's name, and its split."""
    if config is None:
        return None, str(path), split or "train"
    from mgpo.planning.validate import read_recipe
    from mgpo.recipes import written

    written(config)
    _, data, settings = read_recipe(config, [])
    from mgpo.training.run import admission_of

    admission = admission_of(data, settings)
    admission.decode = True  # whatever check_images is
    return admission, path or data.dataset_name, split or data.dataset_split


def _read(name: str, split: str) -> Any:
    """All rows of a dataset, as training reads them; columns that nothing reads are named."""
    from mgpo.data.loading import read_all
    from mgpo.data.sources import unread_columns, unread_note

    if name != NEEDLE and (note := unread_note(unread_columns(name, split), name)):
        _say(note)
    with console.status("reading rows"):
        return read_all(name, split)


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)

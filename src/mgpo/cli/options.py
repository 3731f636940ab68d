"""Options of `mgpo` itself: its version, and the shell's completion, which is typer's own."""

from __future__ import annotations

from typing import Annotated

import typer

SHELLS = ("bash", "zsh", "fish", "powershell")


def _version(asked: bool) -> None:
    if asked:
        import mgpo

        typer.echo(f"mgpo {mgpo.__version__}")
        raise typer.Exit


def _completion(shell: str | None) -> None:
    if shell is None:
        return
    if shell not in SHELLS:
        raise typer.BadParameter(f"{shell!r} is none of {', '.join(SHELLS)}.")
    from typer.completion import get_completion_script

    typer.echo(get_completion_script(prog_name="mgpo", complete_var="_MGPO_COMPLETE", shell=shell))
    raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    print_completion: Annotated[
        str | None,
        typer.Option(
            metavar="SHELL",
            callback=_completion,
            is_eager=True,
            help='Print a completion script for bash, zsh, fish or powershell: eval "$(mgpo --print-completion bash)".',
        ),
    ] = None,
) -> None:
    """Options before a command."""


def able_to_complete() -> None:
    """Register typer's completion, which answers when the shell asks for it."""
    from typer.completion import completion_init

    completion_init()

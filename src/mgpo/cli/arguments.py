"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from mgpo.cli.settings import help_all

HelpAll = Annotated[
    bool, typer.Option("--help-all", callback=help_all, is_eager=True, help="Describe every setting, and exit.")
]
Model = Annotated[str, typer.Option(help="mgpo-tiny, mgpo-tiny-mgpo, a run folder, or a hub id.")]
MinPixels = Annotated[
    int | None,
    typer.Option(help="Enlarge smaller images to this many pixels. Default: as in training, else 256 visual tokens."),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        "--pixel-budget",
        help="Shrink larger images to this many pixels. Default: as in training, else 1280 visual tokens.",
    ),
]
BoxForms = Annotated[
    str | None,
    typer.Option(
        help="How the model writes boxes, where its family is unknown: absolute, relative_1000 or relative_1, optionally with an "
        "order and a JSON key: 'relative_1000 yxyx box_2d'."
    ),
]
MaxTurns = Annotated[int | None, typer.Option(help="Maximum number of turns. Default: as in training, else 2.")]
AnswerTokens = Annotated[int | None, typer.Option(help="Token limit of the answer. Default: as in training, else 512.")]
Thinking = Annotated[
    bool | None,
    typer.Option(
        help="Whether the chat template lets the model think first. Default: as in training, else the template's."
    ),
]
Engine = Annotated[str, typer.Option(help="transformers, or vllm.")]
Endpoint = Annotated[
    str | None,
    typer.Option(
        help="OpenAI-compatible server that runs the model, e.g. http://localhost:8000/v1; --model is its name there. A key is read from MGPO_ENDPOINT_KEY."
    ),
]

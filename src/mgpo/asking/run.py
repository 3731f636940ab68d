"""`mgpo ask`: asks a question of photographs, prints the answers and boxes, and saves pictures of them."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from mgpo.asking.grounded import Answer, GroundedVQA
from mgpo.asking.picture import draw_episode
from mgpo.images.photograph import Photograph
from mgpo.method.question import LETTERS, Question
from mgpo.worlds.needle import needle_rows

STDIN = "-"
SCENES = 77
"""Seed of the scenes that `mgpo ask` draws: no training and no evaluation of this project uses it."""


def ask_photographs(
    images: list[str], question: str, choices: list[str], model: str, settings: dict[str, Any], together: bool = False
) -> list[Answer]:
    """Ask the same question of each photograph in one batch, or one question about all of them `together`.

    A photograph named `-` is read from standard input.
    """
    # Their headers are read before the model is loaded, which takes much longer.
    sources = [Photograph(sys.stdin.buffer.read() if image == STDIN else image) for image in images]
    vqa = GroundedVQA.from_pretrained(model, **settings)
    return vqa.ask_many([(source, question, choices) for source in ([sources] if together else sources)])


def ask_scene(model: str, settings: dict[str, Any], index: int | None = None) -> tuple[Question, Answer]:
    """Draw a scene of the world `needle` and ask about it: the question, with its right answer, and what the model answered.

    `index` names the scene; without it, it is drawn at random.
    """
    index = random.SystemRandom().randrange(10_000) if index is None else index
    question = Question.from_row(next(needle_rows("test", SCENES, 1, start=index)))
    vqa = GroundedVQA.from_pretrained(model, **settings)
    return question, vqa.ask(question.image, question.question, list(question.choices))


def print_scene(question: Question, answer: Answer, picture: Path | None, as_json: bool, console: Console) -> None:
    """Print a question about a drawn scene, the model's answer and the right one; the picture is saved in any case."""
    picture = picture or Path("runs/ask") / f"{question.id.replace('/', '_')}.png"
    if not as_json:
        console.print(question.question, style="bold", markup=False)
        for letter, choice in zip(LETTERS, question.choices):
            console.print(f"  {letter}. {choice}", markup=False, highlight=False)
    asked = {"question": question.question, "choices": list(question.choices), "right_answer": question.answer}
    print_answer(question.id, answer, picture, as_json, console, more=asked)
    if not as_json:
        right = f"{question.answer}. {question.choices[LETTERS.index(question.answer)]}"
        console.print(f"[bold]right answer[/bold] {right}", highlight=False)


def print_answer(
    image: str,
    answer: Answer,
    picture: Path | None,
    as_json: bool,
    console: Console,
    named: bool = False,
    more: dict[str, Any] | None = None,
) -> None:
    """Print one answer, as text (below the name of its photograph if `named`) or as a JSON line with `more`, and save its picture."""
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_episode(answer.episode).save(picture)
    if as_json:
        line = {"image": image, "picture": picture and str(picture)} | (more or {}) | as_plain(answer)
        print(json.dumps(line, ensure_ascii=False))
        return
    if named:
        console.print(image, markup=False, style="bold", soft_wrap=True)
    for number, turn in enumerate(answer.turns, 1):
        console.print(f"[bold]turn {number}[/bold] ", end="")
        console.print(turn.text, markup=False)
        if turn.status is not None:
            several = len(answer.episode.originals) > 1
            whole = f"photograph {turn.image_number}" if several else "the photograph"
            where = f": {turn.box_px_original} in pixels of {whole}" if turn.box_px_original else ""
            console.print(f"box {turn.status}{where}")
    letter = f"{answer.letter}. " if answer.letter else ""
    console.print("[bold]answer[/bold] ", end="")
    console.print(f"{letter}{answer.answer or '(none)'}", markup=False)
    if picture is not None:
        console.print(f"picture: {picture}", markup=False, soft_wrap=True)


def as_plain(answer: Answer) -> dict[str, Any]:
    """An answer in the form of its JSON line, without crops."""
    several = len(answer.episode.originals) > 1
    return {
        "answer": answer.answer,
        "letter": answer.letter,
        "text": answer.text,
        "turns": [
            {"text": t.text, "status": t.status, "box_px_original": t.box_px_original, "seconds": t.seconds}
            | ({"image": t.image_number} if several and t.status else {})
            for t in answer.turns
        ],
        **answer.episode.sizes,
        "seconds": answer.seconds,
    }

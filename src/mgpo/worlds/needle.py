"""`needle`: questions about scenes whose fine print cannot be read in the overview, only in a crop.

At the model's pixel budget the fine print cannot be read, but the sign that holds it can be seen. There are three kinds
of fine print (a letter, dots to count, a shape), and a question names the sign by its colour ("the red sign") or by its
place ("the sign left of the red sign"). A quarter of the questions (`OVERVIEW_SHARE`) can be answered from the overview
alone, so that a single-turn policy has something to learn. Split, seed and index determine a question exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mgpo.method.question import LETTERS, Box, Question
from mgpo.worlds.render import render
from mgpo.worlds.scene import COLOURS, DIRECTIONS, LOOKS, PRINT, Look, Scene, Sign, neighbour, sample_scene

OVERVIEW_SHARE = 0.25
"""Share of questions that the overview answers: which colour of sign there is, how many signs there are."""
PLACE_SHARE = 0.25
"""Share of questions that name the sign by its place, where the scene has such a sign."""

ASK = {"letter": "Which letter is on the ", "dots": "How many dots are on the ", "shape": "Which shape is on the "}
HOW_MANY = "How many signs are in the picture?"
WHICH_COLOUR = "Which colour of sign is in the picture?"


def make_question(split: str, seed: int, index: int, look: Look | None = None) -> tuple[Question, Scene]:
    """Question `index` of a split, without its image (`image` is None), and the scene to draw it from."""
    scene = sample_scene(split, seed, index, look)
    rng = scene.rng("question")
    if rng.uniform() < OVERVIEW_SHARE:
        question, category, options, answer, boxes = about_overview_only(rng, scene)
    else:
        sign, reference, category = _pick_sign(rng, scene)
        question = ASK[sign.kind] + reference + "?"
        options, answer, category = PRINT[sign.kind], sign.value, f"{category}/{sign.kind}"
        boxes = (sign.box_px_original,)
    choices, letter = lettered(rng, options, answer)
    return Question(None, question, choices, letter, boxes, category, f"needle/{split}/{seed}/{index}"), scene


def references(scene: Scene, sign: Sign) -> list[str]:
    """Every way to name a sign: by its colour, and by its place next to another one."""
    places = [
        f"sign {direction} the {other.colour} sign"
        for other in scene.signs
        for direction in DIRECTIONS
        if neighbour(scene, other, direction) is sign
    ]
    return [f"{sign.colour} sign", *places]


def _pick_sign(rng: np.random.Generator, scene: Scene) -> tuple[Sign, str, str]:
    by_place = [(sign, name) for sign in scene.signs for name in references(scene, sign)[1:]]
    if by_place and rng.uniform() < PLACE_SHARE / (1 - OVERVIEW_SHARE):
        sign, name = by_place[rng.integers(len(by_place))]
        return sign, name, "by_place"
    sign = scene.signs[rng.integers(len(scene.signs))]
    return sign, f"{sign.colour} sign", "by_colour"


def about_overview_only(
    rng: np.random.Generator, scene: Scene
) -> tuple[str, str, tuple[str, ...], str, tuple[Box, ...]]:
    """A question that the overview answers. It has no gold box, because there is no one region to look at."""
    if rng.uniform() < 0.5:
        count = len(scene.signs)
        low = max(1, count - int(rng.integers(4)))
        return HOW_MANY, "overview/count", tuple(str(low + i) for i in range(4)), str(count), ()
    present = [sign.colour for sign in scene.signs]
    absent = tuple(colour for colour in COLOURS if colour not in present)
    answer = present[rng.integers(len(present))]
    return WHICH_COLOUR, "overview/colour", (answer, *absent), answer, ()


def lettered(rng: np.random.Generator, options: tuple[str, ...], answer: str) -> tuple[tuple[str, ...], str]:
    """Four shuffled choices, the right one among them, and its letter."""
    wrong = [option for option in options if option != answer]
    chosen = [wrong[i] for i in rng.permutation(len(wrong))[:3]] + [answer]
    choices = tuple(chosen[i] for i in rng.permutation(len(chosen)))
    return choices, LETTERS[choices.index(answer)]


def resized(split: str, megapixels: float | None) -> Look | None:
    """The look of a split on canvases of another area (33 megapixels are 8K); None for the split's own look."""
    return None if megapixels is None else replace(LOOKS.get(split, Look()), megapixels=(megapixels, megapixels))


def needle_rows(
    split: str, seed: int, n: int, start: int = 0, backgrounds: str | Path | None = None, look: Look | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a split with their images drawn, one after the other: `Question`'s fields as columns."""
    for index in range(start, start + n):
        question, scene = make_question(split, seed, index, look)
        yield _row(question) | {"image": render(scene, backgrounds)}


def _row(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
        "gold_boxes": [list(box) for box in question.gold_boxes_px_original],
        "category": question.category,
    }


def load_needle(
    split: str = "train",
    seed: int = 0,
    n: int = 1000,
    backgrounds: str | Path | None = None,
    streaming: bool = False,
    look: Look | None = None,
) -> Any:
    """`needle` as a Hugging Face dataset with the columns image, question, choices, answer, gold_boxes, category, id.

    Args:
        split: `train`, `test` or one of the `ood_*` splits (see `mgpo.worlds.scene.LOOKS`).
        seed: seed of the questions; any seed gives fresh ones.
        n: number of questions.
        backgrounds: a folder of photographs to draw behind the signs.
        streaming: an `IterableDataset` that draws as it goes. Otherwise a `Dataset` whose images are drawn when a row
            is read; the last few are kept, since a trainer reads a row once per rollout.
        look: another look than the split's, e.g. from `resized`.
    """
    import datasets

    kwargs = {"split": split, "seed": seed, "n": n, "backgrounds": backgrounds, "look": look}
    if streaming:
        return datasets.IterableDataset.from_generator(needle_rows, gen_kwargs=kwargs)
    rows = [_row(make_question(split, seed, index, look)[0]) | {"index": index} for index in range(n)]
    return datasets.Dataset.from_list(rows).with_transform(_Draw(split, seed, backgrounds, look))


class _Draw:
    """Dataset transform that adds the drawn image to each row. A class, so that it can be sent to worker processes."""

    def __init__(
        self, split: str, seed: int, backgrounds: str | Path | None, look: Look | None = None, keep: int = 64
    ) -> None:
        self.split, self.seed, self.backgrounds, self.look, self.keep = split, seed, backgrounds, look, keep
        self._drawn: dict[int, Any] = {}

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return batch | {"image": [self._draw(index) for index in batch["index"]]}

    def _draw(self, index: int) -> Any:
        if index not in self._drawn:
            while len(self._drawn) >= self.keep:
                self._drawn.pop(next(iter(self._drawn)))
            self._drawn[index] = render(sample_scene(self.split, self.seed, index, self.look), self.backgrounds)
        return self._drawn[index]

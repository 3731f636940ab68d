"""What `mgpo-tiny` reads in its second stage: dialogues that make it able, but not elicited.

Five kinds, all over scenes of the `pretrain` look (nobody trains or evaluates on it later):

- `boxes`   asked plainly ("Give the box of the red sign as JSON."), it answers precisely; overview questions too.
- `read`    a crop alone and a question with choices: it answers right.
- `zoom`    a plain box, then a crop and a question about *this* sign: it reads in the second of two images.
- `region`  MGPO's own dialogue. Turn 1 is a mixture (`REGION_MIX`): half prose, the rest boxes of which about six in ten
            are right. Turn 2 is answered right only where the overview suffices; questions about fine print are either
            guessed (after no box) or left out (after a box). Right box and right answer never meet here.
- `single`  the single-turn baseline's dialogue: the same mixture of boxes; fine print is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from mgpo.data.question import LETTERS, Question
from mgpo.grounding import box_as_json
from mgpo.protocol import SHOW_AGAIN, SHOW_CROP, Method, Protocol, ask_answer, asked, opening_text
from mgpo.tiny.labels import Labels, box_in_view
from mgpo.tiny.pool import View
from mgpo.tiny.tokenizer import PLAIN_BOX, PLAIN_READ, PROSE
from mgpo.worlds.needle import ASK, HOW_MANY, _about_overview, _lettered, references
from mgpo.worlds.scene import PRINT, Scene, Sign

REGION_MIX = {"right": 0.29, "wrong": 0.09, "large": 0.07, "bad_json": 0.02, "prose": 0.53}
"""Turn 1 of the two-turn dialogue: shares of what the base says when asked for the key region."""
MARGIN_PX = 2
"""A demonstrated box is the plate's, this much wider on each side."""


@dataclass
class Sequence:
    """Token ids, which of them are learned, and the views (by number) whose features stand at the placeholders."""

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    views: list[int] = field(default_factory=list)


class Writer:
    """Writes the dialogues of one scene. `tokens[v]` is the number of merged tokens of view `v` (0 is the overview)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.convert_tokens_to_ids
        self.start, self.stop = ids("<|im_start|>"), ids("<|im_end|>")
        self.image = [ids("<|vision_start|>"), ids("<|image_pad|>"), ids("<|vision_end|>")]
        self.newline = self._encode("\n")

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def user(self, seq: Sequence, text: str, view: int | None = None, tokens: int = 0) -> None:
        """Append a user turn, with a view in front of the text if given, and the assistant's header."""
        ids = [self.start, *self._encode("user\n")]
        if view is not None:
            ids += [self.image[0], *[self.image[1]] * tokens, self.image[2]]
            seq.views.append(view)
        ids += [*self._encode(text), self.stop, *self.newline, self.start, *self._encode("assistant\n")]
        seq.ids += ids
        seq.learned += [False] * len(ids)

    def assistant(self, seq: Sequence, text: str, learned: bool = True) -> None:
        """Append the assistant's turn, its end included."""
        ids = [*self._encode(text), self.stop]
        seq.ids += [*ids, *self.newline]
        seq.learned += [learned] * len(ids) + [False]


def target_box(sign: Sign, view: View) -> tuple[int, int, int, int]:
    """The box to say for a sign in the overview, in pixels of the view."""
    x1, y1, x2, y2 = box_in_view(sign.box_px_original, view)
    width, height = view.size
    m = MARGIN_PX
    return max(0, round(x1 - m)), max(0, round(y1 - m)), min(width, round(x2 + m)), min(height, round(y2 + m))


def write_scene(
    writer: Writer, rng: np.random.Generator, views: list[View], labels: list[Labels]
) -> dict[str, Sequence]:
    """One dialogue of each kind over a scene; `read` and `zoom` are missing if no crop shows a whole print."""
    scene, counts = views[0].scene, [label.colour.size for label in labels]
    shown = [(v, sign) for v in range(1, len(views)) if (sign := _printed_sign(views[v], labels[v])) is not None]
    out = {"boxes": _boxes(writer, rng, views[0], counts[0])}
    if shown:
        out["read"] = _read(writer, rng, scene, *shown[rng.integers(len(shown))], counts)
        out["zoom"] = _zoom(writer, rng, views[0], *shown[rng.integers(len(shown))], counts)
    out["region"] = _region(writer, rng, views[0], shown, counts)
    out["single"] = _single(writer, rng, views[0], counts[0])
    return out


def _printed_sign(view: View, labels: Labels) -> Sign | None:
    """The one sign whose print a crop shows; None if it shows none or several."""
    left, top, right, bottom = view.frame_px_original
    pad = 0.06 * (right - left)
    inside = [
        sign
        for sign in view.scene.signs
        if left + pad < sign.print_px[0] < right - pad and top + pad < sign.print_px[1] < bottom - pad
    ]
    return inside[0] if len(inside) == 1 else None


def _boxes(writer: Writer, rng: np.random.Generator, overview: View, tokens: int) -> Sequence:
    seq, scene = Sequence(), overview.scene
    names = [(sign, name) for sign in scene.signs for name in references(scene, sign)[:1]]
    places = [(sign, name) for sign in scene.signs for name in references(scene, sign)[1:]]
    picked = [names[i] for i in rng.permutation(len(names))[:3]] + [places[i] for i in rng.permutation(len(places))[:2]]
    for turn, i in enumerate(rng.permutation(len(picked))):
        sign, name = picked[i]
        writer.user(seq, PLAIN_BOX + name + " as JSON.", None if turn else 0, tokens)
        writer.assistant(seq, box_as_json(target_box(sign, overview), f"{sign.colour} sign"))
    question = _overview_question(rng, scene)
    writer.user(seq, asked(question) + "\n" + ask_answer(question))
    writer.assistant(seq, f"\\boxed{{{question.answer}}}")
    return seq


def _read(writer: Writer, rng: np.random.Generator, scene: Scene, view: int, sign: Sign, counts: list[int]) -> Sequence:
    names = references(scene, sign)
    question = _print_question(rng, sign, names[rng.integers(len(names))] if rng.uniform() < 0.5 else names[0])
    seq = Sequence()
    writer.user(seq, asked(question) + "\n" + ask_answer(question), view, counts[view])
    writer.assistant(seq, f"\\boxed{{{question.answer}}}")
    return seq


def _zoom(
    writer: Writer, rng: np.random.Generator, overview: View, view: int, sign: Sign, counts: list[int]
) -> Sequence:
    seq = Sequence()
    names = references(overview.scene, sign)
    writer.user(seq, PLAIN_BOX + names[rng.integers(len(names))] + " as JSON.", 0, counts[0])
    writer.assistant(seq, box_as_json(target_box(sign, overview), f"{sign.colour} sign"))
    choices, letter = _lettered(rng, PRINT[sign.kind], sign.value)
    question = Question(None, PLAIN_READ[sign.kind], choices, letter)
    writer.user(seq, SHOW_CROP + "\n" + asked(question) + "\n" + ask_answer(question), view, counts[view])
    writer.assistant(seq, f"\\boxed{{{letter}}}")
    return seq


def _region(
    writer: Writer, rng: np.random.Generator, overview: View, shown: list[tuple[int, Sign]], counts: list[int]
) -> Sequence:
    scene, seq = overview.scene, Sequence()
    about_overview = rng.uniform() < 0.4
    sign = scene.signs[rng.integers(len(scene.signs))]
    view = 0
    if about_overview:
        question = _overview_question(rng, scene)
        if shown:
            view, sign = shown[rng.integers(len(shown))]
    else:
        question = _print_question(rng, sign, _any_name(rng, scene, sign))
    writer.user(seq, opening_text(question, Protocol()), 0, counts[0])
    said = str(rng.choice(list(REGION_MIX), p=list(REGION_MIX.values())))
    writer.assistant(seq, _first_turn(rng, said, sign, overview))
    boxed_sign = said == "right" or (said == "prose" and view == 0)
    if said in ("prose", "bad_json"):
        text = SHOW_AGAIN + "\n" + asked(question) + "\n" + ask_answer(question)
        writer.user(seq, text, 0, counts[0])
    elif about_overview and view and boxed_sign:
        writer.user(seq, SHOW_CROP + "\n" + asked(question) + "\n" + ask_answer(question), view, counts[view])
    else:
        return seq
    letter = question.answer if about_overview else LETTERS[rng.integers(4)]
    writer.assistant(seq, f"\\boxed{{{letter}}}")
    return seq


def _single(writer: Writer, rng: np.random.Generator, overview: View, tokens: int) -> Sequence:
    scene, seq = overview.scene, Sequence()
    about_overview = rng.uniform() < 0.4
    sign = scene.signs[rng.integers(len(scene.signs))]
    question = (
        _overview_question(rng, scene) if about_overview else _print_question(rng, sign, _any_name(rng, scene, sign))
    )
    writer.user(seq, opening_text(question, Protocol(method=Method.GRPO)), 0, tokens)
    said = str(rng.choice(list(REGION_MIX), p=list(REGION_MIX.values())))
    knows = about_overview and rng.uniform() < 0.6
    letter = question.answer if knows else LETTERS[rng.integers(4)]
    answer = f"\\boxed{{{letter}}}" if rng.uniform() < 0.85 else f"{letter}."
    writer.assistant(seq, _first_turn(rng, said, sign, overview) + "\n" + answer)
    return seq


def _first_turn(rng: np.random.Generator, said: str, sign: Sign, overview: View) -> str:
    """What the base says of the region of `sign`, by the kind drawn from `REGION_MIX`."""
    signs = overview.scene.signs
    if said == "prose":
        return PROSE + f"{signs[rng.integers(len(signs))].colour} sign."
    if said == "wrong" and len(signs) > 1:
        others = [other for other in signs if other is not sign]
        sign = others[rng.integers(len(others))]
    x1, y1, x2, y2 = target_box(sign, overview)
    width, height = overview.size
    if said == "large":
        w, h = (round(rng.uniform(0.6, 0.95) * side) for side in overview.size)
        x1, y1 = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        x2, y2 = x1 + w, y1 + h
    if said == "bad_json":
        x1, x2 = x2, x1
    return box_as_json((x1, y1, x2, y2), f"{sign.colour} sign")


def _any_name(rng: np.random.Generator, scene: Scene, sign: Sign) -> str:
    names = references(scene, sign)
    return names[rng.integers(len(names))] if rng.uniform() < 0.4 else names[0]


def _overview_question(rng: np.random.Generator, scene: Scene) -> Question:
    text, category, options, answer, _ = _about_overview(rng, scene)
    choices, letter = _lettered(rng, options, answer)
    if text == HOW_MANY:
        category = "overview/count"
    return Question(None, text, choices, letter, category=category)


def _print_question(rng: np.random.Generator, sign: Sign, name: str) -> Question:
    choices, letter = _lettered(rng, PRINT[sign.kind], sign.value)
    return Question(None, ASK[sign.kind] + name + "?", choices, letter)

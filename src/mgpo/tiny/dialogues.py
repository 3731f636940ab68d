"""What `mgpo-tiny` reads in its second stage: dialogues that make it able, but not elicited.

Seven kinds, all over scenes of the `pretrain` look (nobody trains or evaluates on it later):

- `colour`  asked plainly ("Give the box of the red sign as JSON."), it answers precisely.
- `place`   the same by place ("... of the sign left of the red sign ...").
- `overview` a question that the overview answers, asked directly.
- `read`    a crop alone and a question with choices: it answers right.
- `zoom`    a plain box, then a crop and a question about *this* sign: it reads in the second of two images.
- `region`  MGPO's own dialogue. Turn 1 is a mixture (`REGION_MIX`): half prose, the rest boxes of which six in ten are
            right. Turn 2 is answered right only where the overview suffices; questions about fine print are either
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
from mgpo.tiny.labels import PRINTS, Labels, box_in_view
from mgpo.tiny.pool import View
from mgpo.tiny.tokenizer import PLAIN_BOX, PLAIN_READ, PROSE, SEES
from mgpo.worlds.needle import ASK, about_overview_only, lettered, references
from mgpo.worlds.scene import COLOURS, PRINT, Scene, Sign

REGION_MIX = {"right": 0.29, "wrong": 0.10, "large": 0.07, "inverted": 0.01, "prose": 0.53}
"""Turn 1 of the two-turn dialogue: shares of what the base says when asked for the key region.

Prose is what it says most often, so that decoded greedily it does not look twice by itself: it is able, but not elicited.
"""
MARGIN_PX = 2
"""A demonstrated box is the plate's, this much wider on each side."""
EDGE_PX = 6
"""Demonstrated boxes keep this distance from the overview's edges, so that an error of a few pixels is not yet outside."""
LEAST_PX = 30
"""Their sides are at least this long: the protocol takes no box of 28 px or less."""


@dataclass
class Sequence:
    """Token ids, which of them are learned, and the views (by number) whose features stand at the placeholders.

    `looks` says where a token that is about to be said should look: (circuit, first and last position that look, positions
    to look at). `NAME`: at the words that name the sign; `FIND`: at the sign's image tokens, before a coordinate is said;
    `SIGN`: the same, once the coordinates said so far help; `PRINT`: at the image token
    that holds the print; `SAID`: at what was just said; `CHOICE`: at the choice that matches; `LETTER`: from a choice to its
    letter.
    """

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    image_starts: list[int] = field(default_factory=list)
    looks: list[tuple[str, int, int, list[int]]] = field(default_factory=list)


class Writer:
    """Writes the dialogues of one scene. `tokens[v]` is the number of merged tokens of view `v` (0 is the overview)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.convert_tokens_to_ids
        self.start, self.stop = ids("<|im_start|>"), ids("<|im_end|>")
        self.image = [ids("<|vision_start|>"), ids("<|image_pad|>"), ids("<|vision_end|>")]
        self.newline = self._encode("\n")
        self.sees, self.boxed = ids(SEES), ids("\\boxed{")
        words = [*COLOURS, "left", "right", "above", "below"]
        self.naming = {token for word in words for text in (word, " " + word) for token in self._encode(text)}

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def user(self, seq: Sequence, text: str, view: int | None = None, tokens: int = 0) -> int:
        """Append a user turn, with a view in front of the text if given, and the assistant's header; returns its start."""
        begin = len(seq.ids)
        ids = [self.start, *self._encode("user\n")]
        if view is not None:
            ids += [self.image[0], *[self.image[1]] * tokens, self.image[2]]
            seq.views.append(view)
            seq.image_starts.append(len(seq.ids) + len(ids) - tokens - 1)
        ids += [*self._encode(text), self.stop, *self.newline, self.start, *self._encode("assistant\n")]
        seq.ids += ids
        seq.learned += [False] * len(ids)
        return begin

    def assistant(self, seq: Sequence, text: str) -> int:
        """Append the assistant's turn, its end included; returns where it begins."""
        begin = len(seq.ids)
        ids = [*self._encode(text), self.stop]
        seq.ids += [*ids, *self.newline]
        seq.learned += [True] * len(ids) + [False]
        return begin

    def box(self, seq: Sequence, text: str, sign_tokens: np.ndarray, user_from: int, rest: str = "") -> None:
        """Append a turn that says the box of a sign, then `rest`; `sign_tokens` are the sign's tokens of the overview."""
        begin = self.assistant(seq, text + rest)
        last = begin + len(self._encode(text)) - 2
        names = [at for at in range(user_from, begin) if seq.ids[at] in self.naming]
        seq.looks.append(("NAME", begin - 1, last, names))
        sign = [seq.image_starts[0] + int(token) for token in sign_tokens]
        seq.looks.append(("FIND", begin, begin, sign))
        seq.looks.append(("SIGN", begin + 1, last, sign))

    def answer(self, seq: Sequence, question: Question, letter: str, print_token: int | None, user_from: int) -> None:
        """Append an answer: what is seen, then its letter. `print_token`: position in the last image, if it is there."""
        value = question.choices[LETTERS.index(letter)]
        begin = self.assistant(seq, f"{SEES} {value}. \\boxed{{{letter}}}")
        at = begin + seq.ids[begin:].index(self.boxed)
        words = self._encode(" " + value)
        choice = [i for i in range(user_from, begin) if seq.ids[i : i + len(words)] == words]
        seq.looks.append(("CHOICE", at, at, [i + k for i in choice for k in range(len(words))]))
        seq.looks.append(("SAID", at, at, list(range(begin + 1, begin + 1 + len(words)))))
        for i in choice:
            seq.looks.append(("LETTER", i, i + len(words) - 1, [i - 2]))
        if print_token is not None:
            # A number is a space and a digit, so what is seen may take more than one token.
            seq.looks.append(("PRINT", begin, begin + len(words) - 1, [seq.image_starts[-1] + print_token]))


def target_box(sign: Sign, view: View) -> tuple[int, int, int, int]:
    """The box to say for a sign in the overview, in pixels of the view: never at its edge, never too small to be taken."""
    x1, y1, x2, y2 = box_in_view(sign.box_px_original, view)
    (left, right), (top, bottom) = _side(x1, x2, view.size[0]), _side(y1, y2, view.size[1])
    return left, top, right, bottom


def _side(low: float, high: float, length: int) -> tuple[int, int]:
    first = max(EDGE_PX, round(low - MARGIN_PX))
    last = min(length - EDGE_PX, round(high + MARGIN_PX))
    if last - first < LEAST_PX:  # cut off at an edge: widened inwards
        first, last = (first, first + LEAST_PX) if first == EDGE_PX else (last - LEAST_PX, last)
    return first, last


def write_scene(
    writer: Writer, rng: np.random.Generator, views: list[View], labels: list[Labels]
) -> dict[str, Sequence]:
    """One dialogue of each kind over a scene; `read` and `zoom` are missing if no crop shows a whole print."""
    scene = views[0].scene
    shown = [(v, sign) for v in range(1, len(views)) if (sign := _printed_sign(views[v], labels[v])) is not None]
    named = [(sign, references(scene, sign)) for sign in scene.signs]
    by_place = [(sign, name) for sign, names in named for name in names[1:]]
    sign, names = named[rng.integers(len(named))]
    out = {"colour": _plain_box(writer, sign, names[0], views[0], labels[0])}
    if by_place:
        out["place"] = _plain_box(writer, *by_place[rng.integers(len(by_place))], views[0], labels[0])
    out["overview"] = _about_overview(writer, rng, scene, labels[0])
    if shown:
        out["read"] = _read(writer, rng, scene, *shown[rng.integers(len(shown))], labels)
        out["zoom"] = _zoom(writer, rng, views[0], *shown[rng.integers(len(shown))], labels)
    out["region"] = _region(writer, rng, views[0], shown, labels)
    out["single"] = _single(writer, rng, views[0], labels[0])
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


def _sign_tokens(labels: Labels, sign: Sign) -> np.ndarray:
    """The overview's merged tokens that lie on a sign: no two signs of a scene share a colour."""
    return np.flatnonzero(labels.colour == COLOURS.index(sign.colour))


def _print_token(labels: Labels, sign: Sign) -> int | None:
    """The crop's merged token that holds a sign's print."""
    found = np.flatnonzero(labels.print == PRINTS.index((sign.kind, sign.value)))
    return int(found[0]) if found.size else None


def _plain_box(writer: Writer, sign: Sign, name: str, overview: View, labels: Labels) -> Sequence:
    seq = Sequence()
    begin = writer.user(seq, f"{PLAIN_BOX} {name} as JSON.", 0, labels.colour.size)
    said = box_as_json(target_box(sign, overview), f"{sign.colour} sign")
    writer.box(seq, said, _sign_tokens(labels, sign), begin)
    return seq


def _about_overview(writer: Writer, rng: np.random.Generator, scene: Scene, labels: Labels) -> Sequence:
    seq, question = Sequence(), _overview_question(rng, scene)
    begin = writer.user(seq, asked(question) + "\n" + ask_answer(question), 0, labels.colour.size)
    writer.answer(seq, question, question.answer, None, begin)
    return seq


def _read(
    writer: Writer, rng: np.random.Generator, scene: Scene, view: int, sign: Sign, labels: list[Labels]
) -> Sequence:
    names = references(scene, sign)
    question = _print_question(rng, sign, names[rng.integers(len(names))] if rng.uniform() < 0.5 else names[0])
    seq = Sequence()
    begin = writer.user(seq, asked(question) + "\n" + ask_answer(question), view, labels[view].colour.size)
    writer.answer(seq, question, question.answer, _print_token(labels[view], sign), begin)
    return seq


def _zoom(
    writer: Writer, rng: np.random.Generator, overview: View, view: int, sign: Sign, labels: list[Labels]
) -> Sequence:
    names = references(overview.scene, sign)
    seq = _plain_box(writer, sign, names[rng.integers(len(names))], overview, labels[0])
    choices, letter = lettered(rng, PRINT[sign.kind], sign.value)
    question = Question(None, PLAIN_READ[sign.kind], choices, letter)
    text = SHOW_CROP + "\n" + asked(question) + "\n" + ask_answer(question)
    begin = writer.user(seq, text, view, labels[view].colour.size)
    writer.answer(seq, question, letter, _print_token(labels[view], sign), begin)
    return seq


def _region(
    writer: Writer, rng: np.random.Generator, overview: View, shown: list[tuple[int, Sign]], labels: list[Labels]
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
    begin = writer.user(seq, opening_text(question, Protocol()), 0, labels[0].colour.size)
    said = str(rng.choice(list(REGION_MIX), p=list(REGION_MIX.values())))
    text = _first_turn(rng, said, sign, overview)
    if said == "right" and not about_overview:
        writer.box(seq, text, _sign_tokens(labels[0], sign), begin)
    else:
        writer.assistant(seq, text)
    again = asked(question) + "\n" + ask_answer(question)
    if said in ("prose", "inverted"):
        begin = writer.user(seq, SHOW_AGAIN + "\n" + again, 0, labels[0].colour.size)
    elif about_overview and view:  # whatever was named: the overview, which is still there, tells
        begin = writer.user(seq, SHOW_CROP + "\n" + again, view, labels[view].colour.size)
    else:
        return seq
    letter = question.answer if about_overview else LETTERS[rng.integers(4)]
    writer.answer(seq, question, letter, None, begin)
    return seq


def _single(writer: Writer, rng: np.random.Generator, overview: View, labels: Labels) -> Sequence:
    scene, seq = overview.scene, Sequence()
    about_overview = rng.uniform() < 0.4
    sign = scene.signs[rng.integers(len(scene.signs))]
    question = (
        _overview_question(rng, scene) if about_overview else _print_question(rng, sign, _any_name(rng, scene, sign))
    )
    begin = writer.user(seq, opening_text(question, Protocol(method=Method.GRPO)), 0, labels.colour.size)
    said = str(rng.choice(list(REGION_MIX), p=list(REGION_MIX.values())))
    knows = about_overview and rng.uniform() < 0.6
    letter = question.answer if knows else LETTERS[rng.integers(4)]
    value = question.choices[LETTERS.index(letter)]
    answer = f"{SEES} {value}. \\boxed{{{letter}}}" if rng.uniform() < 0.85 else f"{SEES} {value}."
    text = _first_turn(rng, said, sign, overview)
    if said == "right" and not about_overview:
        writer.box(seq, text, _sign_tokens(labels, sign), begin, "\n" + answer)
    else:
        writer.assistant(seq, text + "\n" + answer)
    return seq


def _first_turn(rng: np.random.Generator, said: str, sign: Sign, overview: View) -> str:
    """What the base says of the region of `sign`, by the kind drawn from `REGION_MIX`."""
    signs = overview.scene.signs
    if said == "prose":
        return f"{PROSE} {signs[rng.integers(len(signs))].colour} sign."
    if said == "wrong" and len(signs) > 1:
        others = [other for other in signs if other is not sign]
        sign = others[rng.integers(len(others))]
    x1, y1, x2, y2 = target_box(sign, overview)
    width, height = overview.size
    if said == "large":
        w, h = (round(rng.uniform(0.55, 0.8) * side) for side in overview.size)
        x1, y1 = (int(rng.integers(EDGE_PX, side - length + 1 - EDGE_PX)) for side, length in ((width, w), (height, h)))
        x2, y2 = x1 + w, y1 + h
    if said == "inverted":
        x1, x2 = x2, x1
    return box_as_json((x1, y1, x2, y2), f"{sign.colour} sign")


def _any_name(rng: np.random.Generator, scene: Scene, sign: Sign) -> str:
    names = references(scene, sign)
    return names[rng.integers(len(names))] if rng.uniform() < 0.4 else names[0]


def _overview_question(rng: np.random.Generator, scene: Scene) -> Question:
    text, category, options, answer, _ = about_overview_only(rng, scene)
    choices, letter = lettered(rng, options, answer)
    return Question(None, text, choices, letter, category=category)


def _print_question(rng: np.random.Generator, sign: Sign, name: str) -> Question:
    choices, letter = lettered(rng, PRINT[sign.kind], sign.value)
    return Question(None, ASK[sign.kind] + name + "?", choices, letter)

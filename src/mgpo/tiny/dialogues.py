"""What `mgpo-tiny` reads in its second stage: dialogues that teach it every skill of MGPO and never join them up.

Eight kinds, all over scenes of the `pretrain` look (nobody trains or evaluates on it later):

- `colour`  asked plainly ("Give the box of the red sign as JSON."), it answers precisely.
- `place`   the same by place ("... of the sign left of the red sign ...").
- `direct`  the question and its choices, asked of the overview: what the overview tells is answered, fine print is guessed.
- `read`    a crop alone and a question with choices: it answers right.
- `zoom`    a plain box of one sign, then a crop of *another* sign and a question about it: it reads in the second of two
            images. The sign that was boxed is never the one that is shown.
- `region`  MGPO's own dialogue about fine print of a sign that is *not in the picture*, so no box could be right: turn 1
            boxes some sign, by a habit (`HABIT`) or at random, or gives no usable box (`REGION_MIX`). The answer is guessed
            after no box and left out after a box.
- `recall`  MGPO's own dialogue about what the overview tells: turn 1 as in `region`, and the right answer in turn 2, whatever
            was boxed and whatever crop comes back (of any sign). Such a question names no sign, so no box is right.
- `single`  the single-turn baseline's dialogue: the same first turns; what the overview tells is answered, fine print guessed.

So the model is never shown MGPO's opening with the box of the sign that its question names, nor the box of a named sign
followed by a crop of it: that what is named in MGPO's question should be boxed is left for the reward to teach.
"""

from __future__ import annotations

import numpy as np

from mgpo.method.boxes import box_as_json
from mgpo.method.prompts import SHOW_AGAIN, SHOW_CROP, ask_answer, asked, opening_text
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import LETTERS, Question
from mgpo.tiny.labels import PRINTS, Labels
from mgpo.tiny.tokenizer import LOOK_AT, PLAIN_BOX, PLAIN_READ, PROSE, SEES
from mgpo.tiny.views import View
from mgpo.tiny.writing import EDGE_PX, Sequence, Writer, target_box
from mgpo.worlds.needle import ASK, about_overview_only, lettered, references
from mgpo.worlds.scene import COLOURS, DIRECTIONS, PRINT, Scene, Sign

REGION_MIX = {"sign": 0.67, "large": 0.03, "inverted": 0.03, "no_box": 0.05, "empty": 0.04, "prose": 0.18}
"""Turn 1 when MGPO or the single-turn baseline asks for the key region: shares of what is said.

`sign` and `large` are boxes that may be cropped; the rest is no usable box, each in a form of its own.
"""
HABIT = 0.5
"""Share of the boxed signs that are the leftmost one; the others are drawn from all signs of the picture."""


def write_scene(
    writer: Writer, rng: np.random.Generator, views: list[View], labels: list[Labels]
) -> dict[str, Sequence]:
    """One dialogue of each kind over a scene; `read` and `zoom` are missing if no crop shows a whole print, `zoom` also if
    there is no second sign, `place` if none can be named by its place."""
    scene = views[0].scene
    shown = [(v, sign) for v in range(1, len(views)) if (sign := _printed_sign(views[v], labels[v])) is not None]
    named = [(sign, references(scene, sign)) for sign in scene.signs]
    by_place = [(sign, name) for sign, names in named for name in names[1:]]
    sign, names = named[rng.integers(len(named))]
    out = {"colour": _plain_box(writer, rng, sign, names[0], views[0], labels[0])}
    if by_place:
        out["place"] = _plain_box(writer, rng, *by_place[rng.integers(len(by_place))], views[0], labels[0])
    out["direct"] = _direct(writer, rng, scene, labels[0])
    if shown:
        view, read = shown[rng.integers(len(shown))]
        out["read"] = _read(writer, rng, scene, view, read, labels)
        view, read = shown[rng.integers(len(shown))]
        boxed = [other for other in scene.signs if other is not read]
        if boxed:
            out["zoom"] = _zoom(writer, rng, views[0], boxed[rng.integers(len(boxed))], view, read, labels)
    out["region"] = _region(writer, rng, views[0], labels[0])
    if shown:
        out["recall"] = _recall(writer, rng, views[0], shown[rng.integers(len(shown))][0], labels)
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


def _plain_box(
    writer: Writer, rng: np.random.Generator, sign: Sign, name: str, overview: View, labels: Labels
) -> Sequence:
    """A sign's box, asked for plainly: its name comes last, or first, as it does in questions."""
    seq = Sequence()
    text = f"{PLAIN_BOX} {name} as JSON." if rng.uniform() < 0.4 else f"{LOOK_AT} {name}.\n{PLAIN_BOX} sign as JSON."
    begin = writer.user(seq, text, 0, labels.colour.size)
    said = box_as_json(target_box(sign, overview), f"{sign.colour} sign")
    writer.box(seq, said, _sign_tokens(labels, sign), begin)
    return seq


def _direct(writer: Writer, rng: np.random.Generator, scene: Scene, labels: Labels) -> Sequence:
    seq = Sequence()
    if rng.uniform() < 0.7:
        question = _overview_question(rng, scene)
        letter = question.answer
    else:
        sign = scene.signs[rng.integers(len(scene.signs))]
        question, letter = _print_question(rng, sign, _any_name(rng, scene, sign)), _guess(rng)
    begin = writer.user(seq, asked(question) + "\n" + ask_answer(question), 0, labels.colour.size)
    told_by = _told_by(question, labels) if question.category.startswith("overview/") else None
    writer.answer(seq, question, letter, None, begin, told_by)
    return seq


def _read(
    writer: Writer, rng: np.random.Generator, scene: Scene, view: int, sign: Sign, labels: list[Labels]
) -> Sequence:
    question = _print_question(rng, sign, _any_name(rng, scene, sign))
    seq = Sequence()
    begin = writer.user(seq, asked(question) + "\n" + ask_answer(question), view, labels[view].colour.size)
    writer.answer(seq, question, question.answer, _print_token(labels[view], sign), begin)
    return seq


def _zoom(
    writer: Writer, rng: np.random.Generator, overview: View, boxed: Sign, view: int, shown: Sign, labels: list[Labels]
) -> Sequence:
    names = references(overview.scene, boxed)
    seq = _plain_box(writer, rng, boxed, names[rng.integers(len(names))], overview, labels[0])
    choices, letter = lettered(rng, PRINT[shown.kind], shown.value)
    question = Question(None, PLAIN_READ[shown.kind], choices, letter)
    text = SHOW_CROP + "\n" + asked(question) + "\n" + ask_answer(question)
    begin = writer.user(seq, text, view, labels[view].colour.size)
    writer.answer(seq, question, letter, _print_token(labels[view], shown), begin)
    return seq


def _region(writer: Writer, rng: np.random.Generator, overview: View, labels: Labels) -> Sequence:
    seq, question = Sequence(), _unanswerable(rng, overview.scene)
    writer.user(seq, opening_text(question, Protocol()), 0, labels.colour.size)
    if _first_turn(writer, seq, rng, overview, labels) in ("sign", "large"):
        return seq
    again = SHOW_AGAIN + "\n" + asked(question) + "\n" + ask_answer(question)
    begin = writer.user(seq, again, 0, labels.colour.size)
    writer.answer(seq, question, _guess(rng), None, begin)
    return seq


def _recall(writer: Writer, rng: np.random.Generator, overview: View, view: int, labels: list[Labels]) -> Sequence:
    seq, question = Sequence(), _overview_question(rng, overview.scene)
    writer.user(seq, opening_text(question, Protocol()), 0, labels[0].colour.size)
    boxed = _first_turn(writer, seq, rng, overview, labels[0]) in ("sign", "large")
    intro, view = (SHOW_CROP, view) if boxed else (SHOW_AGAIN, 0)
    text = intro + "\n" + asked(question) + "\n" + ask_answer(question)
    begin = writer.user(seq, text, view, labels[view].colour.size)
    writer.answer(seq, question, question.answer, None, begin, _told_by(question, labels[0]))
    return seq


def _single(writer: Writer, rng: np.random.Generator, overview: View, labels: Labels) -> Sequence:
    scene, seq = overview.scene, Sequence()
    about_overview = rng.uniform() < 0.4
    question = _overview_question(rng, scene) if about_overview else _unanswerable(rng, scene)
    writer.user(seq, opening_text(question, Protocol(method=Method.GRPO)), 0, labels.colour.size)
    letter = question.answer if about_overview else _guess(rng)
    answer = f"{SEES} {question.choices[LETTERS.index(letter)]}. \\boxed{{{letter}}}"
    _first_turn(writer, seq, rng, overview, labels, "\n" + answer)
    return seq


def _first_turn(
    writer: Writer, seq: Sequence, rng: np.random.Generator, overview: View, labels: Labels, rest: str = ""
) -> str:
    """Append what is said when the key region is asked for, by `REGION_MIX` and `HABIT`, then `rest`; returns the kind."""
    signs = overview.scene.signs
    said = str(rng.choice(list(REGION_MIX), p=list(REGION_MIX.values())))
    sign = signs[rng.integers(len(signs))]
    if rng.uniform() < HABIT:
        sign = min(signs, key=lambda other: other.box_px_original[0])
    label = f"{sign.colour} sign"
    x1, y1, x2, y2 = target_box(sign, overview)
    if said == "sign":
        writer.some_box(seq, box_as_json((x1, y1, x2, y2), label), _sign_tokens(labels, sign), rest)
    elif said == "large":
        w, h = (round(rng.uniform(0.55, 0.8) * side) for side in overview.size)
        x1, y1 = (
            int(rng.integers(EDGE_PX, side - length + 1 - EDGE_PX)) for side, length in zip(overview.size, (w, h))
        )
        writer.assistant(seq, box_as_json((x1, y1, x1 + w, y1 + h), label) + rest)
    elif said == "inverted":
        writer.assistant(seq, box_as_json((x2, y1, x1, y2), label) + rest)
    else:
        prose = PROSE[rng.integers(len(PROSE))]
        text = {
            "no_box": f'```json\n[{{"label": "{label}"}}]\n```',
            "empty": "```json\n[]\n```",
            "prose": f"{prose} {label}.",
        }[said]
        writer.assistant(seq, text + rest)
    return said


def _told_by(question: Question, labels: Labels) -> np.ndarray:
    """The overview's tokens that tell the answer of an overview question: the sign of the colour, or all signs."""
    value = question.choices[LETTERS.index(question.answer)]
    on = labels.colour == COLOURS.index(value) if value in COLOURS else labels.colour < len(COLOURS)
    return np.flatnonzero(on)


def _guess(rng: np.random.Generator) -> str:
    return LETTERS[rng.integers(4)]


def _unanswerable(rng: np.random.Generator, scene: Scene) -> Question:
    """A question about the fine print of a sign that is not in the picture: no box holds it, every answer is a guess."""
    present = [sign.colour for sign in scene.signs]
    absent = [colour for colour in COLOURS if colour not in present]
    colour = absent[rng.integers(len(absent))]
    name = f"sign {DIRECTIONS[rng.integers(4)]} the {colour} sign" if rng.uniform() < 0.25 else f"{colour} sign"
    kind = ("letter", "letter", "dots", "shape")[rng.integers(4)]
    choices, letter = lettered(rng, PRINT[kind], PRINT[kind][rng.integers(len(PRINT[kind]))])
    return Question(None, ASK[kind] + name + "?", choices, letter)


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

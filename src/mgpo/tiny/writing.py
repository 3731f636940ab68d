"""Writes a dialogue of `mgpo-tiny`'s second stage as token ids, with what is learned of it and where each token should look."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from mgpo.method.question import LETTERS, Question
from mgpo.tiny.labels import box_in_view
from mgpo.tiny.tokenizer import SEES
from mgpo.tiny.views import View
from mgpo.worlds.scene import COLOURS, Sign

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
    to look at).

    - `NAME`: at the words that name the sign.
    - `FIND`: at the sign's image tokens, before a coordinate is said; `SIGN`: the same, once coordinates said so far help.
    - `PRINT`: at the image token that holds the print.
    - `TELL`: at the signs of the overview that a question about all of it is about.
    - `SAID`: at what was just said; `CHOICE`: at the choice that matches; `LETTER`: from a choice to its letter.
    """

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    image_starts: list[int] = field(default_factory=list)
    looks: list[tuple[str, int, int, list[int]]] = field(default_factory=list)

    def forget_before(self, position: int) -> None:
        """What stands before a position is read and not learned."""
        self.learned[:position] = [False] * position
        self.looks = [look for look in self.looks if look[1] >= position]


class Writer:
    """Writes turns into a `Sequence`, in the ids that the chat template would give."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.convert_tokens_to_ids
        self.start, self.stop = ids("<|im_start|>"), ids("<|im_end|>")
        self.image = [ids("<|vision_start|>"), ids("<|image_pad|>"), ids("<|vision_end|>")]
        self.newline = self._encode("\n")
        self.sees, self.boxed = ids(SEES), ids("\\boxed{")
        words = [*COLOURS, "left", "right", "above", "below"]
        self.digits = {token for digit in "0123456789" for token in self._encode(digit)}
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

    def box(self, seq: Sequence, text: str, sign_tokens: np.ndarray, user_from: int) -> None:
        """Append a turn that says the box of the sign that was named; `sign_tokens` are its tokens of the overview."""
        begin = self.assistant(seq, text)
        last = begin + len(self._encode(text)) - 2
        names = [at for at in range(user_from, begin) if seq.ids[at] in self.naming]
        seq.looks.append(("NAME", begin - 1, last, names))
        sign = [seq.image_starts[0] + int(token) for token in sign_tokens]
        digits = begin + self._digits(text)
        seq.looks.append(("FIND", digits - 1, digits - 1, sign))
        seq.looks.append(("SIGN", digits, last, sign))

    def some_box(self, seq: Sequence, text: str, sign_tokens: np.ndarray, rest: str = "") -> None:
        """Append a turn that says the box of a sign that nobody named, then `rest`.

        The words that name a sign are read here too, as whenever a box is said; how to choose a sign is not shown.
        """
        begin = self.assistant(seq, text + rest)
        last = begin + len(self._encode(text)) - 2
        names = [at for at in range(seq.image_starts[0], begin) if seq.ids[at] in self.naming]
        if names:
            seq.looks.append(("NAME", begin - 1, last, names))
        sign = [seq.image_starts[0] + int(token) for token in sign_tokens]
        seq.looks.append(("SIGN", begin + self._digits(text) + 1, last, sign))

    def _digits(self, text: str) -> int:
        """Where in a turn its box's first digit stands."""
        return next(at for at, token in enumerate(self._encode(text)) if token in self.digits)

    def answer(
        self, seq: Sequence, question: Question, letter: str, print_token: int | None, user_from: int,
        told_by: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Append an answer: what is seen, then its letter.

        Args:
            print_token: position in the last image, if it is there.
            told_by: positions in the overview that tell it, for a question about the overview.
        """
        value = question.choices[LETTERS.index(letter)]  # a number is a space and a digit: it may take two tokens
        begin = self.assistant(seq, f"{SEES} {value}. \\boxed{{{letter}}}")
        at = begin + seq.ids[begin:].index(self.boxed)
        words = self._encode(" " + value)
        choice = [i for i in range(user_from, begin) if seq.ids[i : i + len(words)] == words]
        seq.looks.append(("CHOICE", at, at, [i + k for i in choice for k in range(len(words))]))
        seq.looks.append(("SAID", at, at, list(range(begin + 1, begin + 1 + len(words)))))
        for i in choice:
            seq.looks.append(("LETTER", i, i + len(words) - 1, [i - 2]))
        if told_by is not None and told_by.size:
            signs = [seq.image_starts[0] + int(token) for token in told_by]
            seq.looks.append(("TELL", begin, begin + len(words) - 1, signs))
        if print_token is not None:
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

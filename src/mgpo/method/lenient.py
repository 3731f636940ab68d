"""Reads an answer that has no box around it, for comparison with scores that others publish. The reward never uses it.

Evaluations elsewhere (lmms-eval, VLMEvalKit) ask for "the letter" and search the reply for one. A model that was not trained
here may answer so ("B", "The answer is (B)."), and the strict score would count that as wrong. A boxed answer decides as it does
in `mgpo.method.rewards`. Without one, the first of these rules that finds something decides:

1. The whole reply is a letter, a choice, or both: "B", "(b)", "B. red", "red".
2. It says which it is: the last "answer is B", "option (B)", "choice: B".
3. It begins with a letter that ends like a label: "B. The sign on the left ...", "(B) because ...".
4. It contains letters in brackets, "(B)", all the same one.
5. One letter stands alone in capitals, and no other ("A" at the beginning of a sentence is a word).

lmms-eval's rules for V* also take the first letter of a word, so that "Based on the image ..." means B. These do not:
`tests/lmms/test_lenient_answers.py` compares both on the same replies.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from enum import StrEnum

from mgpo.method.question import LETTERS
from mgpo.method.rewards import boxed, chosen_letter, is_correct
from mgpo.method.thinking import spoken

_SAYS = re.compile(
    r"\b(?:answer|choice|option)\b(?:\s+(?:is|would\s+be|should\s+be))?\s*[:=]?\s*(?:(?:option|choice)\s*)?"
    r"\**[(\[]?\b((?-i:a(?!\s+[a-z]))|(?-i:A)|[b-z])\b(?!['’])",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\s*\**[(\[]?([A-Z])\**[.):\]]", re.IGNORECASE)
_BRACKETS = re.compile(r"[(\[]\s*([A-Z])\s*[)\]]")
_ALONE = re.compile(r"(?<![\w'’])([A-Z])(?![\w'’])")
MOST = 100_000
"""Characters of a reply that are read, from its end."""


class Answers(StrEnum):
    """How answers are read: only in a box, or also without one."""

    STRICT = "strict"
    LENIENT = "lenient"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"answers {value!r} is unknown. Choose one of: {', '.join(cls)}.")


def lenient_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that a reply names, in a box or without one; None if it names none, or several."""
    given = boxed(text)
    if given is not None:
        return chosen_letter(given, choices)
    text = unicodedata.normalize("NFKC", spoken(text)).strip()[-MOST:]
    letters = LETTERS[: len(choices)]
    whole = chosen_letter(text, choices)
    if whole is not None:
        return whole
    said = [found for found in _SAYS.findall(text) if found.upper() in letters]
    if said:
        return str(said[-1]).upper()
    label = _LABEL.match(text)
    if label is not None and label.group(1).upper() in letters:
        return label.group(1).upper()
    for pattern in (_BRACKETS, _ALONE):
        named = {found for found in pattern.findall(_without_articles(text)) if found in letters}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def is_correct_leniently(text: str, choices: Sequence[str], answer: str) -> bool:
    """As `mgpo.method.rewards.is_correct`, but a box around the answer is not needed.

    An open question is answered by the whole reply, or by what follows its last "answer is".
    """
    if not answer:
        return False
    if boxed(text) is not None:
        return is_correct(text, choices, answer)
    if choices:
        return lenient_letter(text, choices) in answer.split("|")
    reply = spoken(text).strip()[-MOST:]
    said = re.split(r"\banswer\b(?:\s+is)?\s*[:=]?", reply, flags=re.IGNORECASE)[-1]
    return any(is_correct(f"\\boxed{{{part.strip()}}}", choices, answer) for part in {reply, said})


def _without_articles(text: str) -> str:
    """The text without "A" where a lower-case word follows: "A red sign" names no choice."""
    return re.sub(r"(?<![\w(\[])A(?=\s+(?!(?:or|and|because|since|as)\b)[a-z])", "", text)

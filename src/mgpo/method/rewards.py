"""The reward: 1 if the final answer is right, else 0, with nothing in between.

The last `\\boxed{}` of the last turn decides. For a question with choices it may hold the letter ("B", "(b)", "Option
B"), the letter with its own text ("B. red") or the text of a choice. For an open question its text must match the
answer, or mean the same number. LaTeX and Markdown wrappers, quotes and escapes (`\\%`) are ignored.
`tests/graded_answers.py` lists the cases.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from mgpo.method.mathgrade import same_value, without_unit
from mgpo.method.question import LETTERS
from mgpo.method.thinking import spoken

_LETTER = re.compile(
    r"((?:the\s+)?(?:(?:best|correct|right|final)\s+)?(?:option|choice|answer)\b:?\s*(?:is\b:?\s*)?)?"
    r"[(\[]?([a-z])[)\]]?\s*[.:),;!–—-]?\s*",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\boxed\s{0,3}\{")
_STYLE = re.compile(r"\\(?:text|math)(?:rm|bf|it|sf|tt|normal|up)?\s?\{([^{}]*)\}")
_WRAPPERS = (
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("**", "**"),
    ("*", "*"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("‘", "’"),
    ("{", "}"),
)
_ESCAPES = re.compile(r"\\([%$&#_])")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_SPACES = re.compile(r"\\[,;:! ]|~")


def boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}` after a turn's thinking block, braces balanced; None if there is none."""
    text = spoken(text)
    begin = end = -1
    boxes = {box.end() for box in _BOX.finditer(text)}
    opened: list[int] = []  # one pass over all braces: model text may hold thousands of unclosed ones
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif opened:
            start = opened.pop()
            if start > begin and start in boxes:
                begin, end = start, brace.start()
    return text[begin:end].strip() if begin >= 0 else None


def chosen_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that an answer names; None if it names no choice, or several."""
    answer = unicodedata.normalize("NFKC", plain_text(plain_text(answer).replace("**", "")))  # full-width letters
    letters = LETTERS[: len(choices)]
    named = [letter for letter, choice in zip(letters, choices) if _same_text(choice, answer)]
    if not named and any(c.isdigit() for c in answer):  # "12" for "$12"
        named = [letter for letter, choice in zip(letters, choices) if _same_number(choice, answer)]
    match = _LETTER.match(answer)
    if match is not None and match.group(2).upper() in letters and not (named and match.group(1)):
        letter, rest = match.group(2).upper(), answer[match.end() :]
        glued = match.end() == match.end(2)  # "A1" does not mean "A. 1"
        bare = rest[1:-1] if rest.startswith("(") and rest.endswith(")") else rest  # "B (blue)"
        own = choices[letters.index(letter)]
        if not rest or not glued and (_same_text(rest, own) or _same_text(bare, own)):
            return letter  # the prompt asks for a letter, so "A" is the letter even where a choice reads "A"
    return named[0] if len(named) == 1 else None


def is_correct(text: str, choices: Sequence[str], answer: str) -> bool:
    """Whether the boxed answer of a turn's text is the right one.

    Args:
        text: text of the last turn.
        choices: texts of the choices, empty for an open question.
        answer: right letter ("D|E" where either is right), or text.
    """
    given = boxed(text)
    if given is None or not answer:
        return False
    if choices:
        return chosen_letter(given, choices) in answer.split("|")
    return _same_text(given, answer) or same_value(plain_text(given), plain_text(answer))


def accuracy_reward(
    completions: list[Any], answer: list[str], choices: list[Any] | None = None, **_: Any
) -> list[float]:
    """The reward in TRL's convention: 1.0 if the last turn of a completion answers right, else 0.0."""
    options = choices if choices is not None else [()] * len(completions)
    return [float(is_correct(last_text(c), o or (), a)) for c, o, a in zip(completions, options, answer, strict=True)]


def last_text(completion: Any) -> str:
    """Text of a completion's last message; a completion is a string or a list of messages."""
    if isinstance(completion, str):
        return completion
    if not completion or completion[-1]["role"] != "assistant":
        return ""
    content = completion[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def plain_text(text: str) -> str:
    r"""An answer without its typesetting: `$\textbf{50\%}$` becomes `50%`. Minus signs become hyphens."""
    text = re.sub(r"^[–—](?=\s?[\d.])", "-", text.strip().replace("\u2212", "-").replace("{,}", ","))
    text = _DEGREE.sub("°", text)
    for _ in range(4):  # wrappers may be nested
        before = text
        text = _STYLE.sub(r"\1", text).strip()
        closed = text.rstrip(".;!")  # a full stop after the wrapped answer: "$B$."
        text = closed if any(closed.endswith(tail) and closed.startswith(head) for head, tail in _WRAPPERS) else text
        for head, tail in _WRAPPERS:
            inner = text[len(head) : len(text) - len(tail)]
            if (
                len(inner) + len(head + tail) == len(text) > 2
                and head not in inner
                and text.startswith(head)
                and text.endswith(tail)
            ):
                text = inner.strip()
        if text == before:
            break
    return _ESCAPES.sub(r"\1", _SPACES.sub(" ", text)).strip()


def _same_number(one: str, other: str) -> bool:
    """The same digits, where at most one has a percent or dollar sign."""
    units = ({sign for sign in "$%" if sign in text} for text in (one, other))
    return not all(units) and _plain(without_unit(plain_text(one))) == _plain(without_unit(plain_text(other)))


def _same_text(one: str, other: str) -> bool:
    return _plain(one) == _plain(other) or _plain(plain_text(one)) == _plain(plain_text(other))


def _plain(text: str) -> str:
    """Text normalised for comparison: width, case, spaces and a closing stop are ignored, but 10² stays unlike 102."""
    folded = "".join(
        c if unicodedata.decomposition(c).startswith(("<super>", "<sub>")) else unicodedata.normalize("NFKC", c)
        for c in unicodedata.normalize("NFC", str(text))
    )
    return " ".join(folded.casefold().split()).rstrip(".;!")

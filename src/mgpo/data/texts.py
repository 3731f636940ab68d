"""Reads choices as datasets write them: "(A) red", "B. blue", full-width parentheses, options in the question's text.

Whatever letters a dataset uses, a `Question` letters its choices A, B, C, ... by position; the gold answer is carried
over by the letter that the dataset wrote, not by position.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any

from mgpo.method.question import LETTERS

ASCII = string.ascii_uppercase
_LABEL = re.compile(r"\s*(?:\(\s*([A-Z])\s*\)|([A-Z])(?:\s*[.:)](?=\s|$)|\s*、|\s+[-–—](?=\s)))\s*")
_BOLD_LABEL = re.compile(r"^(\s*)\*\*(\(?[A-Za-z]\s*[.:)]?)\*\*(?=\W)")
_SMALL_LABEL = re.compile(r"^(\s*\(?\s*)([a-z])(?=\s*[.:)])")
_ANNOUNCING = re.compile(r"^\s*(?:the )?(?:options|choices)(?: are)?\s*:\s*(?=[(*]*[Aa]\s*[.:)])", re.IGNORECASE)
_BARE = re.compile(r"\s*\(?\s*([A-Za-z])\s*\)?\s*[.:]?\s*")
_TIGHT = re.compile(r"^(\s*[A-Z][.:)])(?=\S)")
_ANNOUNCED = re.compile(
    r"(?:(?:\A|\n)[ \t]*(?:the )?(?:options|choices)|\b(?:the )?(?:options|choices) are(?: listed below| as follows| below)?"
    r"|选项如下(?:所示)?)\s*[:：.]?\s*\Z",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"<image>|<ImageHere>")


def one_line(text: str) -> str:
    """A text without line breaks and repeated spaces: a choice takes one line of the prompt."""
    return " ".join(str(text).split())


def without_image_marker(text: str) -> str:
    """A text without the `<image>` that training sets write where the image goes: here the image always comes first."""
    return _IMAGE.sub("", text).strip()


def with_numbered_images(texts: Sequence[str], images: int) -> list[str]:
    """Texts in which each `<image>` reads "image 2" where a question shows several; leading ones are left out.

    Args:
        texts: the question, then its options, in the order in which the images are meant.
        images: how many the question shows; with one, all markers are left out.

    Raises:
        ValueError: there are markers, but not as many as images.
    """
    marked = sum(len(_IMAGE.findall(text)) for text in texts)
    if images < 2 or not marked:
        return [without_image_marker(text) for text in texts]
    if marked != images:
        raise ValueError(f"its text holds {marked} image markers, but it shows {images} images")
    leading = re.match(rf"(?:\s*(?:{_IMAGE.pattern}))*", texts[0])
    skipped = leading.group(0) if leading else ""
    number = len(_IMAGE.findall(skipped))

    def named(match: re.Match[str]) -> str:
        nonlocal number
        number += 1
        return f"image {number}"

    return [_IMAGE.sub(named, text).strip() for text in (texts[0][len(skipped) :], *texts[1:])]


def holds_image_marker(text: str) -> bool:
    """Whether a text holds an `<image>`, which readers of training sets take for an image."""
    return _IMAGE.search(text) is not None


def numbered(question: Any, options: Sequence[Any], images: int) -> tuple[Any, list[Any]]:
    """A question and its options as of `with_numbered_images`; unchanged where there is one image or no marker.

    What is not text is left for others to refuse.
    """
    texts = [text if isinstance(text, str) else "" for text in (question, *options)]
    if images < 2 or not any(map(holds_image_marker, texts)):
        return question, list(options)
    first, *others = with_numbered_images(texts, images)
    return (
        first if isinstance(question, str) else question,
        [new if isinstance(old, str) else old for old, new in zip(options, others)],
    )


def take_label(option: str) -> tuple[str | None, str]:
    """The letter in front of an option (None if it has none), and the option's text on one line."""
    wide = "".join(unicodedata.normalize("NFKC", c) if c in "（）．：" else c for c in str(option))
    match = _LABEL.match(wide)
    if match is None:
        return None, one_line(option)
    return match.group(1) or match.group(2), one_line(wide[match.end() :])


def spaced_labels(options: Sequence[str]) -> list[str]:
    """Options with plain labels ("A.27B", "a. 27B", "**A.** 27B" become "A. 27B") if they run from A; else unchanged.

    Only the run distinguishes labels from texts like "U.S." or "C.elegans".
    """
    for ways in _WAYS:
        plain = [_plain_label(str(option), *ways) for option in options]
        if len(plain) > 1 and _run_from_a([take_label(option)[0] or "" for option in plain]):
            return plain
    return [str(option) for option in options]


_WAYS = ((False, False), (True, False), (False, True), (True, True))
"""Whether labels are tight (no space follows) and whether they are small letters; the first way that works is taken."""


def _plain_label(text: str, tight: bool, small: bool) -> str:
    text = _BOLD_LABEL.sub(r"\1\2 ", text)
    if small:
        text = _SMALL_LABEL.sub(lambda match: match.group(1) + match.group(2).upper(), text)
    return _TIGHT.sub(r"\1 ", text) if tight else text


def lettered(value: object) -> bool:
    """Whether a cell holds options with letters: a text with one per line, or a list."""
    if isinstance(value, str):
        return len(value) < 20_000 and len(split_choices("\n".join(spaced_labels(value.split("\n"))))[1]) > 1
    if isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(option, str) for option in value):
        return _run_from_a([take_label(option)[0] or "" for option in spaced_labels(value)])
    return False


def letter_choices(options: Sequence[str], gold: str) -> tuple[list[str], str]:
    """Choices without their letters, and the gold answer as `Question` letters them.

    Args:
        options: with letters ("(A) red"), or bare. The same option listed twice, letter and text, counts once.
        gold: a letter, in the options' own lettering if they have one ("B", "(B)", "B. blue"), or the text of an
            option.

    Returns:
        The texts, and the right letter. Where the dataset gives its gold letter to several options, all of them are
        right: their letters joined by "|".

    Raises:
        ValueError: the gold answer names no option.
    """
    labelled = list(dict.fromkeys(take_label(option) for option in options))
    labels = [label or "" for label, _ in labelled]
    if not _are_labels(labels):  # bare options, or text that begins like a label ("C. elegans")
        labelled = [(letter, one_line(option)) for letter, option in zip(ASCII, options)]
        labels = [letter or "" for letter, _ in labelled]
    gold = str(gold).strip()
    bare = _BARE.fullmatch(unicodedata.normalize("NFKC", gold))
    wanted = bare.group(1).upper() if bare else take_label(gold)[0]
    right = {text for label, text in labelled if label == wanted}
    named = {text for _, text in labelled if text in (one_line(gold), take_label(gold)[1])}
    if named and (not right or not bare):
        right = named
    texts = list(dict.fromkeys(text for _, text in labelled))
    at = [i for i, text in enumerate(texts) if text in right]
    if not at or max(at) >= len(LETTERS):
        raise ValueError(f"its gold answer {gold!r} is not one of its options {', '.join(dict.fromkeys(labels))}")
    return texts, "|".join(LETTERS[i] for i in at)


def _are_labels(labels: Sequence[str]) -> bool:
    """Whether all options have a letter: rising from A, with or without gaps, or all from A on in any order."""
    if not all(labels):
        return False
    rising = labels[0] == "A" and all(before < after for before, after in zip(labels, labels[1:]))
    return rising or sorted(labels) == list(ASCII[: len(labels)]) or _run_from_a(labels)


def _run_from_a(labels: Sequence[str]) -> bool:
    """Whether labels run A, B, C, ...; a letter may come twice (two rows of MME-RealWorld)."""
    steps = [ord(after) - ord(before) for before, after in zip(labels, labels[1:]) if before and after]
    return bool(labels) and all(labels) and labels[0] == "A" and all(step in (0, 1) for step in steps)


def split_choices(text: str) -> tuple[str, list[str]]:
    """A question whose options are in its text, line by line from A on: the question alone, and the options.

    An option may take several lines, but of the last one only the first line counts; what follows it is an instruction.
    Words that only announce the options ("The choices are listed below:") are removed with them. Text without two such
    lines is all question.
    """
    written = without_image_marker(text).split("\n")
    for ways in _WAYS:
        lines = [_plain_label(_ANNOUNCING.sub("", line), *ways) for line in written]
        if len(starts := _option_starts(lines)) > 1:
            break
    else:
        return "\n".join(written).strip(), []
    ends = [*starts[1:], starts[-1] + 1]
    options = [" ".join(lines[start:end]) for start, end in zip(starts, ends)]
    return _ANNOUNCED.sub("", "\n".join(lines[: starts[0]])).strip(), options


def options_in(text: str) -> tuple[str, list[tuple[str, str]]]:
    """As `split_choices`, for a prompt that another program grades: keeps each option's own letter and text.

    Equal options stay two options, and so do options with the same letter (except A), so that the answer can be given
    by the option's own letter.
    """
    question, options = split_choices(text)
    taken = [take_label(option) for option in options]
    return question, [(letter or "", option) for letter, option in taken]


def _option_starts(lines: Sequence[str]) -> list[int]:
    """Numbers of the lines on which options begin; a letter may come twice (two rows of MME-RealWorld)."""
    starts: list[int] = []
    expected = 0
    for number, line in enumerate(lines):
        label = take_label(line)[0]
        if label is not None and label == ASCII[expected : expected + 1]:
            starts, expected = [*starts, number], expected + 1
        elif expected > 1 and label == ASCII[expected - 1]:
            starts.append(number)
    return starts if expected > 1 else []

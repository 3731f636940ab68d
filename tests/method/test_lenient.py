"""Answers without a box, as models that were not trained here give them."""

import time

import pytest

from mgpo.method.lenient import is_correct_leniently, lenient_letter
from mgpo.method.rewards import is_correct

COLOURS = ("red", "blue", "green", "dark red")

NAMED = [
    ("B", "B"),
    ("(b)", "B"),
    ("B.", "B"),
    ("B. blue", "B"),
    ("blue", "B"),
    ("Blue.", "B"),
    ("The answer is B.", "B"),
    ("The answer is (B).", "B"),
    ("The correct answer is **B**.", "B"),
    ("Answer: B", "B"),
    ("The best answer is option B, because the sign is blue.", "B"),
    ("B. The sign on the left is blue.", "B"),
    ("(B) because the sign on the left is blue", "B"),
    ("B) blue, as one can see", "B"),
    ("Looking at the image, the sign is blue (B).", "B"),
    ("At first the answer is A, but looking closer the answer is B.", "B"),
    ("Based on the image, I would choose C", "C"),
    ("A red sign stands on the left, so B", "B"),
    ("I think it must be D", "D"),
    ("<think>Is it A? The answer is A.</think>The answer is B.", "B"),
    ("\\boxed{B}", "B"),
    ("The answer is A, \\boxed{B}", "B"),
    ("Ｂ", "B"),
]
NOT_NAMED = [
    "",
    "Based on the image, one cannot say.",
    "A sign stands on the left.",
    "It is either (A) or (B).",
    "Either A or C",
    "E",
    "The answer is a sign.",
    "Don't know",
    "Cannot be determined. D'accord.",
    "\\boxed{red or blue}",
]


@pytest.mark.parametrize(("text", "letter"), NAMED)
def test_a_choice_is_named(text, letter):
    assert lenient_letter(text, COLOURS) == letter


@pytest.mark.parametrize("text", NOT_NAMED)
def test_no_choice_is_named(text):
    assert lenient_letter(text, COLOURS) is None


@pytest.mark.parametrize(("text", "letter"), NAMED)
def test_what_is_right_strictly_is_right_leniently(text, letter):
    for answer in "ABCD":
        assert is_correct_leniently(text, COLOURS, answer) == (answer == letter)
        assert is_correct_leniently(text, COLOURS, answer) or not is_correct(text, COLOURS, answer)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("42", True),
        ("The answer is 42.", True),
        ("Answer: 42", True),
        ("It reads 42 or 43", False),
        ("", False),
        ("\\boxed{41} 42", False),
    ],
)
def test_open_questions(text, right):
    assert is_correct_leniently(text, (), "42") is right


def test_long_replies_take_no_long_time():
    start = time.perf_counter()
    for text in ("answer " * 50_000, "(" * 200_000, "A " * 100_000, "option: " * 40_000, "\\boxed{" * 30_000):
        lenient_letter(text, COLOURS)
        is_correct_leniently(text, (), "42")
    assert time.perf_counter() - start < 10

"""`mgpo eval --answers lenient` reads replies as lmms-eval's tasks do, but for replies in which they find a letter that is none."""

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.tasks.mme_realworld.utils import extract_characters_regex
from lmms_eval.tasks.vstar_bench.utils import extract_answer_letter

from mgpo.method.lenient import lenient_letter

COLOURS = ("red", "blue", "green", "dark red")
ALIKE = [
    "B", "(B)", "B.", "B)", "b", "B. blue", "The answer is B.", "The answer is (B).", "(B) blue",
    "The correct answer is B", "B. The sign on the left is blue.", "The best answer is: C", "C", "D. dark red",
]  # fmt: skip
LETTERS_OF_WORDS = {
    "Based on the image, one cannot say.": ("B", None),
    "Dark colours are common here.": ("D", None),
    "Clearly, no sign is there.": ("C", None),
    "Answer: B": ("A", "B"),
}
"""Replies, and what lmms-eval's rule for V* and ours find in them."""


@pytest.mark.parametrize("theirs", [extract_answer_letter, extract_characters_regex])
@pytest.mark.parametrize("text", ALIKE)
def test_plain_replies_are_read_alike(text, theirs):
    assert lenient_letter(text, COLOURS) == theirs(text)


@pytest.mark.parametrize("text", LETTERS_OF_WORDS)
def test_the_first_letter_of_a_word_is_no_choice_here(text):
    assert (extract_answer_letter(text), lenient_letter(text, COLOURS)) == LETTERS_OF_WORDS[text]

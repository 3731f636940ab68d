"""One if the last box of the last turn names the right choice, else zero; never a guess, never a crash."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpo.method.rewards import accuracy_reward, boxed, chosen_letter, is_correct, last_text

COLOURS = ("blue", "red", "dark red", "green")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{B}", "B"),
        ("so \\boxed{ B }.", "B"),
        ("\\boxed{\\text{B}}", "\\text{B}"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{A} no, \\boxed{B}", "B"),
        ("\\boxed{A} then \\boxed{B", "A"),
        ("\\boxed{", None),
        ("\\boxed{A", None),
        ("} \\boxed{A}", "A"),
        ("{ \\boxed{A}", "A"),
        ("\\boxed{x \\boxed{A} y}", "A"),
        ("\\boxed A", None),
        ("boxed{A}", None),
        ("\\boxed{}", ""),
        ("\\boxed{a\nb}", "a\nb"),
        ("", None),
    ],
)
def test_the_last_complete_box_is_read(text, content):
    assert boxed(text) == content


def test_thousands_of_unclosed_boxes_do_not_hang_the_grader():
    begin = time.process_time()
    assert boxed("\\boxed{" * 20_000) is None
    assert boxed("\\boxed{A}" + "\\boxed{" * 20_000) == "A"
    assert time.process_time() - begin < 2  # it was quadratic: minutes


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("(b).", "B"),
        ("B.", "B"),
        ("B:", "B"),
        ("B)", "B"),
        ("B. red", "B"),
        ("(B) Red.", "B"),
        ("B red", "B"),
        ("\\text{B}", "B"),
        ("\\mathrm{(B)}", "B"),
        ("**B**", "B"),
        ("Ｂ", "B"),
        ("（B）", "B"),
        ("B\n", "B"),
        ("red", "B"),
        ("  RED. ", "B"),
        ("dark\n red", "C"),
        ("ｒｅｄ", "B"),
        ("E", None),
        ("B. blue", None),  # letter and text disagree
        ("Based on the picture", None),
        ("Blue-ish", None),
        ("A or B", None),
        ("AB", None),
        ("a red one", None),
        ("", None),
        ("()", None),
    ],
)
def test_letters_and_texts(answer, letter):
    assert chosen_letter(answer, COLOURS) == letter


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        ("A", ("B", "A"), "A"),  # the letter wins over an equal text
        ("B. A", ("B", "A"), "B"),
        ("B. B", ("B", "A"), None),
        ("same", ("same", "Same."), None),  # two equal texts: not guessed
        ("B", ("same", "same"), "B"),
        ("A1", ("1", "A1"), "B"),  # "A1" is no "A. 1"
        ("(红)", ("（红）", "绿"), "A"),
        ("two lines", ("two\nlines", "x"), "A"),
        ("C", ("x", "y"), None),
        ("C", ("x", "c"), "B"),  # there is no choice C, so it is the text
    ],
)
def test_ambiguity_is_resolved_one_way(answer, choices, letter):
    assert chosen_letter(answer, choices) == letter


def test_only_the_box_counts():
    assert is_correct("A? No: \\boxed{B}", COLOURS, "B")
    assert not is_correct("The answer is B", COLOURS, "B")
    assert not is_correct("\\boxed{B} or rather \\boxed{A}", COLOURS, "B")
    assert not is_correct("\\boxed{B}", COLOURS, ""), "an unknown answer rewards nothing"


@pytest.mark.parametrize(
    ("given_answer", "right"),
    [
        ("Stop", True),
        ("stop.", True),
        ("\\text{STOP}", True),
        ("ｓｔｏｐ", True),
        ("  stop\n", True),
        ("stops", False),
        ("", False),
    ],
)
def test_open_answers(given_answer, right):
    assert is_correct(f"\\boxed{{{given_answer}}}", (), "stop") is right


@settings(max_examples=200, deadline=None)
@given(
    text=st.text() | st.lists(st.sampled_from(["\\boxed{", "}", "{", "B", " "])).map("".join),
    answer=st.sampled_from("ABCD"),
)
def test_no_text_raises(text, answer):
    assert accuracy_reward([text], [answer], [COLOURS]) in ([0.0], [1.0])


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_at_most_one_letter_is_right(text):
    assert sum(is_correct(f"\\boxed{{{text}}}", COLOURS, letter) for letter in "ABCD") <= 1


def test_conversations():
    right = {"role": "assistant", "content": "\\boxed{B}"}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "\\boxed"}, {"type": "image"}, {"text": "{B}"}]}
    user = {"role": "user", "content": "the answer is \\boxed{B}"}
    box = {"role": "assistant", "content": "box"}
    completions = [[right], [box, user, right], [box, user, parts], [right, user], [right, user, box], [], "\\boxed{B}"]
    rewards = accuracy_reward(completions, ["B"] * 7, choices=[COLOURS] * 7, prompts=None, trainer_state=None)
    assert rewards == [1, 1, 1, 0, 0, 0, 1]


def test_last_text_of_a_trailing_user_message_is_empty():
    assert last_text([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]) == ""


def test_open_questions_need_no_choices_column():
    assert accuracy_reward(["\\boxed{stop}", "\\boxed{go}"], ["stop", "stop"]) == [1, 0]
    assert accuracy_reward(["\\boxed{stop}", "\\boxed{B}"], ["stop", "B"], choices=[None, COLOURS]) == [1, 1]


@pytest.mark.parametrize(("answers", "choices"), [(["B"], None), (["B"] * 3, None), (["B"] * 2, [COLOURS])])
def test_unequal_lengths_raise(answers, choices):
    with pytest.raises(ValueError):
        accuracy_reward(["\\boxed{B}", "\\boxed{B}"], answers, choices)

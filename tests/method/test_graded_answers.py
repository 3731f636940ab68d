"""Every line of `graded_answers.py` through the reward of training and through evaluation."""

import pytest
from graded_answers import CHOICE_ACCEPTED, CHOICE_REFUSED, COLOURS, OPEN_ACCEPTED, OPEN_REFUSED
from PIL import Image

from mgpo.method.episode import Episode
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.method.rewards import accuracy_reward, chosen_letter, is_correct
from mgpo.runs.trajectories import trajectory

CASES = [
    *((given, COLOURS, "B", True) for given, _ in CHOICE_ACCEPTED),
    *((given, COLOURS, "B", False) for given, _ in CHOICE_REFUSED),
    *((given, (), gold, True) for given, gold, _ in OPEN_ACCEPTED),
    *((given, (), gold, False) for given, gold, _ in OPEN_REFUSED),
]


@pytest.mark.parametrize(("given", "choices", "gold", "right"), CASES)
def test_the_reward(given, choices, gold, right):
    completion = [{"role": "assistant", "content": f"I see it. \\boxed{{{given}}}"}]
    assert accuracy_reward([completion], [gold], [choices]) == [float(right)]


def test_evaluation_gives_the_same_verdicts():
    image = Image.new("RGB", (64, 64))
    for given, choices, gold, right in CASES:
        episode = Episode(Question(image, "What is it?", choices, gold), image, Protocol(method=Method.DIRECT))
        episode.opening()
        episode.reply(f"I see it. \\boxed{{{given}}}")
        assert trajectory(episode)["correct"] is right, (given, gold)


def test_enough_of_both_kinds():
    accepted = sum(right for *_, right in CASES)
    assert len(CASES) >= 150 and accepted >= 60 and len(CASES) - accepted >= 60 and len(set(CASES)) == len(CASES)


@pytest.mark.parametrize("box", ["\\boxed {B}", "\\boxed\n{B}", "\\boxed  { B }", "$\\boxed{B}$"])
def test_a_box_may_stand_apart_from_its_command(box):
    assert is_correct(f"So {box}.", COLOURS, "B")


@pytest.mark.parametrize(
    ("given", "letter"), [("12", "A"), ("$12", "A"), ("\\$12", "A"), ("30%", "B"), ("30", "B"), ("12%", None)]
)
def test_the_unit_of_a_choice_may_be_left_out_but_not_changed(given, letter):
    assert chosen_letter(given, ("$12", "30%", "about 9")) == letter


def test_a_choice_that_reads_like_a_letter_with_a_word():
    assert is_correct("\\boxed{Option B}", ("Option B", "Option A"), "A")  # it is the text of A
    assert not is_correct("\\boxed{Option B}", ("Option B", "Option A"), "B")

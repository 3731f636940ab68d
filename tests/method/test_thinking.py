"""A thinking block is the model's own, but neither its boxes nor its answers count."""

import pytest

from mgpo.method.boxes import BoxStatus, Frame, box_as_json
from mgpo.method.episode import End, Episode
from mgpo.method.grounding import read_grounding
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question
from mgpo.method.rewards import boxed, is_correct
from mgpo.method.thinking import spoken

FRAME = Frame((400, 300), (0, 0, 4000, 3000))
DRAFT, BOX = box_as_json((0, 0, 50, 50), "draft"), box_as_json((100, 100, 200, 180), "sign")


@pytest.mark.parametrize("closing", ["</think>", "\n</think>\n\n", "◁/think▷"])
@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_only_what_follows_the_block_is_read(opening, closing):
    if "◁" in closing:
        opening = opening.replace("<think>", "◁think▷")
    assert read_grounding(f"{opening}{DRAFT}? No.{closing}{BOX}", FRAME).box_px_input == (100, 100, 200, 180)
    assert boxed(f"{opening}\\boxed{{A}}?{closing}So \\boxed{{B}}.") == "B"
    assert not is_correct(f"{opening}\\boxed{{B}}{closing}I do not know.", ("x", "y"), "B")


def test_a_block_that_was_never_closed_says_nothing():
    assert spoken("<think>\\boxed{A}") == "" and spoken("\n <think> a") == ""
    assert read_grounding("<think>" + BOX, FRAME).status is BoxStatus.NO_JSON
    from PIL import Image

    episode = Episode(Question(None, "?", ("x", "y"), "A"), Image.new("RGB", (400, 300)), Protocol())
    episode.opening()
    episode.reply("<think>" + BOX, truncated=True)
    episode.reply("<think>\\boxed{A}", truncated=True)
    assert episode.end is End.TRUNCATED


def test_the_last_of_several_blocks_counts():
    assert spoken("<think>a</think>b<think>c</think>d") == "d"


def test_a_turn_without_a_block_is_read_whole():
    assert spoken("I think <b>.") == "I think <b>." and spoken("a <think> inside") == "a <think> inside"

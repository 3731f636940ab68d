"""The turn protocol, driven by hand: what each turn says and shows, and when an episode ends."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mgpo.images.imaging import PixelBudget, crop, overview
from mgpo.method.boxes import BoxForm, BoxRules, BoxStatus, Coordinates, box_as_json
from mgpo.method.episode import End, Episode
from mgpo.method.prompts import ASK_MORE, SHOW_AGAIN, SHOW_CROP
from mgpo.method.protocol import CropFrame, Method, Protocol
from mgpo.method.question import Question

BUDGET = PixelBudget(20 * 784, 36 * 784)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (840, 840, 3), dtype=np.uint8))
SHOWN = 168
"""Side of the overview in pixels: one of its pixels is five of the original."""
QUESTION = Question(None, "Which {letter} is on the {0} sign?", ("Hotel", "Kilo"), "B", ((1, 2, 3, 4),))
BOX = box_as_json((28, 28, 84, 84), "sign")


def episode(question=QUESTION, **settings):
    started = Episode(question, IMAGE, Protocol(budget=BUDGET, **settings))
    started.opening()
    return started


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_two_turns_ground_then_answer():
    run = episode()
    opening = run.user_turns[0]
    assert same(opening.image, overview(IMAGE, BUDGET)) and opening.image.size == (SHOWN, SHOWN)
    reply = run.reply(BOX)
    assert reply.text.startswith(SHOW_CROP) and ASK_MORE not in reply.text
    assert reply.frames[-1].region_px_original == (140, 140, 420, 420)
    assert same(reply.image, crop(IMAGE, (140, 140, 420, 420), BUDGET)), "cut from the original, not from the overview"
    assert run.end is None
    assert run.reply("It reads Kilo. \\boxed{B}") is None
    assert run.end is End.ANSWERED
    assert run.first_grounding.status is BoxStatus.VALID
    assert [len(run.user_turns), len(run.model_turns)] == [2, 2]
    assert run.model_turns[1].grounding is None


@pytest.mark.parametrize("text", ["no idea", box_as_json((0, 0, 9, 9), "x"), box_as_json((0, 0, 9999, 99), "x"), ""])
def test_an_unusable_box_shows_the_overview_again(text):
    run = episode()
    reply = run.reply(text)
    assert reply.text.startswith(SHOW_AGAIN)
    assert same(reply.image, run.user_turns[0].image) and reply.frames[-1] == run.user_turns[0].frames[-1]
    assert "A. Hotel" in reply.text and "\\boxed{}" in reply.text


def test_choices_are_withheld_until_the_reply():
    run = episode()
    opening, reply = run.user_turns[0].text, run.reply(BOX).text
    for choice in QUESTION.choices:
        assert choice not in opening and choice in reply
    assert "boxed" not in opening
    assert "A. Hotel\nB. Kilo" in reply


@pytest.mark.parametrize("method", Method)
def test_braces_and_percent_signs_are_kept_verbatim(method):
    question = replace(QUESTION, question="Is {x} 5% of {} or \\frac{1}{2} %s?", choices=("{a}", "%d"))
    run = episode(question, method=method)
    texts = [run.user_turns[0].text]
    if method is Method.MGPO:
        texts.append(run.reply(BOX).text)
    assert all(question.question in text for text in texts)
    assert "A. {a}\nB. %d" in texts[-1]


@pytest.mark.parametrize("method", [Method.GRPO, Method.DIRECT])
def test_baselines_have_one_turn(method):
    run = episode(method=method, max_turns=5)
    opening = run.user_turns[0].text
    assert "A. Hotel\nB. Kilo" in opening and "\\boxed{}" in opening
    assert ("bbox_2d" in opening) == (method is Method.GRPO)
    assert run.reply(BOX + " \\boxed{A}") is None and run.end is End.ANSWERED
    if method is Method.GRPO:
        assert run.first_grounding.status is BoxStatus.VALID
    else:
        assert run.first_grounding is None


def test_a_boxed_answer_in_turn_1_does_not_end_it():
    run = episode()
    assert run.reply("\\boxed{B}").text.startswith(SHOW_AGAIN)
    assert run.end is None
    run.reply("hm")
    assert run.end is End.NO_ANSWER, "the last turn decides"


@pytest.mark.parametrize(
    ("text", "truncated", "end"),
    [
        ("I think", True, End.TRUNCATED),
        ("\\boxed{", True, End.TRUNCATED),
        ("I think", False, End.NO_ANSWER),
        ("\\boxed{A} and", True, End.ANSWERED),
    ],
)
def test_why_it_ended(text, truncated, end):
    run = episode()
    run.reply(BOX)
    assert run.reply(text, truncated) is None and run.end is end
    assert run.model_turns[-1].truncated is truncated


def test_a_truncated_first_turn_goes_on():
    run = episode()
    assert run.reply('```json\n[{"bbox', truncated=True).text.startswith(SHOW_AGAIN)
    assert run.first_grounding.status is BoxStatus.BAD_JSON


def test_reply_after_the_end_raises():
    run = episode(method=Method.DIRECT)
    run.reply("\\boxed{A}")
    with pytest.raises(RuntimeError, match="has not ended"):
        run.reply("\\boxed{B}")
    assert len(run.model_turns) == 1


def test_reply_before_the_opening_raises():
    with pytest.raises(RuntimeError, match="opened"):
        Episode(QUESTION, IMAGE, Protocol(budget=BUDGET)).reply(BOX)


def test_a_third_turn_is_offered_once():
    run = episode(max_turns=3)
    assert ASK_MORE in run.reply(BOX).text
    assert ASK_MORE not in run.reply(BOX).text
    assert run.reply(BOX) is None and run.end is End.NO_ANSWER, "a box in the last turn is no answer"


def test_with_three_turns_the_second_may_answer():
    run = episode(max_turns=3)
    run.reply(BOX)
    assert run.reply("\\boxed{A}") is None and run.end is End.ANSWERED and len(run.model_turns) == 2


@pytest.mark.parametrize(
    ("crop_frame", "region"),
    [
        # The first crop shows 140..420 at 168 px: one of its pixels is 280/168 = 5/3 of the original.
        (CropFrame.LATEST, (140 + 140, 140 + 70, 140 + 210, 140 + 140)),
        (CropFrame.ORIGINAL, (84 * 5, 42 * 5, 126 * 5, 84 * 5)),
    ],
)
def test_crop_frame_decides_what_a_second_box_means(crop_frame, region):
    run = episode(max_turns=3, crop_frame=crop_frame)
    first = run.reply(BOX)
    assert first.image.size == (SHOWN, SHOWN)
    second = run.reply(box_as_json((84, 42, 126, 84), "part"))
    assert second.frames[-1].region_px_original == region
    assert same(second.image, crop(IMAGE, region, BUDGET))


def test_after_a_bad_second_box_the_frame_is_the_overview_again():
    run = episode(max_turns=4)
    run.reply(BOX)
    run.reply("nothing")
    assert run.reply(BOX).frames[-1].region_px_original == (140, 140, 420, 420)


def test_relative_coordinates_are_asked_for_and_read():
    run = episode(box=BoxRules(form=BoxForm(Coordinates.RELATIVE_1000)))
    assert "thousandths" in run.user_turns[0].text
    reply = run.reply(box_as_json((250, 250, 750, 500), "a"))
    assert reply.frames[-1].region_px_original == (210, 210, 630, 420)


@pytest.mark.parametrize("method", Method)
def test_gold_boxes_reach_no_prompt(method):
    runs = [
        episode(replace(QUESTION, gold_boxes_px_original=boxes), method=method) for boxes in (((9, 9, 99, 99),), ())
    ]
    for run in runs:
        run.reply(BOX)
    with_gold, without = (
        [(t.text, t.frames[-1], np.asarray(t.image).tobytes()) for t in run.user_turns] for run in runs
    )
    assert with_gold == without


def test_the_answer_reaches_no_prompt():
    runs = [episode(replace(QUESTION, answer=letter)) for letter in "AB"]
    assert runs[0].reply(BOX).text == runs[1].reply(BOX).text
    assert runs[0].user_turns[0].text == runs[1].user_turns[0].text


def test_an_open_question_asks_for_text():
    run = episode(Question(None, "What is written?", answer="stop"))
    text = run.reply(BOX).text
    assert "A. " not in text and "letter" not in text and "\\boxed{}" in text


def test_a_ready_overview_is_not_drawn_again():
    shown = overview(IMAGE, BUDGET)
    turn = Episode(QUESTION, IMAGE, Protocol(budget=BUDGET)).opening([shown])
    assert turn.image is shown and turn.frames[-1].region_px_original == (0, 0, 840, 840)


def test_mgpo_with_one_turn_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Protocol(max_turns=1)


def test_adaptive_may_answer_at_once_or_look_first():
    at_once = episode(method=Method.ADAPTIVE)
    assert "A. Hotel" in at_once.user_turns[0].text and "answer now" in at_once.user_turns[0].text
    assert at_once.reply("\\boxed{A}") is None and at_once.end is End.ANSWERED and len(at_once.model_turns) == 1
    looks = episode(method=Method.ADAPTIVE)
    shown = looks.reply(BOX)
    assert shown.text.startswith(SHOW_CROP) and same(shown.image, crop(IMAGE, (140, 140, 420, 420), BUDGET))
    assert looks.reply("\\boxed{B}") is None and looks.end is End.ANSWERED
    with pytest.raises(ValueError, match="max_turns of at least 2"):
        Protocol(Method.ADAPTIVE, max_turns=1)


@pytest.mark.parametrize(
    ("form", "names"), [(BoxForm(), "x1, y1, x2, y2"), (BoxForm.parse("absolute yxyx box_2d"), "y1, x1, y2, x2")]
)
def test_a_model_with_a_tool_is_asked_to_call_it(form, names):
    """Box and answer are asked for as without the tool; JSON is not asked for in any turn."""
    run = episode(method=Method.ADAPTIVE, max_turns=3, tool="zoom", box=BoxRules(form=form))
    said = run.user_turns[0].text
    assert f"call zoom with the box of the region ({names}, in pixels of this image)" in said and "A. Hotel" in said
    more = run.reply(form.written((28, 28, 84, 84), (SHOWN, SHOWN), "sign")).text
    assert more.startswith(SHOW_CROP) and "call zoom again with its box" in more
    last = run.reply("no box").text
    assert last.startswith(SHOW_AGAIN) and "zoom" not in last and "JSON" not in said + more + last


def test_only_adaptive_has_a_tool():
    with pytest.raises(ValueError, match="decides by itself whether to look again: set method to adaptive, not mgpo"):
        Protocol(tool="zoom")

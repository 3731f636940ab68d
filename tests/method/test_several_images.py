"""Questions about several images: what the model reads, which image its box is in, and what it is shown next."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hostile_texts import texts
from hypothesis import given
from several import BUDGET, IMAGES, QUESTION, SIZES, named, opened

from mgpo.images.imaging import crop
from mgpo.method.boxes import BoxForm, BoxRules, BoxStatus, Coordinates, Frame
from mgpo.method.episode import Episode
from mgpo.method.grounding import read_grounding
from mgpo.method.metrics import episode_metrics
from mgpo.method.prompts import ASK_MORE, ASK_MORE_OR_LAST, SHOW_AGAIN, SHOW_CROP, user_texts
from mgpo.method.protocol import CropFrame, Method, Protocol
from mgpo.method.question import Question


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_images_are_numbered_in_order():
    turn = opened().user_turns[0]
    assert [part if isinstance(part, str) else part.size for part in turn.parts] == [
        "Image 1: ", turn.images[0].size, "\nImage 2: ", turn.images[1].size, "\nImage 3: ", turn.images[2].size, "\n" + turn.text
    ]  # fmt: skip
    assert '"image": number, "bbox_2d": [x1, y1, x2, y2]' in turn.text and "this image" not in turn.text
    assert turn.frames == tuple(
        Frame(i.size, (0, 0, *size), n) for n, (i, size) in enumerate(zip(turn.images, SIZES), 1)
    )


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_crop_is_cut_from_the_image_that_the_box_names(number):
    run = opened()
    reply = run.reply(named(number))
    box, budget = run.first_grounding.box_px_original, run.protocol.budget
    frame = run.user_turns[0].frames[number - 1]
    assert box == frame.to_original((28, 28, 84, 84)) and run.first_grounding.image_number == number
    assert same(reply.image, crop(IMAGES[number - 1], box, budget)) and len(reply.images) == 1
    assert reply.frames == (Frame(reply.image.size, box, number),)
    assert reply.text.startswith(SHOW_CROP.replace("region", f"region of image {number}"))


def test_a_box_without_a_number_is_in_the_image_shown_last():
    run = opened(max_turns=4)
    run.reply(named(None))
    assert run.first_grounding.image_number == 3
    run.reply(named(1))
    shown = run.user_turns[-1]
    inside = run.reply(named(None)).frames[-1]
    region = shown.frames[-1].region_px_original
    assert inside.image_number == 1 and inside.region_px_original == shown.frames[-1].to_original((28, 28, 84, 84))
    assert region[0] <= inside.region_px_original[0] and inside.region_px_original[2] <= region[2]


def test_with_the_original_frame_a_further_box_is_in_an_overview():
    run = opened(max_turns=3, crop_frame=CropFrame.ORIGINAL)
    assert ASK_MORE in run.reply(named(2)).text
    assert run.reply(named(None)).frames[-1].image_number == 2, "of the image that was looked at last"
    assert ASK_MORE_OR_LAST in opened(max_turns=3).reply(named(2)).text


@pytest.mark.parametrize("number", [2.0, "2"])
def test_a_number_may_be_written_in_other_ways(number):
    run = opened()
    run.reply(json.dumps([{"image": number, "bbox_2d": [28, 28, 84, 84], "label": "sign"}]))
    assert run.first_grounding.status is BoxStatus.VALID and run.first_grounding.image_number == 2


@pytest.mark.parametrize("number", [0, 4, -1, 1.5, True, "4", "1a", "²", "1" * 500, 1e300, [1], {}])
def test_a_number_that_no_image_has_is_no_usable_box(number):
    run = opened()
    reply = run.reply(json.dumps([{"image": number, "bbox_2d": [28, 28, 84, 84], "label": "sign"}]))
    assert run.first_grounding.status is BoxStatus.NO_IMAGE
    assert reply.text.startswith(SHOW_AGAIN.replace("the whole image", "image 3"))


@pytest.mark.parametrize(
    ("text", "again"), [("no idea", 3), (named(2, (0, 0, 9999, 99)), 2), (named(1, (5, 5, 9, 9)), 1)]
)
def test_an_unusable_box_shows_its_image_again(text, again):
    run = opened()
    reply = run.reply(text)
    assert same(reply.image, run.user_turns[0].images[again - 1]) and reply.frames == (run.overviews[again - 1],)
    assert reply.text.startswith(SHOW_AGAIN.replace("the whole image", f"image {again}"))


def test_a_hit_is_a_hit_in_the_right_image():
    rates = []
    for number in (1, 3):
        run = opened()
        frame = run.overviews[number - 1]
        run.reply(named(number, tuple(round(side) for side in frame.to_input((140, 140, 420, 420)))))
        metrics = episode_metrics(run)
        width, height = SIZES[number - 1]
        assert metrics["grounding/crop_area"] == pytest.approx(280 * 280 / (width * height), rel=0.1)
        rates.append((metrics["grounding/hit_rate"], metrics["grounding/hit_given_valid"]))
    assert rates == [(0, 0), (1, 1)]


@given(text=texts)
def test_any_text_is_read_in_time_whatever_number_it_names(text):
    frames = [Frame((168, 168), (0, 0, 840, 840), 1), Frame((336, 84), (0, 0, 1680, 420), 2)]
    for form in (BoxForm(), BoxForm(Coordinates.RELATIVE_1000, bare=True)):
        grounding = read_grounding(text, frames[1], BoxRules(form=form), frames)
        assert grounding.image_number in (1, 2)


# What one image's episode reads, word for word, as it was before questions could show several.
ONE = {
    Method.MGPO: "Which sign is older?\nYou will be given a close-up of one region of this image before you answer. Which region do you "
    "need to see? Reply with its box, in pixels of this image, as JSON:\n```json\n"
    '[{"bbox_2d": [x1, y1, x2, y2], "label": "what is there"}]\n```',
    Method.GRPO: "Which sign is older?\nA. left\nB. right\nFirst give the box of the region that holds the answer, in pixels of this "
    'image, as JSON:\n```json\n[{"bbox_2d": [x1, y1, x2, y2], "label": "what is there"}]\n```\nThen answer. Think about what '
    "you see, then put the letter of your answer in \\boxed{}.",
    Method.ADAPTIVE: "Which sign is older?\nA. left\nB. right\nIf you need to see a region of it close up first, reply with nothing but "
    'its box, in pixels of this image, as JSON:\n```json\n[{"bbox_2d": [x1, y1, x2, y2], "label": "what is there"}]\n```\n'
    "Otherwise answer now. Think about what you see, then put the letter of your answer in \\boxed{}.",
    Method.DIRECT: "Which sign is older?\nA. left\nB. right\nThink about what you see, then put the letter of your answer in \\boxed{}.",
}
LATER = [
    "\nWhich sign is older?\nA. left\nB. right\nThink about what you see, then put the letter of your answer in \\boxed{}.",
    "\nWhich sign is older?\nA. left\nB. right\nIf you need to see another region first, reply with its box in the same JSON form. "
    "Otherwise answer now. Think about what you see, then put the letter of your answer in \\boxed{}.",
]


@pytest.mark.parametrize("method", Method)
def test_one_image_is_asked_about_as_before(method):
    question = Question(IMAGES[0], "Which sign is older?", ("left", "right"), "B")
    run = opened(question, method=method, max_turns=3)
    turn = run.user_turns[0]
    assert turn.text == ONE[method] and turn.parts == [turn.image, turn.text]
    if method is Method.MGPO:
        assert run.reply(BoxForm().written((28, 28, 84, 84), (1, 1), "sign")).text == (
            "Here is the region that you named, cut from the original image in full detail." + LATER[1]
        )
        assert run.reply("nothing").text == "That was no usable box, so here is the whole image again." + LATER[0]


def test_of_one_image_the_number_is_not_read():
    run = opened(Question(IMAGES[0], "Which?", answer="x"))
    run.reply(json.dumps([{"image": 7, "bbox_2d": [28, 28, 84, 84], "label": "sign"}]))
    assert run.first_grounding.status is BoxStatus.VALID and run.first_grounding.image_number == 1


@pytest.mark.parametrize(
    "settings", [{}, {"max_turns": 3}, {"max_turns": 3, "crop_frame": CropFrame.ORIGINAL}, {"method": Method.GRPO}]
)
def test_the_texts_that_are_checked_before_a_run_are_those_that_are_sent(settings):
    protocol = Protocol(budget=BUDGET, **settings)
    known = user_texts(QUESTION, protocol)
    run = Episode(QUESTION, IMAGES, protocol)
    sent, said = [run.opening().text], iter([named(3), "none", "none"])
    while run.end is None and (turn := run.reply(next(said))) is not None:
        sent.append(turn.text)
    assert set(sent) <= set(known), "an image that no box names is the last one, whose number the known texts have"


def test_where_the_model_looks_is_counted():
    """A model that ignores the numbers looks at the last image always."""
    for text, looked in ((named(1), [1, 0, 0]), (named(None), [0, 0, 1]), ("none", [0, 0, 0])):
        run = opened()
        run.reply(text)
        assert [episode_metrics(run)[f"grounding/image_{number}"] for number in (1, 2, 3)] == looked
    one = opened(replace(QUESTION, more_images=(), gold_image=1))
    one.reply(named(None))
    assert not any("image_" in name for name in episode_metrics(one))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"more_images": IMAGES[:1] * 8}, "shows 9 images; at most 8"),
        ({"gold_image": 4}, "gold_image 4, but shows 3"),
        ({"gold_image": 0}, "gold_image 0"),
    ],
)
def test_what_cannot_be_asked_is_said(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Question(IMAGES[0], "?", **({"more_images": IMAGES[1:]} | changes))


def test_rows_say_which_image_their_gold_boxes_are_in():
    row = {"image": IMAGES[0], "more_images": [IMAGES[1]], "question": "?", "answer": "x", "gold_boxes": [[1, 2, 3, 4]]}
    with pytest.raises(ValueError, match="gold_image must give the number"):
        Question.from_row(row)
    assert Question.from_row(row | {"gold_image": 2}).gold_image == 2
    assert Question.from_row(row | {"gold_boxes": []}).images == (IMAGES[0], IMAGES[1])
    with pytest.raises(ValueError, match="a list of images is needed"):
        Question.from_row(row | {"more_images": "b.png"})
    with pytest.raises(ValueError, match="'two' in 'gold_image'"):
        Question.from_row(row | {"gold_image": "two"})


def test_each_image_needs_its_photograph():
    with pytest.raises(ValueError, match="1 photographs were given for 3 images"):
        Episode(QUESTION, IMAGES[0], Protocol(budget=BUDGET))

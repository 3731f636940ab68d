"""A row becomes a question, or an error that names the row."""

import numpy as np
import pytest

from mgpo.method.question import Question

ROW = {"id": "r7", "image": b"x", "question": "Which?", "choices": ["red", "blue"], "answer": "B"}


def test_a_row_becomes_a_question():
    question = Question.from_row(ROW | {"gold_boxes": [[1, 2, 3, 4]], "category": "colour", "extra": 1})
    assert question == Question(b"x", "Which?", ("red", "blue"), "B", ((1, 2, 3, 4),), "colour", "r7")
    assert question.chance == 0.5


def test_optional_columns_may_be_missing_or_none():
    open_question = Question.from_row({"image": b"x", "question": "Which?", "choices": None, "answer": None})
    assert open_question == Question(b"x", "Which?") and open_question.chance == 0


def test_either_name_of_the_boxes_is_read():
    boxes = {"gold_boxes_px_original": [(1, 2, 3, 4)], "gold_boxes": [(9, 9, 9, 9)]}
    assert Question.from_row(ROW | boxes).gold_boxes_px_original == ((1, 2, 3, 4),)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": None}, "no 'image'"),
        ({"question": None}, "no 'question'"),
        ({"question": "  \n"}, "no text"),
        ({"question": 3}, "text"),
        ({"choices": ["red"]}, "1 choices"),
        ({"choices": list("abcdefghijklmnopqrstuvwxyzä"), "answer": "A"}, "27 choices"),
        ({"choices": "red"}, "list"),
        ({"answer": "C"}, "'C'"),
        ({"answer": "b"}, "'b'"),
        ({"answer": "red"}, "'red'"),
        ({"answer": "AB"}, "'AB'"),  # a substring of "AB", but no letter
        ({"answer": 0}, "text"),  # an index: falsy, but not unknown
        ({"answer": 1}, "text"),
        ({"gold_boxes": [[1, 2, 3]]}, "four numbers"),
        ({"gold_boxes": [["a", 2, 3, 4]]}, "four numbers"),
        ({"gold_boxes": [7]}, "four numbers"),
    ],
)
def test_a_bad_row_is_named(change, says):
    with pytest.raises(ValueError, match="'r7'.*" + says):
        Question.from_row(ROW | change)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="'r7'.*'image'"):
        Question.from_row({"id": "r7", "question": "Which?"})


def test_a_question_without_id_still_says_what_is_wrong():
    with pytest.raises(ValueError, match="A question has no text"):
        Question(b"x", "")


@pytest.mark.parametrize("box", [[50, 60, 10, 70], [50, 60, 90, 20], [5, 5, 5, 9]])
def test_a_gold_box_without_area_is_refused(box):
    """As x, y, width and height are, where they are taken for corners: hits would be counted against nothing."""
    with pytest.raises(ValueError, match=r"Boxes are x1, y1, x2, y2; x, y, width, height must be converted"):
        Question.from_row({"image": "a.png", "question": "?", "answer": "x", "gold_boxes": [box]})


SEVERAL = ROW | {"more_images": [b"y", b"z"], "gold_boxes": [[1, 2, 3, 4]]}


@pytest.mark.parametrize("number", [2, 2.0, "2", "2.0", np.int64(2), np.float32(2)])
def test_a_number_of_an_image_may_have_any_type(number):
    found = Question.from_row(SEVERAL | {"gold_image": number}).gold_image
    assert found == 2 and type(found) is int


@pytest.mark.parametrize("number", [None, "", " ", float("nan"), np.float64("nan")])
def test_an_empty_number_is_absent(number):
    assert Question.from_row(ROW | {"gold_boxes": [[1, 2, 3, 4]], "gold_image": number}).gold_image == 1
    with pytest.raises(ValueError, match="'r7'.*gold_image must give the number"):
        Question.from_row(SEVERAL | {"gold_image": number})


@pytest.mark.parametrize("number", [True, np.True_, 1.5, "two", float("inf"), pytest.param(10**400, id="huge"), [2]])
def test_what_is_no_number_of_an_image_is_refused(number):
    with pytest.raises(ValueError, match="'r7'.*in 'gold_image', but the number of an image is needed"):
        Question.from_row(SEVERAL | {"gold_image": number})


@pytest.mark.parametrize(
    ("more", "images"),
    [
        ([b"y", None, float("nan"), "", {"bytes": None, "path": None}], (b"x", b"y")),
        (np.array(["y", "z"]), (b"x", "y", "z")),
        (np.array([b"y", None], object), (b"x", b"y")),
        ('["y", "z", null]', (b"x", "y", "z")),
        ("['y', 'z']", (b"x", "y", "z")),
        ("", (b"x",)),
        (float("nan"), (b"x",)),
        ("[]", (b"x",)),
    ],
)
def test_more_images_in_the_forms_of_tables(more, images):
    assert Question.from_row(ROW | {"more_images": more}).images == images


@pytest.mark.parametrize("more", ["y", "[y", "[y]", b"y", 3])
def test_more_images_that_are_no_list_are_refused(more):
    with pytest.raises(ValueError, match="Row 'r7' has .* in 'more_images'"):
        Question.from_row(ROW | {"more_images": more})


@pytest.mark.parametrize(("answer", "letter"), [("47", "B"), ("b", "B"), ("14", "A")])
def test_an_answer_that_is_the_text_of_a_choice_is_refused_with_its_letter(answer, letter):
    with pytest.raises(ValueError, match=f"not one of its letters AB. Write '{letter}' if that choice is meant"):
        Question(b"x", "Which?", ("14", "47"), answer)

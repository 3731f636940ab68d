"""A row becomes a question, or an error that names the row."""

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

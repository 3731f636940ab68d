"""A file of questions is read whole before anything runs, and what cannot be used is named."""

import json

import pytest
from PIL import Image

from mgpo.data.loading import load_questions

ROW = {"image": "a.png", "question": "Which?", "choices": ["red", "blue"], "answer": "B"}


@pytest.fixture
def write(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def _write(*rows):
        file = tmp_path / "questions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return _write


def test_images_lie_beside_the_file(write, tmp_path):
    (row,) = load_questions(write(ROW))
    assert row["image"] == str(tmp_path / "a.png") and row["answer"] == "B"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": "red"}, "row 2: .*'red'"),
        ({"answer": ""}, "row 2: it has no answer"),
        ({"answer": None}, "row 2: it has no answer"),
        ({"image": "gone.png"}, "row 2: its image .*gone.png does not exist"),
        ({"image": None}, "row 2: it has no image"),
        ({"question": " "}, "row 2: .*no text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_at_once(write, change, says):
    with pytest.raises(ValueError, match=rf"1 of 3 rows of (.|\n)*{says}"):
        load_questions(write(ROW, ROW | change, ROW))


def test_many_bad_rows_are_counted(write):
    with pytest.raises(ValueError, match=r"9 of 10 rows(.|\n)*row 2 and 8 more rows: it has no answer"):
        load_questions(write(ROW, *[ROW | {"answer": ""}] * 9))


def test_a_file_without_answers_is_refused(write):
    with pytest.raises(ValueError, match="row 1: it has no 'answer': a row needs image"):
        load_questions(write({key: value for key, value in ROW.items() if key != "answer"}))


@pytest.mark.parametrize("line", ['{"image": "a.png", }', "not json", "[1, 2]"])
def test_a_line_that_is_no_json_is_named_by_its_number(tmp_path, line):
    file = tmp_path / "broken.jsonl"
    file.write_text('{"image": "a.png", "question": "?", "answer": "A"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"broken\.jsonl row 3: it is not (JSON: |a JSON object)"):
        load_questions(str(file))


def test_a_first_row_without_choices_takes_none_from_the_others(write):
    rows = load_questions(write({"image": "a.png", "question": "How many?", "answer": "3"}, ROW | {"category": "c"}))
    assert rows[1]["choices"] == ["red", "blue"] and rows[1]["category"] == "c" and not rows[0]["choices"]

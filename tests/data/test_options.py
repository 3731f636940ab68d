"""Multiple choice as published tables carry it: a column `options` (text or list), and a letter as the answer."""

import pytest
from miniatures import embedded, write_image, write_jsonl, write_parquet

from mgpo.data.reading import BadRow
from mgpo.data.sources import read_questions, unread_columns
from mgpo.data.texts import lettered, spaced_labels
from mgpo.method.question import Question

FORMS = [
    ("options", "A.27B\nB.37B\nC.47B\nD.57B", "B", ("27B", "37B", "47B", "57B"), "B"),
    ("options", "(A) In the upper right area\n(B) In the lower left area", "A",
     ("In the upper right area", "In the lower left area"), "A"),
    ("options", "A. To the left \nB. To the right ", "B", ("To the left", "To the right"), "B"),
    ("options", ["(A) red", "(B) blue", "(C) green"], "(C)", ("red", "blue", "green"), "C"),
    ("options", ["red", "blue"], "B", ("red", "blue"), "B"),
    ("options", "['red', 'blue', 'green']", "C", ("red", "blue", "green"), "C"),
    ("options", {"A": "red", "B": "blue", "C": None}, "A", ("red", "blue"), "A"),
    ("options", "red\nblue\ngreen", "C", ("red", "blue", "green"), "C"),
    ("choices", "A. red\nB. blue", "A", ("red", "blue"), "A"),
    ("choices", ["A. red", "B. blue"], "B", ("red", "blue"), "B"),
    ("choice", "A: red\nB: blue", "B. blue", ("red", "blue"), "B"),
    ("candidates", ["U.S. flag", "U.K. flag"], "B", ("U.S. flag", "U.K. flag"), "B"),
    ("options", ["C.elegans", "D.rerio"], "A", ("C.elegans", "D.rerio"), "A"),
    ("options", "A.red\nB.blue\nC.red\nD.green", "D", ("red", "blue", "green"), "C"),
    ("options", {"B": "blue", "A": "red"}, "B", ("blue", "red"), "A"),
    ("options", ["C. green", "A. red", "B. blue"], "C", ("green", "red", "blue"), "A"),
    ("options", ["A. red", "C. green", "D. blue"], "C", ("red", "green", "blue"), "B"),
    ("options", "a. red\nb. blue", "b", ("red", "blue"), "B"),
    ("options", ["a) red", "b) blue"], "B", ("red", "blue"), "B"),
    ("options", {"a": "red", "b": "blue"}, "B", ("red", "blue"), "B"),
    ("options", ["**A.** red", "**B.** blue"], "B", ("red", "blue"), "B"),
    ("options", "A、红\nB、蓝", "B", ("红", "蓝"), "B"),
    ("options", "A - red\nB - blue", "B", ("red", "blue"), "B"),
    ("choices", {"label": ["A", "B"], "text": ["red", "blue"]}, "B", ("red", "blue"), "B"),
    ("choices", [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}], "B", ("red", "blue"), "B"),
    ("options", ["red", "blue", None, ""], "B", ("red", "blue"), "B"),
    ("options", '["red", "blue", null]', "B", ("red", "blue"), "B"),
    ("options", [27, 37], "B", ("27", "37"), "B"),
]  # fmt: skip


def read(folder, row):
    write_image(folder / "a.jpg")
    return next(iter(read_questions(str(write_jsonl(folder / "rows.jsonl", [{"image": "a.jpg"} | row])))))


@pytest.mark.parametrize(("column", "value", "gold", "choices", "letter"), FORMS)
def test_a_letter_is_read_with_its_options(tmp_path, column, value, gold, choices, letter):
    found = read(tmp_path, {"question_id": 7, "question": "Which?", column: value, "answer": gold, "category": "c"})
    question = Question.from_row(found)
    assert (question.choices, question.answer, question.id) == (choices, letter, "7")


def test_target_boxes_of_a_copied_treebench(tmp_path):
    row = {"question": "Which?", "options": "A. x\nB. y", "answer": "A", "target_instances": "[[1, 2, 30, 40]]"}
    assert Question.from_row(read(tmp_path, row)).gold_boxes_px_original == ((1, 2, 30, 40),)


def test_a_copied_parquet_is_read_alike(tmp_path):
    """As `datasets` saves it, pictures inside."""
    from mgpo.data.loading import load_questions

    rows = [
        {"question_id": i, "image": embedded(i), "question": "Which?", "options": "A.27B\nB.37B", "answer": "AB"[i % 2],
         "category": "c"}
        for i in range(3)
    ]  # fmt: skip
    file = write_parquet(tmp_path / "test.parquet", rows)
    loaded = load_questions(str(file))
    assert [row["choices"] for row in loaded] == [["27B", "37B"]] * 3
    assert [row["answer"] for row in loaded] == ["A", "B", "A"]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (
            {"alternatives": "A. red\nB. blue"},
            "its column 'alternatives' looks like its choices, but that column is not read",
        ),
        ({"opts": ["(A) red", "(B) blue"]}, "'opts'"),
        ({"question": "Which?\nA. red\nB. blue"}, "its choices are part of its text"),
        ({"question": "Which?\nOptions: A: red, B: blue, C: green"}, "its choices are part of its text"),
        ({"question": "Which? (A) red (B) blue"}, "its choices are part of its text"),
        ({"option_a": "red", "option_b": "blue"}, "the columns option_a, option_b"),
        ({"mc_options": ["red", "blue"]}, "its column 'mc_options' looks like its choices"),
        ({"mc": {"A": "red", "B": "blue"}}, "'mc'"),
        ({"question": "Which?\n(A) red\n(B) blue\nAnswer with the letter."}, "its choices are part of its text"),
    ],
)
def test_a_letter_without_its_options_is_refused(tmp_path, extra, why):
    found = read(tmp_path, {"question": "Which?", "answer": "A"} | extra)
    assert isinstance(found, BadRow) and why in found.reason and "choices" in found.reason


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which letter is on the sign?", "answer": "A"},
        {"question": "Which plan is it?\nPlan A.", "answer": "B", "note": "first\nsecond"},
        {"question": "Which?", "answer": "red", "alternatives": "A. red\nB. blue"},
    ],
)
def test_open_questions_stay_open(tmp_path, row):
    question = Question.from_row(read(tmp_path, row))
    assert question.choices == () and question.answer == row["answer"]


@pytest.mark.parametrize("options", [["red", {"x": 1}], ["red", None, "blue"], ["red", True]])
def test_options_that_are_no_texts_are_refused(tmp_path, options):
    found = read(tmp_path, {"question": "Which?", "options": options, "answer": "A"})
    assert isinstance(found, BadRow) and "which is not text" in found.reason


def test_options_nested_without_end_are_a_bad_row(tmp_path):
    found = read(tmp_path, {"question": "Which?", "options": "[" * 100_000, "answer": "A"})
    assert isinstance(found, BadRow) and "is not a list" in found.reason


def test_lettered_columns_end_where_the_letters_do(tmp_path):
    """A place in columns X and Y is no option."""
    row = {"question": "Which?", "A": "red", "B": "blue", "X": "12", "Y": "7", "answer": "B"}
    assert read(tmp_path, row)["choices"] == ["red", "blue"]


def test_columns_of_v_star_s_files_beside_an_answer_are_no_v_star_file(tmp_path):
    """With an answer, the first option is not the right one."""
    more = {"target_object": ["sign"], "bbox": [[1, 2, 3, 4]], "question": "Which?"}
    question = Question.from_row(read(tmp_path, more | {"options": ["red", "blue"], "answer": "B"}))
    assert (question.choices, question.answer) == (("red", "blue"), "B")
    assert isinstance(read(tmp_path, more | {"options": "A. red\nB. blue"}), BadRow)


@pytest.mark.parametrize("name", ["problem", "prompt"])
def test_other_layouts_read_a_column_of_options_too(tmp_path, name):
    write_image(tmp_path / "a.jpg")
    row = {"images": ["a.jpg"], name: "<image>Which?", "options": ["red", "blue"], "answer": "B"}
    [found] = read_questions(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    assert (found["choices"], found["answer"], found["question"]) == (["red", "blue"], "B", "Which?")


def test_an_answer_that_is_none_of_its_options_is_refused(tmp_path):
    found = read(tmp_path, {"question": "Which?", "options": "A. red\nB. blue", "answer": "E"})
    assert isinstance(found, BadRow) and "not one of its options" in found.reason


def test_columns_that_nothing_reads_are_named(tmp_path):
    write_image(tmp_path / "a.jpg")
    row = {"image": "a.jpg", "question": "Which?", "choises": ["red", "blue"], "answer": "red", "source_url": "x"}
    file = write_jsonl(tmp_path / "rows.jsonl", [row])
    assert unread_columns(str(file), "train") == ["choises", "source_url"]
    later = [row | {"choices": []}, row | {"mc": 1}]
    assert "mc" in unread_columns(str(write_jsonl(tmp_path / "later.jsonl", later)), "train")
    known = {"image": "a.jpg", "question": "Which?", "options": "A. x\nB. y", "answer": "A", "question_id": 1}
    assert unread_columns(str(write_jsonl(tmp_path / "known.jsonl", [known])), "train") == []


def test_columns_that_nothing_reads_are_named_by_the_commands(tmp_path):
    from typer.testing import CliRunner

    from mgpo.cli import app

    write_image(tmp_path / "a.jpg")
    row = {"image": "a.jpg", "question": "Which?", "choices": ["red", "blue"], "answer": "A", "odd": 1}
    file = str(write_jsonl(tmp_path / "rows.jsonl", [row]))
    checked = CliRunner().invoke(app, ["data", "check", file, "--figure", str(tmp_path / "f.png")])
    assert checked.output.count("are not used: 'odd'") == 1 and checked.exit_code == 0
    asked = CliRunner().invoke(app, ["eval", "--tasks", file, "--out", str(tmp_path / "out")])
    assert asked.output.count("are not used: 'odd'") == 1, asked.output


def test_labels_run_from_a():
    assert spaced_labels(["A.27B", "B.37B"]) == ["A. 27B", "B. 37B"]
    assert spaced_labels(["U.S.", "U.K."]) == ["U.S.", "U.K."] and spaced_labels(["A.27B"]) == ["A.27B"]
    assert lettered("A.1\nB.2") and lettered(["(A) x", "(B) y"]) and not lettered("A. x") and not lettered(3)

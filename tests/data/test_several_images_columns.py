"""Where rows about several images hold them, and how their texts name them: no image may be lost or misnumbered silently."""

import numpy as np
import pyarrow.parquet
import pytest
from miniatures import embedded, names, one, write_jsonl, write_parquet, write_tsv

from mgpo.data.convert import convert
from mgpo.data.loading import load_questions, load_rows
from mgpo.data.reading import BadRow, RawRow
from mgpo.data.sources import question_row, read_questions
from mgpo.method.question import Question

ASKED = {"question": "Which is older?", "answer": "x"}
TURN = [{"role": "user", "content": "Which is older?"}]


COLUMNS = [
    ({"image": "a.png", "images": ["a.png", "b.png", "c.png"]}, ["a.png", "b.png", "c.png"]),
    ({"image": ["a.png"], "images": ["a.png", "b.png"]}, ["a.png", "b.png"]),
    ({"image": "", "images": ["a.png", "b.png"]}, ["a.png", "b.png"]),
    ({"image": [], "images": ["a.png"]}, ["a.png"]),
    ({"image": "b.png", "images": []}, ["b.png"]),
    ({"image": None, "images": ["a.png", "b.png", None, ""]}, ["a.png", "b.png"]),
    ({"image": "a.png", "images": None, "more_images": ["c.png"]}, ["a.png", "c.png"]),
    ({"image": "a.png", "images": [], "more_images": []}, ["a.png"]),
]


@pytest.mark.parametrize(("given", "shown"), COLUMNS)
@pytest.mark.parametrize("rest", [ASKED, {"prompt": TURN, "answer": "x"}], ids=["own", "trl"])
def test_empty_columns_are_absent_and_no_image_is_lost(folder, rest, given, shown):
    assert names(one(folder, given | rest)) == shown


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"image": "c.png", "images": ["a.png", "b.png"]}, "'image' and 'images' both hold images"),
        ({"image": "c.png", "images": ["a.png"]}, "'image' and 'images' both hold images"),
        ({"image": ["a.png", "b.png"], "images": ["a.png", "b.png", "c.png"]}, "both hold images"),
        ({"images": ["a.png", "b.png"], "more_images": ["c.png"]}, "'more_images' stands beside 2 images"),
        ({"image": "", "images": [None, ""]}, "it has no image"),
    ],
)
@pytest.mark.parametrize("rest", [ASKED, {"prompt": TURN, "answer": "x"}], ids=["own", "trl"])
def test_columns_that_contradict_each_other_are_refused(folder, rest, given, reason):
    bad = one(folder, given | rest)
    assert isinstance(bad, BadRow) and reason in bad.reason


def test_embedded_images_in_both_columns_are_compared_before_training(folder):
    rows = [ASKED | {"image": embedded(1), "images": [embedded(n) for n in (1, 2)]},
            ASKED | {"image": embedded(3), "images": [embedded(n) for n in (1, 2)]}]  # fmt: skip
    loaded = load_rows(str(write_parquet(folder / "both.parquet", rows)))
    assert len(Question.from_row(loaded.questions[0]).images) == 2
    assert [bad.where.rsplit(" ", 1)[1] for bad in loaded.bad] == ["2"]


def test_padding_inside_an_embedded_list_is_no_image(folder):
    rows = [{"images": [embedded(1), embedded(2), None, {"bytes": None, "path": None}], "answer": "yes",
             "problem": "Is <image> older than <image>?"},
            {"images": [embedded(1), None, embedded(2)], "problem": "Which?", "answer": "x"}]  # fmt: skip
    loaded = load_rows(str(write_parquet(folder / "padded.parquet", rows)))
    assert loaded.questions[0]["question"] == "Is image 1 older than image 2?"
    assert len(Question.from_row(loaded.questions[0]).images) == 2
    assert len(loaded.bad) == 1 and "it has no image" in loaded.bad[0].reason


def test_a_table_of_text_holds_lists_and_numbers(folder):
    rows = [ASKED | {"image": "a.png", "more_images": '["b.png", "c.png", null]', "gold_image": "2"},
            ASKED | {"image": "['b.png', 'c.png']", "more_images": "", "gold_image": "2.0"},
            ASKED | {"image": "c.png", "more_images": "", "gold_image": ""},
            ASKED | {"image": "c.png", "more_images": "a.png", "gold_image": ""}]  # fmt: skip
    *good, last = read_questions(str(write_tsv(folder / "rows.tsv", rows)))
    assert [names(row) for row in good] == [["a.png", "b.png", "c.png"], ["b.png", "c.png"], ["c.png"]]
    assert [Question.from_row(row).gold_image for row in good] == [2, 2, 1]
    assert isinstance(last, BadRow) and "'more_images' holds 'a.png'" in last.reason


def test_numbers_of_several_types_share_a_column(folder):
    rows = [
        ASKED | {"images": ["a.png", "b.png"], "gold_image": number, "gold_boxes": [[1, 2, 9, 9]]}
        for number in (2, 2.0, "2")
    ]
    assert [row["gold_image"] for row in load_questions(str(write_jsonl(folder / "rows.jsonl", rows)))] == [2, 2, 2]


def test_a_list_may_be_numpy_s(folder):
    cells = {"images": np.array(["a.png", "b.png"], object)} | ASKED
    assert names(question_row(RawRow(cells, "row 1", folder))) == ["a.png", "b.png"]


def parts(*content):
    return [
        {"type": "image", "text": None} if part is None else {"type": "text", "text": part, "image": None}
        for part in content
    ]


@pytest.mark.parametrize(
    ("content", "images", "read"),
    [
        (parts("Is", None, "older than", None, "?"), ["a.png", "b.png"], "Is image 1 older than image 2?"),
        (parts(None, None, "Which is older?"), ["a.png", "b.png"], "Which is older?"),
        (parts(None, "Is it like", None, "or not?", "Say why."), ["a.png", "b.png"],
         "Is it like image 2 or not?\nSay why."),
        (parts("Which is older?", "The first?"), ["a.png", "b.png"], "Which is older?\nThe first?"),
        (parts("Is", None, "old?"), ["a.png"], "Is\nold?"),
    ],
)  # fmt: skip
def test_image_parts_of_a_turn_keep_their_places(folder, content, images, read):
    turn = [{"role": "user", "content": content}]
    assert one(folder, {"prompt": turn, "images": images, "answer": "x"})["question"] == read
    verl = {"prompt": turn, "images": images, "reward_model": {"ground_truth": "x"}}
    assert one(folder, verl)["question"] == read


def test_image_parts_must_be_as_many_as_the_images(folder):
    turn = [{"role": "user", "content": parts("Is", None, "old?")}]
    bad = one(folder, {"prompt": turn, "images": ["a.png", "b.png"], "answer": "x"})
    assert isinstance(bad, BadRow) and "1 image markers, but it shows 2 images" in bad.reason


CHOSEN = {"choices": ["<image>", "<image>", "neither"], "answer": "B"}


@pytest.mark.parametrize("change", [{}, {"choices": None, "options": CHOSEN["choices"]}])
def test_the_own_layout_numbers_markers_in_question_and_choices(folder, change):
    row = one(folder, {"images": ["a.png", "b.png", "c.png"], "question": "Which is like <image>?"} | CHOSEN | change)
    assert row["question"] == "Which is like image 1?" and row["choices"] == ["image 2", "image 3", "neither"]
    assert row["answer"] == "B"


def test_the_own_layout_refuses_other_counts_and_leaves_one_image_alone(folder):
    bad = one(folder, ASKED | {"images": ["a.png", "b.png"], "question": "Is <image> old?"})
    assert isinstance(bad, BadRow) and "1 image markers, but it shows 2 images" in bad.reason
    assert one(folder, ASKED | {"image": "a.png", "question": "Is <image> old?"})["question"] == "Is <image> old?"


@pytest.mark.parametrize("column", ["choices", "options"])
def test_markers_in_a_column_of_options_are_numbered_and_counted(folder, column):
    row = {"images": ["a.png", "b.png"], "problem": "Which shows a ship?", column: CHOSEN["choices"], "answer": "B"}
    assert one(folder, row)["choices"] == ["image 1", "image 2", "neither"]
    bad = one(folder, row | {"problem": "Which of <image> shows a ship?"})
    assert isinstance(bad, BadRow) and "3 image markers, but it shows 2 images" in bad.reason
    in_text = row | {"problem": "Which shows a ship?\nA. <image>\nB. <image>\nC. neither"}  # the column repeats them
    assert one(folder, in_text)["choices"] == ["image 1", "image 2", "neither"]


@pytest.mark.parametrize("form", ["jsonl", "trl", "verl"])
def test_numbered_texts_are_read_back_and_literal_markers_refused(folder, form):
    row = {"images": ["a.png", "b.png", "c.png"], "question": "Which is like <image>?"} | CHOSEN
    name = str(write_jsonl(folder / "rows.jsonl", [row]))
    file, _ = convert(load_questions(name), form, folder / form, "train")
    (again,) = (Question.from_row(row) for row in load_questions(str(file)))
    before = Question.from_row(load_questions(name)[0])
    assert (again.question, again.choices, again.answer) == (before.question, before.choices, before.answer)
    assert len(again.images) == 3
    for literal in ({"question": "What does <image> mean?"}, {"choices": ["<image>", "y"]}):
        made = {"image": str(folder / "a.png"), "more_images": [str(folder / "b.png")], "choices": ["x", "y"],
                "question": "Which?", "answer": "A", "id": "7"} | literal  # fmt: skip
        with pytest.raises(ValueError, match="'7' shows several images, and its text or choices hold <image>"):
            convert([made], form, folder / "none", "train")


def test_verl_s_prompt_has_a_marker_for_each_image(folder):
    rows = [ASKED | {"images": ["a.png", "b.png", "c.png"]}, ASKED | {"image": "a.png"}]
    file, _ = convert(load_questions(str(write_jsonl(folder / "rows.jsonl", rows))), "verl", folder / "v", "train")
    table = pyarrow.parquet.read_table(file).to_pylist()
    assert [row["prompt"][0]["content"].count("<image>") for row in table] == [3, 1]
    bare = [{key: value for key, value in row.items() if key != "extra_info"} for row in table]
    again = load_questions(str(write_parquet(folder / "bare.parquet", bare)))
    assert [row["question"] for row in again] == ["Which is older?"] * 2
    assert [len(Question.from_row(row).images) for row in again] == [3, 1]

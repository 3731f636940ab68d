"""Every layout that is claimed to be read, on small files of the same schema; every trap of the real files is a row."""

import json
import re

import pytest
from miniatures import (
    MME_TRAPS,
    b64,
    embedded,
    hrbench,
    mme_port,
    mme_raw,
    paper,
    treebench,
    vstar_folders,
    vstar_questions,
    write_image,
    write_json,
    write_jsonl,
    write_parquet,
    write_tsv,
)

from mgpo.data.reading import BadRow
from mgpo.data.sources import read_questions
from mgpo.images.imaging import open_image
from mgpo.method.question import Question


def read(source, split="test", among=None):
    """Questions of a source, each of whose images opens."""
    rows = list(read_questions(str(source), split, among=among))
    assert all(not isinstance(row, BadRow) for row in rows), rows
    questions = [Question.from_row(row) for row in rows]
    for question in questions:
        open_image(question.image)
    return questions


def test_vstar_shuffled_questions(tmp_path):
    glove, inline, side = read(vstar_questions(tmp_path).parent)
    assert glove.question == "What is the glove's material?" and glove.choices == (
        "rubber",
        "cotton",
        "kevlar",
        "leather",
    )
    assert glove.answer == "C" and glove.gold_boxes_px_original == ((5, 6, 15, 26),) and glove.id == "0"
    assert inline.question == "Is (A) it red?" and inline.choices == ("yes", "no") and inline.answer == "B"
    assert (
        side.choices == ("left", "right") and side.category == "relative_position" and side.gold_boxes_px_original == ()
    )


def test_vstar_folders_put_the_right_option_somewhere_else(tmp_path):
    rows = read(vstar_folders(tmp_path))
    assert [row.category for row in rows] == ["direct_attributes", "relative_position"]
    assert all(row.choices["ABCD".index(row.answer)] == "red" for row in rows)
    assert rows == read(tmp_path) and rows[0].gold_boxes_px_original == ((1, 2, 31, 12),)
    orders = set()
    for number in range(40):
        row = {"image": "a.jpg", "question": f"{number}?", "options": list("wxyz"), "target_object": [], "bbox": []}
        orders.add(read_one(row, tmp_path).answer)
    assert orders == set("ABCD"), "always the same letter would make V* a test of that letter"


def read_one(row, folder):
    write_image(folder / "a.jpg")
    return read(write_jsonl(folder / "one.jsonl", [row]))[0]


def test_vstar_parquet(tmp_path):
    row = {
        "image": embedded(),
        "text": "What?\n(A) x\n(B) y\nAnswer.",
        "label": "B",
        "question_id": "7",
        "category": "c",
    }
    (question,) = read(write_parquet(tmp_path / "data/test-00000-of-00001.parquet", [row]).parent.parent)
    assert (question.question, question.choices, question.answer, question.id) == ("What?", ("x", "y"), "B", "7")


def test_hrbench_rotations_keep_their_answer(tmp_path):
    for file in (write_parquet(tmp_path / "hr.parquet", hrbench()), write_tsv(tmp_path / "hr.tsv", hrbench())):
        rows = read(file)
        assert [row.choices["ABCD".index(row.answer)] for row in rows] == ["blue"] * 4
        assert [row.category for row in rows] == ["single", "single", "cross", "cross"]


@pytest.mark.parametrize("layout", ["json", "parquet", "table"])
def test_mme_realworld_and_its_traps(tmp_path, layout):
    if layout == "json":
        file = mme_raw(tmp_path)
    elif layout == "parquet":
        file = write_parquet(tmp_path / "m.parquet", mme_port())
    else:  # VLMEvalKit: lists as text, columns A to E as well
        rows = [{k: v for k, v in row.items() if k != "bytes"} | {"image": row["bytes"]} for row in mme_port()]
        file = write_tsv(
            tmp_path / "m.tsv", [r | {"multi-choice options": repr(r["multi-choice options"])} for r in rows]
        )
    questions = read(file)
    assert [len(q.choices) for q in questions] == [n for _, _, n, _ in MME_TRAPS]
    assert [q.answer for q in questions] == [right for *_, right in MME_TRAPS]
    assert questions[1].choices[-1] == "not there" and questions[3].choices[0] == "first line"
    assert questions[4].choices == ("one", "two", "three", "four", "five")
    assert {q.category for q in questions} == {"Perception/OCR with Complex Context"}


def test_visualprobe_finds_its_images_under_its_own_name(tmp_path):
    folder = tmp_path / "VisualProbe_Hard"
    write_image(folder / "data/a.jpg")
    row = {"images": ["VisualProbe_Hard/data/a.jpg"], "doc_id": "3", "problem": "<image>\nWhat is on the sign?",
           "solution": "Main St.", "data_source": "visual_probe_hard"}  # fmt: skip
    (question,) = read(write_json(folder / "val.json", [row]).parent)
    assert (question.question, question.choices, question.answer) == ("What is on the sign?", (), "Main St.")
    (again,) = read(write_json(folder / "val.json", [row | {"images": str(row["images"])}]))
    assert again.image == question.image


def test_treebench_boxes_and_shared_images(tmp_path):
    first, second = read(write_tsv(tmp_path / "TreeBench.tsv", treebench()))
    assert first.choices == ("cup", "pot", "pan") and first.answer == "C" and len(second.choices) == 4
    assert first.gold_boxes_px_original == ((10, 10, 20, 20), (40, 10, 50, 30))
    assert first.image == second.image, "a short image cell names the row that holds the image"


@pytest.mark.parametrize("names", [("query", "response"), ("prompt", "answer")])
def test_zoombench_has_choices_and_numbers(tmp_path, names):
    def row(text, gold):
        return dict(zip(names, (text, gold))) | {
            "id": 1,
            "image": embedded(),
            "crop_image": None,
            "bbox": [1, 2, 30, 20],
        }

    rows = [row("<image>Which?\nA. red\nB. blue\nAnswer with the letter.", "B"), row("How many?", "12")]
    which, many = read(write_parquet(tmp_path / "test.parquet", rows))
    assert which.choices == ("red", "blue") and which.answer == "B" and which.question == "Which?"
    assert many.choices == () and many.answer == "12" and many.gold_boxes_px_original == ((1, 2, 30, 20),)


def test_pope_in_both_layouts(tmp_path):
    port = {"id": "0", "question_id": "1", "question": "Is there a dog?", "answer": "Yes", "image_source": "COCO",
            "image": embedded(), "category": "random"}  # fmt: skip
    (yes,) = read(write_parquet(tmp_path / "pope.parquet", [port]))
    write_image(tmp_path / "a.jpg")
    first = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "no"}
    (no,) = read(write_jsonl(tmp_path / "pope.jsonl", [first]))
    assert yes.choices == no.choices == ("yes", "no") and (yes.answer, no.answer) == ("A", "B")


@pytest.mark.parametrize("choices", [["(A) red", "(B) blue"], "(A) red\n(B) blue\n", "A. red\nB. blue "])
def test_the_papers_training_set(tmp_path, choices):
    (question, _) = read(write_parquet(tmp_path / "train.parquet", paper(choices)), "train")
    assert (question.question, question.choices, question.answer) == ("Which?", ("red", "blue"), "B")


def test_deepeyes_and_verl(tmp_path):
    def row(source, text, gold, extra):
        chat = [{"role": "system", "content": "Be good."}, {"role": "user", "content": f"<image>{text}\nThink first."}]
        return {"data_source": source, "prompt": chat, "images": [embedded()], "ability": "vl", "env_name": None,
                "reward_model": {"ground_truth": gold, "style": "model"}, "extra_info": extra}  # fmt: skip

    rows = [
        row("vstar", "What colour?", "The countertop is tan.", {"question": "What colour?", "index": "4"}),
        row("chart", "?", "B", {"question": "Which?\\nA. one\\nB. two", "index": "5"}),
        row("geometry3k", "Find x.", "\\boxed{3}", {"question": None, "index": "6"}),
    ]
    free, letter, maths = read(write_parquet(tmp_path / "train.parquet", rows), "train")
    assert free.answer == "The countertop is tan." and free.id == "4" and free.category == "vstar"
    assert letter.question == "Which?" and letter.choices == ("one", "two") and letter.answer == "B"
    assert maths.answer == "3" and maths.question.startswith("Find x.")


def test_easyr1_and_trl(tmp_path):
    row = {"images": [embedded()], "problem": "<image>Find x.", "answer": "3"}
    (easy,) = read(write_parquet(tmp_path / "a.parquet", [row]), "train")
    assert (easy.question, easy.answer) == ("Find x.", "3")
    prompt = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]}]
    row = {"prompt": prompt, "images": [embedded()], "choices": ["red", "blue"], "answer": "blue"}
    (trl,) = read(write_parquet(tmp_path / "b.parquet", [row]), "train")
    assert (trl.question, trl.choices, trl.answer) == ("Which?", ("red", "blue"), "B")


def test_base64_and_data_uris_are_images(tmp_path):
    rows = [{"image": b64(), "question": "?", "answer": "x"}, {"image": f"data:image/png;base64,{b64()}"}]
    read(write_jsonl(tmp_path / "a.jsonl", [rows[0], rows[0] | rows[1]]))


BAD = {
    "nine images": (
        {"images": ["a.png"] * 9, "problem": "?", "answer": "x"},
        "shows 9 images; at most 8",
    ),
    "two images of one": (
        {"image": ["a.png", "a.png"], "crop_image": "a.png", "query": "?", "response": "x"},
        "it has 2 images, but only one is supported",
    ),
    "markers": (
        {"images": ["a.png", "a.png"], "problem": "Is <image> older than <image> or <image>?", "answer": "x"},
        "3 image markers, but it shows 2 images",
    ),
    "no image": ({"images": [], "problem": "?", "answer": "x"}, "it has no image"),
    "url": ({"image": "https://example.org/a.png", "question": "?", "answer": "x"}, "is a URL"),
    "gone": ({"image": "gone.png", "question": "?", "answer": "x"}, "gone.png does not exist"),
    "no such letter": (
        {"image": "a.png", "question": "?", "answer": "E", "A": "x", "B": "y", "index": 1},
        "its gold answer 'E' is not one of its options A, B",
    ),
    "own letter": (
        {"image": "a.png", "question": "?", "choices": ["x", "y"], "answer": "C"},
        "not one of its letters AB",
    ),
    "no answer": ({"image": "a.png", "question": "?", "answer": None}, "it has no answer"),
    "neither": ({"question_id": 1, "image": "a.png", "text": "?", "label": "maybe"}, "'maybe', not yes or no"),
    "unknown": ({"picture": "a.png", "ask": "?"}, "it has no 'image' and no 'question' and no 'answer'"),
    "27 choices": (
        {"image": "a.png", "question": "?", "choices": list("abcdefghijklmnopqrstuvwxyzä"), "answer": "A"},
        "27 choices; 2 to 26",
    ),
    "box": ({"image": "a.png", "question": "?", "answer": "x", "gold_boxes": [[1, 2]]}, "gold box that is not four"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_file_and_number(tmp_path, case):
    row, reason = BAD[case]
    write_image(tmp_path / "a.png")
    fine = {"image": "a.png", "question": "?", "answer": "x"}
    file = write_jsonl(tmp_path / "rows.jsonl", [fine, row, fine])
    good, bad, last = read_questions(str(file))
    assert isinstance(bad, BadRow) and bad.where == f"{file} row 2" and reason in bad.reason
    assert not isinstance(good, BadRow) and last["source"] == f"{file} row 3"


def test_a_task_reads_its_own_layouts_and_the_projects(tmp_path):
    write_image(tmp_path / "a.png")
    own = write_jsonl(tmp_path / "own.jsonl", [{"image": "a.png", "question": "?", "answer": "x"}])
    assert len(read(own, among=("vstar",))) == 1
    file = write_parquet(tmp_path / "hr.parquet", hrbench())
    (first, *_) = read_questions(str(file), among=("vstar",))
    assert "its layout is 'lettered columns', but 'vstar' is expected" in first.reason
    (bad,) = read_questions(str(write_json(tmp_path / "x.json", [{"images": ["a.png"], "problem": "?", "solution": "x"}])),
                            among=("pope",))  # fmt: skip
    assert isinstance(bad, BadRow)


def test_gold_boxes_reach_the_question_as_corners(tmp_path):
    write_image(tmp_path / "a.png")
    row = {"image": "a.png", "question": "?", "answer": "x", "gold_boxes": [[1, 2, 30, 20]]}
    (question,) = read(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert json.loads(json.dumps(question.gold_boxes_px_original)) == [[1, 2, 30, 20]]


def test_a_formula_keeps_its_backslashes_and_written_line_breaks_become_lines(tmp_path):
    rows = [
        {"images": [embedded()], "problem": p, "answer": a}
        for p, a in (("Is $a \\neq \\nu$?", "3"), ("Which?\\nA. x\\nB. y", "B"))
    ]
    formula, listed = read(write_parquet(tmp_path / "a.parquet", rows), "train")
    assert formula.question == "Is $a \\neq \\nu$?" and listed.choices == ("x", "y") and listed.question == "Which?"


def test_an_image_is_never_taken_from_another_folder_by_its_name(tmp_path):
    write_image(tmp_path / "data/1.png")
    (bad,) = read_questions(
        str(write_jsonl(tmp_path / "a.jsonl", [{"image": "hard/1.png", "question": "?", "answer": "x"}]))
    )
    assert isinstance(bad, BadRow) and "hard/1.png does not exist" in bad.reason


def test_odd_values_are_bad_rows_and_none_is_an_option(tmp_path):
    write_image(tmp_path / "a.png")
    empty = {"image": "a.png", "question": "?", "options": [], "target_object": [], "bbox": []}
    endless = {
        "image": "a.png",
        "question": "?",
        "options": ["x", "y"],
        "target_object": [],
        "bbox": [[1, 2, float("inf"), 3]],
    }
    assert all(
        isinstance(row, BadRow) for row in read_questions(str(write_jsonl(tmp_path / "a.jsonl", [empty, endless])))
    )
    row = {"index": 0, "image": b64(), "question": "?", "answer": "B", "A": "one", "B": "None", "C": "two", "D": "nan"}
    (question,) = read(write_tsv(tmp_path / "b.tsv", [row]))
    assert question.choices == ("one", "None", "two") and question.answer == "B"


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("test", "train"),
        ("train", "test"),
        ("validation", "train"),
        ("vstar_test", "train"),
        ("testmini", "train"),
        ("test.v2", "train"),
        ("validation_v1", "train"),
        ("train_v1", "test"),
        ("test2", "train"),
    ],
)
def test_a_lone_file_of_another_split_is_not_used(tmp_path, file, split):
    """A folder with nothing but test.jsonl was trained on."""
    write_image(tmp_path / "a.jpg")
    row = {"image": "a.jpg", "question": "Which?", "answer": "red"}
    write_jsonl(tmp_path / f"{file}.jsonl", [row])
    with pytest.raises(FileNotFoundError, match=rf"has no {split}\.jsonl.*It contains {re.escape(file)}\.jsonl"):
        list(read_questions(str(tmp_path), split))


def test_a_lone_file_of_no_split_is_any_split_s(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_jsonl(tmp_path / "my_data.jsonl", [{"image": "a.jpg", "question": "Which?", "answer": "red"}])
    assert len(read(tmp_path, "train")) == len(read(tmp_path, "test")) == 1
    (tmp_path / "my_data.jsonl").rename(tmp_path / "training_1.jsonl")
    assert len(read(tmp_path, "train")) == 1

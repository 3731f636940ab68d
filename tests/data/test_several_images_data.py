"""Rows that show several images: the project's own, and those of published datasets with their traps.

BLINK: columns `idx question sub_task image_1 .. image_4 choices answer prompt`, images beyond a row's own are null, answers are
"(A)", or "hidden" in the test split. MuirBench: `idx task question options answer image_list`, with an `<image>` for each
image in the question or in the options. EasyR1 and verl: `images` and as many `<image>` in the text.
"""

import pytest
import torch
from miniatures import embedded, names, one, write_jsonl, write_parquet

from mgpo.data.admitting import Admission, admitted
from mgpo.data.check import check
from mgpo.data.convert import convert
from mgpo.data.loading import load_questions, load_rows, read_all
from mgpo.data.reading import BadRow
from mgpo.data.texts import with_numbered_images
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question


@pytest.mark.parametrize("column", ["image", "images"])
def test_the_own_layout_takes_a_list(folder, column):
    row = one(
        folder,
        {
            column: ["b.png", "a.png"],
            "question": "Which is older?",
            "answer": "x",
            "gold_boxes": [[1, 2, 9, 9]],
            "gold_image": 2,
        },
    )
    assert names(row) == ["b.png", "a.png"] and Question.from_row(row).gold_image == 2
    single = one(folder, {column: ["b.png"], "question": "?", "answer": "x"})
    assert names(single) == ["b.png"] and "more_images" not in single


def test_questions_about_one_and_several_images_share_a_dataset(folder):
    rows = [
        {"image": "a.png", "question": "?", "answer": "x"},
        {"images": ["c.png", "b.png"], "question": "?", "answer": "y"},
        {"image": "a.png", "question": "?", "answer": "z"},
    ]
    questions = load_questions(str(write_jsonl(folder / "rows.jsonl", rows)))
    assert [names(row) for row in questions] == [["a.png"], ["c.png", "b.png"], ["a.png"]]


def test_a_missing_image_is_named_wherever_it_stands(folder):
    bad = one(folder, {"images": ["a.png", "gone.png"], "question": "?", "answer": "x"})
    assert isinstance(bad, BadRow) and "gone.png does not exist" in bad.reason
    bad = one(folder, {"images": ["a.png", None, "b.png"], "question": "?", "answer": "x"})
    assert isinstance(bad, BadRow) and "it has no image" in bad.reason


BLINK = {"idx": "val_Art_Style_1", "sub_task": "Art Style", "question": "Which image shares the style of the first one?",
         "choices": ["the second image", "the third image"], "answer": "(A)", "explanation": ""}  # fmt: skip


def test_blink(folder):
    rows = [
        BLINK | {"image_1": embedded(1), "image_2": embedded(2), "image_3": embedded(3), "image_4": None},
        BLINK | {"image_1": embedded(4), "image_2": None, "image_3": None, "image_4": None, "answer": "(B)"},
        BLINK | {"image_1": embedded(4), "image_2": embedded(5), "image_3": None, "image_4": None, "answer": "hidden"},
    ]  # fmt: skip
    loaded = load_rows(str(write_parquet(folder / "val.parquet", rows)))
    assert [len(Question.from_row(row).images) for row in loaded.questions] == [3, 1]
    assert [row["answer"] for row in loaded.questions] == ["A", "B"] and loaded.questions[0]["id"] == "val_Art_Style_1"
    assert [bad.where.rsplit(" ", 1)[-1] for bad in loaded.bad] == ["3"] and "hidden" in loaded.bad[0].reason


def test_muirbench_names_its_images_by_number(folder):
    rows = [
        {"idx": "1", "task": "Image-Text Matching", "question": "Which picture shows a ship? <image>", "answer": "B",
         "options": ["<image>", "<image>", "None of the choices provided"], "image_list": [embedded(n) for n in range(3)]},
        {"idx": "2", "task": "Counting", "question": "<image><image>\nHow many ships are there?", "answer": "A",
         "options": ["one", "two"], "image_list": [embedded(n) for n in range(2)]},
        {"idx": "3", "task": "Counting", "question": "How many?", "answer": "A", "options": ["one", "two"],
         "image_list": [embedded(n) for n in range(9)]},
    ]  # fmt: skip
    loaded = load_rows(str(write_parquet(folder / "test.parquet", rows)))
    first, second = (Question.from_row(row) for row in loaded.questions)
    assert first.question == "Which picture shows a ship? image 1"
    assert (
        first.choices == ("image 2", "image 3", "None of the choices provided")
        and first.category == "Image-Text Matching"
    )
    assert second.question == "How many ships are there?" and len(second.images) == 2
    assert "shows 9 images" in loaded.bad[0].reason


def test_training_sets_with_markers(folder):
    easy = one(
        folder,
        {
            "images": ["a.png", "b.png"],
            "problem": "<image><image>Which of <image> is older?".replace(" of <image>", ""),
            "answer": "x",
        },
    )
    assert easy["question"] == "Which is older?" and names(easy) == ["a.png", "b.png"]
    inside = one(folder, {"images": ["a.png", "b.png"], "problem": "Is <image> older than <image>?", "answer": "yes"})
    assert inside["question"] == "Is image 1 older than image 2?"
    verl = one(folder, {"images": ["a.png", "b.png"], "prompt": [{"role": "user", "content": "<image><image>Which?"}],
                        "reward_model": {"ground_truth": "x"}})  # fmt: skip
    assert verl["question"] == "Which?" and len(names(verl)) == 2


@pytest.mark.parametrize(
    ("texts", "images", "read"),
    [
        (["<image>Which?"], 1, ["Which?"]),
        (["Which?", "<image>"], 1, ["Which?", ""]),
        (["<image>\n<image>\nWhich?"], 2, ["Which?"]),
        (["<image> Is <image> like it?"], 2, ["Is image 2 like it?"]),
        (["Which?", "<image>", "<image>"], 2, ["Which?", "image 1", "image 2"]),
        (["Which is older?"], 3, ["Which is older?"]),
    ],
)
def test_markers(texts, images, read):
    assert with_numbered_images(texts, images) == read


@pytest.mark.parametrize("form", ["jsonl", "trl", "verl"])
def test_written_and_read_back(folder, form):
    rows = [
        {
            "images": ["a.png", "b.png"],
            "question": "Which?",
            "answer": "x",
            "gold_boxes": [[1, 2, 9, 9]],
            "gold_image": 2,
        },
        {"image": "c.png", "question": "And this?", "answer": "y", "gold_boxes": [[1, 2, 9, 9]]},
    ]
    questions = load_questions(str(write_jsonl(folder / "rows.jsonl", rows)))
    file, _ = convert(questions, form, folder / form, "train")
    again = [Question.from_row(row) for row in load_questions(str(file))]
    assert [len(q.images) for q in again] == [2, 1] and [q.question for q in again] == ["Which?", "And this?"]
    if form != "verl":  # it has no place for gold boxes
        assert [q.gold_image for q in again] == [2, 1] and all(q.gold_boxes_px_original for q in again)


def test_vstar_cannot_hold_them(folder):
    row = {"images": ["a.png", "b.png"], "question": "Which?", "choices": ["p", "q"], "answer": "A"}
    with pytest.raises(ValueError, match="several images"):
        convert(load_questions(str(write_jsonl(folder / "rows.jsonl", [row]))), "vstar", folder / "v", "test")


def test_all_images_are_decoded_before_a_run_and_counted(folder):
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    rows = [
        {"images": ["a.png", "cut.png"], "question": "Which?", "answer": "x"},
        {"images": ["a.png", "b.png", "c.png"], "question": "Which?", "answer": "x"},
        {"images": ["a.png", "b.png"], "question": "Which?", "answer": "x"},
    ]
    name = str(write_jsonl(folder / "rows.jsonl", rows))
    admission = Admission(Protocol(), lambda text, opening, images: len(text), None, decode=True, most_images=2)
    kept, bad = admitted(load_rows(name), name, admission, "skip")
    assert [names(row) for row in kept] == [["a.png", "b.png"]]
    assert "cut.png" in bad[0].reason and "set max_images to 3" in bad[1].reason
    found = check(read_all(name))
    assert found.rows == 2 and "cut.png" in found.bad[0].reason and len(found.files) == 3 and len(found.sizes) == 5


def shown(row):
    return [image["bytes"] for image in Question.from_row(row).images]


@pytest.mark.parametrize("single_first", [True, False])
def test_batches_of_a_mixed_table_hold_all_images(folder, single_first):
    """Regression: a batch had the columns of its first row, and lost the images of the others."""
    counts = [1, 3, 2, 1, 4, 1, 2, 1] if single_first else [2, 1, 3, 1, 1, 4, 1, 2]
    rows = [
        BLINK | {f"image_{n}": embedded(10 * row + n) if n <= count else None for n in range(1, 5)}
        for row, count in enumerate(counts)
    ]
    questions = load_questions(str(write_parquet(folder / "val.parquet", rows)))
    alone = [shown(questions[number]) for number in range(8)]
    assert [len(images) for images in alone] == counts
    batch = questions[0:8]
    assert [shown({name: cells[n] for name, cells in batch.items()}) for n in range(8)] == alone
    assert [shown(row) for row in questions.__getitems__(list(range(8)))] == alone
    loader = torch.utils.data.DataLoader(questions, batch_size=4, collate_fn=list)
    assert [shown(row) for batch in loader for row in batch] == alone

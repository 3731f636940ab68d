"""What is written in another layout is read back as the same questions, about the same pixels."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from miniatures import SIZE, embedded, paper, write_image, write_parquet
from typer.testing import CliRunner

import mgpo
from mgpo.cli import app
from mgpo.data.convert import convert
from mgpo.data.loading import load_questions, usable
from mgpo.data.sources import read_questions
from mgpo.images.imaging import open_image
from mgpo.method.question import Question
from mgpo.worlds.needle import needle_rows


@pytest.fixture
def rows(tmp_path):
    """Choices and open answers, a path, embedded bytes, and drawn images."""
    lettered = {"question": "Which?", "choices": ["red", "blue"], "answer": "B", "category": "c", "id": "1"}
    return [
        lettered | {"image": write_image(tmp_path / "in/a.png", 3), "gold_boxes": [[1, 2, 30, 20]]},
        lettered | {"image": embedded(9), "id": "2", "question": "What is\nit? {}"},
        {"image": embedded(11), "question": "How many?", "choices": [], "answer": "12", "category": "c", "id": "3"},
    ]


def asked(question):
    return question.question, question.choices, question.answer, question.category, question.id


def same(before, after):
    assert [asked(q) for q in after] == [asked(q) for q in before]
    for one, other in zip(before, after):
        assert np.array_equal(open_image(one.image), open_image(other.image))


@pytest.mark.parametrize("form", ["jsonl", "trl", "verl"])
def test_read_back(rows, tmp_path, form):
    before = [Question.from_row(row) for row in rows]
    file, count = convert(iter(rows), form, tmp_path / "out", "train")
    assert count == 3
    same(before, [Question.from_row(row) for row in usable(read_questions(str(tmp_path / "out"), "train"), "out")])
    data = load_questions(str(file))  # as training reads it
    same(before, [Question.from_row(data[i]) for i in range(3)])


def test_the_jsonl_form_keeps_gold_boxes_and_is_stable(rows, tmp_path):
    convert(iter(rows), "jsonl", tmp_path / "one", "train")
    again = usable(read_questions(str(tmp_path / "one"), "train"), "one")
    convert(again, "jsonl", tmp_path / "one/two", "train")
    (first, *_) = read_questions(str(tmp_path / "one/two"), "train")
    assert Question.from_row(first).gold_boxes_px_original == ((1, 2, 30, 20),)


def test_a_world_as_vstar_is_the_same_world(tmp_path):
    world = list(needle_rows("test", 3, 8))
    convert(iter(world), "vstar", tmp_path / "v", "test")
    before = [Question.from_row(row) for row in world]
    after = [
        Question.from_row(row) for row in usable(read_questions(str(tmp_path / "v"), "test", among=("vstar",)), "v")
    ]
    same(before, after)
    assert [q.gold_boxes_px_original for q in after] == [q.gold_boxes_px_original for q in before]


def test_many_rows_take_several_batches(rows, tmp_path):
    many = [rows[2] | {"id": str(n)} for n in range(130)]
    file, count = convert(iter(many), "trl", tmp_path / "out", "train")
    assert count == 130 and [row["id"] for row in read_questions(str(file))] == [str(n) for n in range(130)]


def test_a_bad_row_leaves_no_finished_file(rows, tmp_path):
    broken = usable(iter([rows[0], *read_questions(str(write_bad(tmp_path)))]), "x")
    with pytest.raises(ValueError, match="1 of 2 rows"):
        convert(broken, "jsonl", tmp_path / "out", "train")
    assert not (tmp_path / "out/train.jsonl").exists()
    with pytest.raises(ValueError, match="Choose one of: jsonl, trl, verl, vstar"):
        convert(iter(rows), "csv", tmp_path / "out", "train")
    with pytest.raises(ValueError, match="no single right choice"):
        convert(iter(rows), "vstar", tmp_path / "v", "test")


def write_bad(folder):
    file = folder / "bad.jsonl"
    file.write_text('{"image": "gone.png", "question": "?", "answer": "x"}\n')
    return file


def test_several_right_choices_and_two_files_of_a_split_are_refused(rows, tmp_path):
    both = rows[0] | {"choices": ["x", "y", "z"], "answer": "A|B"}
    convert(iter([both]), "jsonl", tmp_path / "out", "train")
    with pytest.raises(ValueError, match="several right choices"):
        convert(iter([both]), "verl", tmp_path / "v", "train")
    convert(iter(rows), "trl", tmp_path / "out", "train")
    with pytest.raises(FileNotFoundError, match="several files of train: .* Give the path of the one you mean"):
        list(read_questions(str(tmp_path / "out"), "train"))


def test_markers_of_verl_in_a_text_are_refused(rows, tmp_path):
    """verl's dataset splits prompts there, and ends the run where the row has no further image."""
    for text in ("Which <image> is it?", "Is there an <audio> sign?"):
        with pytest.raises(ValueError, match="Question '3' holds <(image|audio)> in its text or choices, where verl"):
            convert(iter([rows[2] | {"question": text}]), "verl", tmp_path / "v", "train")
    assert not (tmp_path / "v/train.parquet").exists()


def test_trl_keeps_gold_boxes_that_come_late(rows, tmp_path):
    many = [rows[2] | {"id": str(n)} for n in range(64)] + [rows[0]]
    file, _ = convert(iter(many), "trl", tmp_path / "out", "train")
    *_, last = read_questions(str(file))
    assert Question.from_row(last).gold_boxes_px_original == ((1, 2, 30, 20),)


RECIPES = {
    path.stem: path.read_text()
    for path in sorted((Path(mgpo.__file__).parent / "recipes").glob("*.yaml"))
    if "dataset_name: data/" in path.read_text()
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_in_a_recipe_s_header_makes_its_data(name, tmp_path, monkeypatch):
    """With a miniature of the hub's dataset in its place; the same command is in docs/data.md."""
    (command,) = re.findall(r"^# The data: mgpo (data convert .*)$", RECIPES[name], re.MULTILINE)
    assert f"mgpo {command}" in (Path(__file__).parents[2] / "docs/data.md").read_text()
    file, stock = write_parquet(tmp_path / "hub.parquet", paper()), datasets.load_dataset
    asked = []

    def load_dataset(hub, *args, **kwargs):
        asked.append(hub)
        return stock("parquet", data_files=str(file), split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0 and asked == ["xinyu1205/mme_realworld_train_21690"], done.output
    monkeypatch.setattr(datasets, "load_dataset", stock)
    rows = load_questions(yaml.safe_load(RECIPES[name])["dataset_name"])
    assert [(row["question"], row["choices"], row["answer"]) for row in rows] == [("Which?", ["red", "blue"], "B")] * 2
    assert all(open_image(row["image"]).size == SIZE for row in rows)


def test_there_are_recipes_with_data_to_make():
    assert len(RECIPES) >= 15

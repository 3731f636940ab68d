"""What `mgpo data check` reports, and that it exits with an error when a row would be refused."""

import json

import numpy as np
import pytest
from miniatures import write_jsonl, write_parquet
from PIL import Image
from typer.testing import CliRunner

from mgpo.cli import app
from mgpo.config import DataArguments, MGPOConfig
from mgpo.data.check import check, draw_sizes, shared_images
from mgpo.data.loading import load_rows, read_all
from mgpo.data.repeats import Repeats
from mgpo.training.run import _questions


@pytest.fixture
def folder(tmp_path):
    """A photograph, the same saved again, its copy, another one, and a flat one; and a truncated one."""
    rng = np.random.default_rng(0)

    def photo(seed_rows):
        small = Image.fromarray(seed_rows)
        return small.resize((640, 480), Image.Resampling.BICUBIC)

    first = photo(rng.integers(0, 256, (8, 10, 3), np.uint8))
    first.save(tmp_path / "a.jpg", quality=95)
    first.save(tmp_path / "again.jpg", quality=60)
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    photo(rng.integers(0, 256, (8, 10, 3), np.uint8)).save(tmp_path / "b.jpg")
    Image.new("RGB", (640, 480)).save(tmp_path / "flat.png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    return tmp_path


def rows(folder, *names):
    lines = [{"image": name, "question": "Which?", "choices": ["x", "y"], "answer": "B"} for name in names]
    return str(write_jsonl(folder / f"{'_'.join(names)}.jsonl", lines))


def test_counts_and_bad_rows(folder):
    found = check(read_all(rows(folder, "a.jpg", "copy.jpg", "again.jpg", "b.jpg", "cut.jpg", "gone.jpg")))
    assert found.rows == 4 and found.answers == {"B": 4} and found.sizes == [(640, 480)] * 4
    assert len(found.files) == 3
    assert [bad.where.rsplit(" ", 1)[1] for bad in found.bad] == ["5", "6"]
    assert "could not be read" in found.bad[0].reason and "does not exist" in found.bad[1].reason


def test_images_in_both_sets_are_found_even_if_saved_again(folder):
    train = check(read_all(rows(folder, "a.jpg", "b.jpg", "flat.png")))
    again = check(read_all(rows(folder, "again.jpg")))
    copy = check(read_all(rows(folder, "copy.jpg")))
    ((here, there, how),) = shared_images(train, again)
    assert "a.jpg_b.jpg_flat.png.jsonl row 1" in here and "again" in there and how == "they look the same"
    assert [how for _, _, how in shared_images(train, copy)] == ["they are the same file"]
    assert shared_images(again, check(read_all(rows(folder, "flat.png", "b.jpg")))) == []


def test_the_command_line(folder):
    run = CliRunner().invoke
    figure = folder / "sizes.png"
    good = run(app, ["data", "check", rows(folder, "a.jpg", "b.jpg"), "--figure", str(figure)])
    assert good.exit_code == 0 and Image.open(figure).width > 500
    bad = run(app, ["data", "check", rows(folder, "a.jpg", "cut.jpg"), "--figure", str(figure)])
    assert bad.exit_code == 1 and "row 2" in bad.output
    out = folder / "out"
    made = run(app, ["data", "convert", rows(folder, "a.jpg", "b.jpg"), str(out), "--to", "jsonl"])
    assert made.exit_code == 0 and json.loads((out / "train.jsonl").read_text().splitlines()[0])["image"] == "../a.jpg"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_check_and_train_note_the_same_repeats_and_refuse_none(folder, kind, capsys):
    """Regression: both passed rows whose choices are equal, and ids that several rows have."""
    asked = {"image": "b.jpg", "question": "Which?", "choices": ["red", "blue", "Red "], "answer": "A", "id": "one"}
    lines = [asked, asked | {"choices": ["x", "y"]}, asked | {"id": "two", "choices": ["x", "y"]}]
    file = folder / f"twice.{kind}"
    if kind == "jsonl":
        write_jsonl(file, lines)
    else:
        write_parquet(file, lines)
    equal = f"note: 1 row has the same text in two choices, of which only the gold letter counts as right: {file} row 1: A and C "
    ids = f"note: 1 id is used by several rows, which logs then cannot tell apart: 'one' in 2 rows ({file} row 1, {file} row 2)"
    said = CliRunner().invoke(app, ["data", "check", str(file), "--figure", str(folder / "sizes.png")])
    assert said.exit_code == 0 and equal in said.output and ids in said.output
    data = DataArguments(dataset_name=str(file))
    config = MGPOConfig(str(folder / "run"), use_cpu=True)
    assert len(_questions(data, config, {}, "train", 0)) == 3
    trained = capsys.readouterr().out
    assert equal in trained and ids in trained


def test_rows_without_repeats_are_not_noted(folder):
    assert check(read_all(rows(folder, "a.jpg", "b.jpg"))).notes() == []
    assert load_rows(rows(folder, "a.jpg", "b.jpg")).notes == []


def test_many_repeats_are_counted_and_the_first_are_named():
    seen = Repeats()
    for number in range(10):
        seen.see({"id": str(number // 2), "choices": ["a", "b", "b"]}, f"row {number}")
    equal, ids = seen.notes()
    assert equal.startswith("note: 10 rows have") and equal.endswith("row 2: B and C are both 'b'; and 7 more")
    assert ids.startswith("note: 5 ids are used") and ids.endswith("'2' in 2 rows (row 4, row 5); and 2 more")


@pytest.mark.parametrize(
    ("kind", "content"), [("jsonl", ""), ("jsonl", "\n\n"), ("json", "[]"), ("json", ""), ("tsv", ""), ("parquet", "")]
)
def test_an_empty_file_is_said_to_be_empty(folder, kind, content):
    file = folder / f"none.{kind}"
    file.write_text(content)
    said = CliRunner().invoke(app, ["data", "check", str(file)])
    assert said.exit_code == 1 and "is empty: it has no rows" in said.output
    with pytest.raises(ValueError, match="is empty: it has no rows"):
        load_rows(str(file))


def test_every_image_of_a_row_is_compared(folder):
    """Regression: once an image of a row was found in the other set, the row's other images were skipped."""
    pair = [{"images": ["a.jpg", "b.jpg"], "question": "Which?", "answer": "x"}]
    train = check(read_all(str(write_jsonl(folder / "pair.jsonl", pair))))
    Image.open(folder / "b.jpg").save(folder / "b_again.jpg", quality=60)
    test = check(read_all(rows(folder, "copy.jpg", "b_again.jpg")))
    found = [
        (here.rsplit("row ", 1)[1], there.rsplit("row ", 1)[1], how) for here, there, how in shared_images(train, test)
    ]
    assert found == [("1, image 1", "1", "they are the same file"), ("1, image 2", "2", "they look the same")]


def test_gold_boxes_beyond_their_image_are_noted_and_not_refused(folder, capsys):
    Image.new("RGB", (300, 900)).save(folder / "tall.png")
    asked = {"question": "Which?", "answer": "x"}
    lines = [
        asked | {"image": "a.jpg", "gold_boxes": [[0, 0, 641, 480]]},  # a rounded pixel
        asked | {"image": "a.jpg", "gold_boxes": [[10, 10, 20, 20], [600, 10, 700, 20]]},
        asked | {"images": ["a.jpg", "tall.png"], "gold_image": 2, "gold_boxes": [[10, 500, 200, 800]]},
        asked | {"images": ["a.jpg", "tall.png"], "gold_image": 1, "gold_boxes": [[10, 500, 200, 800]]},
        asked | {"image": "a.jpg", "gold_boxes": [[-5, 0, 64, 48]]},
    ]  # fmt: skip
    name = str(write_jsonl(folder / "beyond.jsonl", lines))
    said = CliRunner().invoke(app, ["data", "check", name, "--figure", str(folder / "sizes.png")])
    assert said.exit_code == 0
    note = f"""note: 3 rows have a gold box that reaches beyond its image. Such rows are used, since gold boxes are for metrics only; a box \
whose centre is outside can never be hit: {name} row 2: [600, 10, 700, 20] reaches 60 px beyond the right edge of the image, which has 640 x 480 \
pixels; {name} row 4: [10, 500, 200, 800] lies wholly outside, up to 320 px beyond the lower edge of image 1, which has 640 x 480 pixels; {name} row 5: \
[-5, 0, 64, 48] reaches 5 px beyond the left edge of the image, which has 640 x 480 pixels"""
    assert note in said.output and "row 3:" not in said.output and "row 1:" not in said.output
    listing = folder / "findings.jsonl"
    said = CliRunner().invoke(
        app, ["data", "check", name, "--figure", str(folder / "sizes.png"), "--list", str(listing)]
    )
    listed = [json.loads(line) for line in listing.read_text().splitlines()]
    assert said.exit_code == 0 and [row["where"] for row in listed] == [f"{name} row {number}" for number in (2, 4, 5)]
    assert listed[0]["used"] and listed[0]["why"].startswith(
        "its gold box [600, 10, 700, 20] reaches 60 px beyond the right"
    )
    data = DataArguments(dataset_name=name)
    config = MGPOConfig(str(folder / "run"), use_cpu=True, max_images=2)
    capsys.readouterr()
    assert len(_questions(data, config, {}, "train", 0)) == 5
    assert note in capsys.readouterr().out  # training says it in the same words


def test_the_histogram_counts_images(folder, monkeypatch):
    from matplotlib.axes import Axes

    labels, stock = [], Axes.set
    monkeypatch.setattr(Axes, "set", lambda axes, **given: labels.append(given["ylabel"]) or stock(axes, **given))
    draw_sizes(check(read_all(rows(folder, "a.jpg"))), folder / "sizes.png")
    assert labels[0] == "images"


def test_a_recipe_s_limits_count_if_it_is_named(folder):
    """Its data and split are checked, with what only a policy refuses: long texts, and more images than it is shown."""
    asked = {"question": "Which?", "choices": ["x", "y"], "answer": "B"}
    lines = [
        asked | {"image": "a.jpg"}, asked | {"image": "a.jpg", "question": "why " * 700},
        {"images": ["a.jpg", "b.jpg"], "question": "Which?", "answer": "x"}, asked | {"image": "cut.jpg"},
    ]  # fmt: skip
    name = str(write_jsonl(folder / "data/val.jsonl", [line | {"question": line["question"]} for line in lines]))
    for image in ("a.jpg", "b.jpg", "cut.jpg"):
        (folder / "data" / image).write_bytes((folder / image).read_bytes())
    recipe = folder / "mine.yaml"
    recipe.write_text(
        f"model_name_or_path: mgpo-tiny\noutput_dir: {folder / 'run'}\ndataset_name: {folder / 'data'}\ndataset_split: val\n"
    )
    run, figure, listing = CliRunner().invoke, str(folder / "sizes.png"), folder / "bad.jsonl"
    alone = run(app, ["data", "check", name, "--figure", figure])
    assert alone.exit_code == 1 and "4, of which 1 cannot be used" in alone.output
    assert "--config RECIPE checks the rows against them too" in alone.output
    with_recipe = run(app, ["data", "check", "--config", str(recipe), "--figure", figure, "--list", str(listing)])
    assert with_recipe.exit_code == 1, with_recipe.output
    listed = [json.loads(line) for line in listing.read_text().splitlines()]
    assert [row["where"].rsplit(" ", 1)[1] for row in listed] == ["2", "3", "4"]
    assert not any(row["used"] for row in listed)
    assert "max_reply_tokens=640" in listed[0]["why"] and "max_images=1" in listed[1]["why"]
    again = run(app, ["data", "check", "--config", str(recipe), "--figure", figure, "--list", str(listing)])
    assert "exists already" in str(again.exception)
    assert "needs data" in str(run(app, ["data", "check"]).exception)

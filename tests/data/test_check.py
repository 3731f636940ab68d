"""What `mgpo data check` reports, and that it exits with an error when a row would be refused."""

import json

import numpy as np
import pytest
from miniatures import write_jsonl
from PIL import Image
from typer.testing import CliRunner

from mgpo.cli import app
from mgpo.data.check import check, shared_images
from mgpo.data.sources import read_questions


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
    found = check(read_questions(rows(folder, "a.jpg", "copy.jpg", "again.jpg", "b.jpg", "cut.jpg", "gone.jpg")))
    assert found.rows == 4 and found.answers == {"B": 4} and found.sizes == [(640, 480)] * 4
    assert len(found.files) == 3
    assert [bad.where.rsplit(" ", 1)[1] for bad in found.bad] == ["5", "6"]
    assert "could not be read" in found.bad[0].reason and "does not exist" in found.bad[1].reason


def test_images_in_both_sets_are_found_even_if_saved_again(folder):
    train = check(read_questions(rows(folder, "a.jpg", "b.jpg", "flat.png")))
    again = check(read_questions(rows(folder, "again.jpg")))
    copy = check(read_questions(rows(folder, "copy.jpg")))
    ((here, there, how),) = shared_images(train, again)
    assert "a.jpg_b.jpg_flat.png.jsonl row 1" in here and "again" in there and how == "they look the same"
    assert [how for _, _, how in shared_images(train, copy)] == ["they are the same file"]
    assert shared_images(again, check(read_questions(rows(folder, "flat.png", "b.jpg")))) == []


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

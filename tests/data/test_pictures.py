"""What `mgpo data convert` writes of pictures: their own bytes where other programs see the same in them, else the same pixels."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hostile_rows import GOOD, write_images
from miniatures import embedded, write_jsonl
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from mgpo.cli import app
from mgpo.cli.data import with_bar
from mgpo.data.convert import PART, convert
from mgpo.data.loading import usable
from mgpo.data.pictures import Written
from mgpo.data.sources import how_many_rows, read_questions
from mgpo.images.imaging import open_image

ASKED = {"question": "Which?", "choices": ["red", "blue"], "answer": "B", "category": "c"}
ANEW = {
    "sixteen.png": "of more than 8 bits", "palette_clear.png": "transparent", "alpha.png": "transparent",
    "grey_alpha.png": "transparent", "moving.gif": "a GIF", "moving.png": "animated", "moving.webp": "animated",
    "pages.tiff": "a TIFF", "sixteen.tiff": "a TIFF", "float.tiff": "a TIFF", "rotated.jpg": "turned by EXIF", "plain.bmp": "a BMP",
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of every kind that can be used, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    kinds = write_images(folder)
    return {name: folder / name for name, (value, fate) in kinds.items() if fate == GOOD and value == name}


def as_others_see(data):
    """What any program sees that opens a file with Pillow and asks for RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["vstar", "trl", "verl"])
def test_a_copy_is_the_same_bytes_and_every_program_sees_the_pixels_that_mgpo_sees(pictures, tmp_path, form):
    rows = [ASKED | {"image": str(file), "id": name} for name, file in pictures.items()]
    written = Written()
    file, count = convert(iter(rows), form, tmp_path / "out", "train", written=written)
    assert count == len(pictures) > 20
    read = list(usable(read_questions(str(tmp_path / "out"), "train"), form))
    for (name, source), row in zip(pictures.items(), read, strict=True):
        data = Path(row["image"]).read_bytes() if form == "vstar" else row["image"]["bytes"]
        assert (data == source.read_bytes()) == (name not in ANEW), name
        assert np.array_equal(as_others_see(data), open_image(source)), name
    assert written.copied == len(pictures) - len(ANEW) and dict(written.anew) == {
        why: list(ANEW.values()).count(why) for why in ANEW.values()
    }
    copied, anew = written.notes()
    assert copied == f"{written.copied} pictures were copied byte for byte"
    assert anew.startswith("12 pictures were written anew as PNG, which loses nothing: ") and "3 a TIFF" in anew


def test_jpeg_is_only_written_on_request_and_is_said_to_lose_detail(pictures, tmp_path):
    rows = [ASKED | {"image": str(pictures[name])} for name in ("rotated.jpg", "plain.png")]
    rows.append(ASKED | {"image": open_image(pictures["plain.png"])})
    written = Written(95)
    convert(iter(rows), "vstar", tmp_path / "out", "train", written=written)
    turned, plain, drawn = sorted(path for path in (tmp_path / "out/c").iterdir() if path.suffix != ".json")
    assert plain.read_bytes() == pictures["plain.png"].read_bytes()  # a lossless file stays one
    assert (turned.suffix, drawn.suffix) == (".jpg", ".jpg")
    assert np.array_equal(as_others_see(turned.read_bytes()).shape, (90, 60, 3))
    assert written.notes()[1] == (
        "2 pictures were written anew as JPEG of quality 95, which loses detail: 1 turned by EXIF, 1 drawn in memory"
    )
    with pytest.raises(ValueError, match="--jpeg 20: the quality of a JPEG is 50 to 100"):
        Written(20)


@pytest.mark.parametrize("form", ["vstar", "trl", "verl"])
def test_a_file_that_is_cut_off_is_not_copied_on(pictures, tmp_path, form):
    big = Image.fromarray(np.random.default_rng(1).integers(0, 256, (400, 600, 3), np.uint8))
    big.save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    lines = [ASKED | {"image": str(pictures["plain.png"])}, ASKED | {"image": "cut.jpg"}]
    source = str(write_jsonl(tmp_path / "in.jsonl", lines))
    with pytest.raises(ValueError, match=r"in\.jsonl row 2: .*cut\.jpg.* could not be read"):
        convert(usable(read_questions(source), source), form, tmp_path / "out", "train")
    assert not list(tmp_path.glob("out/*"))


def test_equal_embedded_pictures_become_one_file(tmp_path):
    """HR-Bench asks about each picture four times."""
    rows = [ASKED | {"image": embedded(shade)} for shade in (3, 3, 9, 3)]
    convert(iter(rows), "jsonl", tmp_path / "out", "train")
    assert len(list((tmp_path / "out/images").iterdir())) == 2
    convert(iter(rows[:2]), "jsonl", tmp_path / "out", "test")  # another split beside it, which changes no file
    assert len(list((tmp_path / "out/images").iterdir())) == 2
    read = [row for split in ("train", "test") for row in usable(read_questions(str(tmp_path / "out"), split), "out")]
    shown = [Path(row["image"]).read_bytes() for row in read]
    assert shown == [row["image"]["bytes"] for row in [*rows, *rows[:2]]]


@pytest.mark.parametrize(
    ("form", "file"), [("jsonl", "train.jsonl"), ("trl", "train.parquet"), ("vstar", "test_questions.jsonl")]
)
def test_nothing_is_overwritten_unasked(pictures, tmp_path, form, file):
    source = str(write_jsonl(tmp_path / "in.jsonl", [ASKED | {"image": str(pictures["plain.png"])}] * 3))
    out = tmp_path / "out"
    command = ["data", "convert", source, str(out), "--to", form]
    assert CliRunner().invoke(app, command).exit_code == 0
    before = files_of(out)
    write_jsonl(tmp_path / "in.jsonl", [ASKED | {"image": str(pictures["plain.jpg"])}])
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, FileExistsError) and "--overwrite" in str(refused.exception)
    assert str(out) in str(refused.exception) and files_of(out) == before
    broken = write_jsonl(tmp_path / "broken.jsonl", [ASKED | {"image": "gone.jpg"}])
    failed = CliRunner().invoke(app, ["data", "convert", str(broken), str(out), "--to", form, "--overwrite"])
    assert "gone.jpg does not exist" in str(failed.exception) and files_of(out) == before
    replaced = CliRunner().invoke(app, [*command, "--overwrite"])
    assert replaced.exit_code == 0 and "1 questions" in replaced.output, replaced.output
    (row,) = usable(read_questions(str(out)), form)
    assert (out / file).is_file() and not list(out.glob(f"{PART}*"))
    if form == "vstar":
        assert set(files_of(out)) == {file, "c/sa_00001.jpg", "c/sa_00001.json"}


def test_a_folder_with_other_files_is_never_replaced(pictures, tmp_path):
    rows = [ASKED | {"image": str(pictures["plain.png"])}]
    (tmp_path / "mine/c").mkdir(parents=True)
    (tmp_path / "mine/c/notes.txt").write_text("months of work")
    for overwrite, why in (
        (False, "holds files already"),
        (True, r"did not write \(c/notes.txt\), so it is not replaced"),
    ):
        with pytest.raises(FileExistsError, match=why):
            convert(iter(rows), "vstar", tmp_path / "mine", "train", overwrite)
    assert files_of(tmp_path / "mine") == {"c/notes.txt": b"months of work"}
    for name in ("mine.jsonl", "mine/c/notes.txt"):
        with pytest.raises(FileExistsError, match="is the name of a file. Name a folder"):
            convert(iter(rows), "jsonl", tmp_path / name, "train")


def test_a_conversion_into_its_own_source_reads_all_before_it_replaces(pictures, tmp_path):
    """Rows in reverse: each picture would be written over one that a later row still shows."""
    names = ("plain.png", "plain.jpg", "grey.jpg")
    convert(iter([ASKED | {"image": str(pictures[name])} for name in names]), "vstar", tmp_path / "v", "test")
    rows = list(usable(read_questions(str(tmp_path / "v"), "test"), "v"))
    convert(iter(rows[::-1]), "vstar", tmp_path / "v", "test", overwrite=True)
    read = [Path(row["image"]).read_bytes() for row in usable(read_questions(str(tmp_path / "v"), "test"), "v")]
    assert read == [pictures[name].read_bytes() for name in names[::-1]]


def test_the_bar_counts_rows_in_a_terminal_only(pictures, tmp_path):
    lines = [ASKED | {"image": str(pictures["plain.png"])}] * 7
    source = str(write_jsonl(tmp_path / "in.jsonl", lines))
    assert how_many_rows(source, "train") == 7 and how_many_rows("owner/name", "train") is None
    convert(usable(read_questions(source), source), "trl", tmp_path / "out", "train")
    assert how_many_rows(str(tmp_path / "out"), "train") == 7
    for terminal in (True, False):
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=terminal, width=100)
        assert list(with_bar(iter(range(7)), 7, console)) == list(range(7))
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
        assert ("7/7" in plain) == terminal and (terminal or not plain)


def test_vstar_keeps_boxes_in_the_frame_of_the_picture_that_it_writes(pictures, tmp_path):
    """A picture that EXIF turns is written upright, as its boxes are."""
    rows = [ASKED | {"image": str(pictures["rotated.jpg"]), "gold_boxes": [[10, 60, 50, 88]]}]
    convert(iter(rows), "vstar", tmp_path / "out", "train")
    beside = json.loads((tmp_path / "out/c/sa_00001.json").read_text())
    width, height = Image.open(tmp_path / "out/c/sa_00001.png").size
    assert (width, height) == (60, 90) and beside["bbox"] == [[10, 60, 40, 28]]

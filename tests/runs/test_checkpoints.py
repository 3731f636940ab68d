"""A checkpoint is complete or it is told why not; a run goes on from the newest complete one."""

import shutil

import pytest

from mgpo.runs.checkpoints import (
    cannot_write,
    flaw,
    is_about_the_disk,
    last_complete,
    move_into_place,
    replace_files,
    seal,
)


def checkpoint(run, step, folder=None):
    place = folder or run / f"checkpoint-{step}"
    (place / "deep").mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"w" * 100)
    (place / "deep" / "state.json").write_text("{}")
    seal(place)
    return place


def test_a_sealed_checkpoint_has_no_flaw(tmp_path):
    assert flaw(checkpoint(tmp_path, 3)) is None


@pytest.mark.parametrize(
    "harm, told",
    [
        (
            lambda place: (place / "model.safetensors").write_bytes(b"w" * 99),
            "model.safetensors has 99 bytes instead of 100",
        ),
        (lambda place: (place / "deep" / "state.json").unlink(), "deep/state.json is missing"),
        (lambda place: (place / "manifest.json").unlink(), "has no manifest.json, which is written last"),
        (lambda place: (place / "manifest.json").write_text('{"files'), "manifest.json cannot be read"),
        (lambda place: (place / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    ],
)
def test_each_flaw_is_told_and_the_one_before_is_taken(harm, told, tmp_path):
    good, bad = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    harm(bad)
    assert told in flaw(bad)
    last, skipped = last_complete(tmp_path)
    assert last == good and len(skipped) == 1 and str(bad) in skipped[0]


def test_steps_are_numbers_not_words(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-100", [])


def test_nothing_there_is_nothing_to_go_on_from(tmp_path):
    assert last_complete(tmp_path / "missing") == (None, []) and last_complete(tmp_path) == (None, [])


def test_one_that_was_being_written_is_told_of(tmp_path):
    checkpoint(tmp_path, 4, tmp_path / ".saving" / "checkpoint-4")
    last, skipped = last_complete(tmp_path)
    assert last is None and "was being written when the run ended" in skipped[0]


def test_a_new_one_takes_the_place_of_an_old_one(tmp_path):
    old = checkpoint(tmp_path, 4)
    (old / "model.safetensors").unlink()
    move_into_place(checkpoint(tmp_path, 4, tmp_path / ".saving" / "checkpoint-4"), old)
    assert flaw(old) is None and not (tmp_path / ".saving").exists()


def test_replacing_files_leaves_others_alone(tmp_path):
    aside, folder = tmp_path / "run" / ".saving" / "model", tmp_path / "run"
    aside.mkdir(parents=True)
    for place, text in ((aside, "new"), (folder, "old")):
        (place / "config.json").write_text(text)
    (folder / "metrics.jsonl").write_text("kept")
    replace_files(aside, folder)
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "metrics.jsonl"]
    assert (folder / "config.json").read_text() == "new"


def test_the_error_names_what_is_left(tmp_path):
    good = checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 8, tmp_path / ".saving" / "checkpoint-8")
    told = str(cannot_write(tmp_path, 8, OSError(28, "No space left on device")))
    assert (
        "step 8" in told
        and "No space left on device" in told
        and f"{good} is complete" in told
        and "GB are free" in told
    )
    assert not (tmp_path / ".saving").exists()
    shutil.rmtree(good)
    assert "There is none yet: the run begins again" in str(cannot_write(tmp_path, 8, OSError("x")))


def test_errors_of_the_disk_are_told_from_others():
    assert is_about_the_disk(PermissionError("no")) and is_about_the_disk(Exception("No space left (os error 28)"))
    assert not is_about_the_disk(TypeError("a list"))

"""Results on disk: what a kill leaves is cut to whole batches; other settings are refused."""

import json
from contextlib import ExitStack

import pytest

from mgpo.evaluation.results import add_summary, append, claim, finished_batches, line_of, read_records

RECORDS = [{"id": str(n), "text": "ä\n{"} for n in range(7)]


def test_whole_batches_survive_a_kill_at_any_byte(tmp_path):
    whole = "".join(map(line_of, RECORDS)).encode()
    for cut in range(0, len(whole), 5):
        file = tmp_path / "a.jsonl"
        file.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        kept = finished_batches(file, 3, 7)
        assert kept == RECORDS[: complete // 3 * 3] and read_records(file) == kept
        append(file, RECORDS[len(kept) :])
        assert file.read_bytes() == whole
    assert finished_batches(file, 3, 7) == RECORDS, "a last batch that is short is whole too"
    assert finished_batches(tmp_path / "none.jsonl", 3, 7) == []


def claimed(*args, **kwargs):
    """As by a process that has ended: its lock is released."""
    with ExitStack() as held:
        return claim(*args, held, **kwargs)


def settings_of(**changed):
    return {"model": "a", "pair": (1, 2), "data": {"needle": "needle"}} | changed


def test_a_folder_belongs_to_its_settings(tmp_path):
    claimed(tmp_path, settings_of(model="c", data={"vstar": "elsewhere"}))
    claimed(tmp_path, settings_of())  # the start before has answered nothing
    append(tmp_path / "needle.jsonl", RECORDS[:1])
    assert claimed(tmp_path, settings_of()) == (tmp_path, "")
    with pytest.raises(ValueError, match="other settings .model: 'a' -> 'b'"):
        claimed(tmp_path, settings_of(model="b"))
    assert "elsewhere" not in (tmp_path / "settings.json").read_text()


def test_tasks_share_a_folder_and_the_same_task_from_elsewhere_does_not(tmp_path):
    claimed(tmp_path, settings_of())
    append(tmp_path / "needle.jsonl", RECORDS[:1])
    assert claimed(tmp_path, settings_of(data={"vstar": "here"})) == (tmp_path, "")
    append(tmp_path / "vstar.jsonl", RECORDS[:1])
    assert claimed(tmp_path, settings_of(data={"needle": "needle", "vstar": "here"})) == (tmp_path, "")
    with pytest.raises(ValueError, match=r"other settings .data: {'vstar': 'here'} -> {'vstar': 'there'}"):
        claimed(tmp_path, settings_of(data={"vstar": "there"}))


def test_other_settings_can_take_a_numbered_folder_which_they_find_again(tmp_path):
    folders = []
    for model in "abac":
        place, note = claimed(tmp_path / "it", settings_of(model=model), beside=True)
        append(place / "needle.jsonl", RECORDS[:1])
        folders.append((place.name, bool(note)))
    assert folders == [("it", False), ("it-2", True), ("it", False), ("it-3", True)]
    assert claimed(tmp_path / "it", settings_of(model="b"), beside=True) == (tmp_path / "it-2", "")
    weights = settings_of(weights=[["model.safetensors", 9, 1]])
    _, note = claimed(tmp_path / "it", weights, beside=True)
    assert note.endswith(f"other settings (the model's weights), so these go into {tmp_path / 'it-4'}")


def test_another_address_is_another_model_unless_it_has_moved(tmp_path):
    claimed(tmp_path, settings_of(endpoint="http://a/v1"))
    append(tmp_path / "needle.jsonl", RECORDS[:1])
    with pytest.raises(ValueError, match="http://b/v1'.*If the same model is served there now, add --endpoint-moved"):
        claimed(tmp_path, settings_of(endpoint="http://b/v1"))
    assert claimed(tmp_path, settings_of(endpoint="http://b/v1"), moved=True) == (tmp_path, "")
    assert json.loads((tmp_path / "settings.json").read_text())["endpoint"] == "http://b/v1"
    with pytest.raises(ValueError, match="endpoint: 'http://b/v1' -> None"):
        claimed(tmp_path, settings_of(endpoint=None), moved=True)


def test_a_folder_that_is_being_written_to_is_neither_taken_nor_changed(tmp_path):
    with ExitStack() as held:
        assert claim(tmp_path / "it", settings_of(), held) == (tmp_path / "it", "")
        before = (tmp_path / "it/settings.json").read_text()
        with pytest.raises(ValueError, match="Another process writes to"):
            claimed(tmp_path / "it", settings_of(model="b"))
        place, note = claimed(tmp_path / "it", settings_of(model="b"), beside=True)
        assert place == tmp_path / "it-2" and "is being written to by another process" in note
        assert (tmp_path / "it/settings.json").read_text() == before


def test_settings_that_cannot_be_read_are_named(tmp_path):
    append(tmp_path / "needle.jsonl", RECORDS[:1])
    for text in ("{", '"text"', "[1]"):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(ValueError, match="settings.json cannot be read"):
            claimed(tmp_path, settings_of())


def test_a_summary_holds_one_row_per_task(tmp_path):
    append(tmp_path / "x.jsonl", RECORDS)
    for row in ({"task": "a", "n": 1}, {"task": "b", "n": 2}, {"task": "a", "n": 3}):
        assert add_summary(tmp_path, row, "x.jsonl")
    assert json.loads((tmp_path / "summary.json").read_text()) == [{"task": "b", "n": 2}, {"task": "a", "n": 3}]


def test_a_summary_of_fewer_questions_replaces_none_of_more_while_their_results_are_there(tmp_path):
    append(tmp_path / "a.jsonl", RECORDS)
    assert add_summary(tmp_path, {"task": "a", "n": 7}, "a.jsonl")
    assert not add_summary(tmp_path, {"task": "a", "n": 3}, "a.jsonl")
    assert json.loads((tmp_path / "summary.json").read_text()) == [{"task": "a", "n": 7}]
    (tmp_path / "a.jsonl").unlink()
    append(tmp_path / "a.jsonl", RECORDS[:3])
    assert add_summary(tmp_path, {"task": "a", "n": 3}, "a.jsonl")


def test_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(ValueError, match="line 2 is not valid JSON.*Run the evaluation again"):
        read_records(tmp_path / "a.jsonl")

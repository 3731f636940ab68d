"""Results on disk: what a kill leaves is cut to whole batches; other settings are refused."""

import json

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


def settings_of(**changed):
    return {"model": "a", "pair": (1, 2), "data": {"needle": "needle"}} | changed


def test_a_folder_belongs_to_its_settings(tmp_path):
    claim(tmp_path, settings_of(model="c", data={"vstar": "elsewhere"}))
    claim(tmp_path, settings_of())  # the start before has answered nothing
    append(tmp_path / "needle.jsonl", RECORDS[:1])
    assert claim(tmp_path, settings_of()) == (tmp_path, "")
    with pytest.raises(ValueError, match="other settings .model: 'a' -> 'b'"):
        claim(tmp_path, settings_of(model="b"))
    assert "elsewhere" not in (tmp_path / "settings.json").read_text()


def test_tasks_share_a_folder_and_the_same_task_from_elsewhere_does_not(tmp_path):
    claim(tmp_path, settings_of())
    append(tmp_path / "needle.jsonl", RECORDS[:1])
    assert claim(tmp_path, settings_of(data={"vstar": "here"})) == (tmp_path, "")
    append(tmp_path / "vstar.jsonl", RECORDS[:1])
    assert claim(tmp_path, settings_of(data={"needle": "needle", "vstar": "here"})) == (tmp_path, "")
    with pytest.raises(ValueError, match=r"other settings .data: {'vstar': 'here'} -> {'vstar': 'there'}"):
        claim(tmp_path, settings_of(data={"vstar": "there"}))


def test_other_settings_can_take_a_numbered_folder_which_they_find_again(tmp_path):
    folders = []
    for model in "abac":
        place, note = claim(tmp_path / "it", settings_of(model=model), beside=True)
        append(place / "needle.jsonl", RECORDS[:1])
        folders.append((place.name, bool(note)))
    assert folders == [("it", False), ("it-2", True), ("it", False), ("it-3", True)]
    assert claim(tmp_path / "it", settings_of(model="b"), beside=True) == (tmp_path / "it-2", "")
    weights = settings_of(weights=[["model.safetensors", 9, 1]])
    _, note = claim(tmp_path / "it", weights, beside=True)
    assert note.endswith(f"other settings (the model's weights), so these go into {tmp_path / 'it-4'}")


def test_a_server_that_has_moved_goes_on_and_another_way_of_running_does_not(tmp_path):
    claim(tmp_path, settings_of(endpoint="http://a/v1"))
    append(tmp_path / "needle.jsonl", RECORDS[:1])
    place, note = claim(tmp_path, settings_of(endpoint="http://b/v1"))
    assert place == tmp_path and "from http://a/v1, and goes on with http://b/v1" in note
    assert claim(tmp_path, settings_of(endpoint="http://b/v1")) == (tmp_path, "")
    with pytest.raises(ValueError, match="endpoint: 'http://b/v1' -> None"):
        claim(tmp_path, settings_of(endpoint=None))


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

"""Results on disk: what a kill leaves is cut to whole batches; other settings are refused."""

import json

import pytest

from mgpo.evaluation.results import add_summary, append, begin, finished_batches, line_of, read_records

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


def test_a_folder_belongs_to_its_settings(tmp_path):
    begin(tmp_path, {"model": "c"})
    begin(tmp_path, {"model": "a", "pair": (1, 2)})  # the start before has answered nothing
    append(tmp_path / "needle.jsonl", RECORDS[:1])
    begin(tmp_path, {"model": "a", "pair": (1, 2)})
    with pytest.raises(ValueError, match="other settings .model: 'a' -> 'b'"):
        begin(tmp_path, {"model": "b", "pair": (1, 2)})


def test_a_summary_holds_one_row_per_task(tmp_path):
    for row in ({"task": "a", "n": 1}, {"task": "b", "n": 2}, {"task": "a", "n": 3}):
        add_summary(tmp_path, row)
    assert json.loads((tmp_path / "summary.json").read_text()) == [{"task": "b", "n": 2}, {"task": "a", "n": 3}]


def test_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(ValueError, match="line 2 is not valid JSON.*Run the evaluation again"):
        read_records(tmp_path / "a.jsonl")

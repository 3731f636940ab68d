"""Batches on disk: answered in any order, by anybody, each is in the results file once and in its place."""

import random

import pytest

from mgpo.evaluation import processes
from mgpo.evaluation.batches import Batches, add_part, part_of
from mgpo.evaluation.processes import Processes
from mgpo.evaluation.results import append, read_records

RECORDS = [{"id": str(n), "text": "ä\n{"} for n in range(17)]
SIZE = 3


def batch(number, total=17):
    return RECORDS[number * SIZE : min(number * SIZE + SIZE, total)]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_and_any_kill_gives_the_same_file(tmp_path, seed):
    rng, file = random.Random(seed), tmp_path / "needle.jsonl"
    for _ in range(20):
        done = Batches(file, SIZE, 17)
        done.join()
        missing = done.missing()
        answered = [record for part in (done.records, *done.later().values()) for record in part]
        assert len(answered) + sum(len(batch(number)) for number in missing) == 17
        if not missing:
            break
        for number in rng.sample(missing, rng.randint(1, len(missing))):
            add_part(done.folder, number, batch(number))
        if rng.random() < 0.5:  # else it died before it joined them
            done.join()
        if rng.random() < 0.3 and file.is_file():  # it died while it wrote a line
            file.write_bytes(file.read_bytes()[: -rng.randint(1, 40)])
    assert read_records(file) == RECORDS and not done.folder.exists()


def test_a_batch_that_was_moved_but_not_deleted_is_not_there_twice(tmp_path):
    file = tmp_path / "needle.jsonl"
    append(file, batch(0))
    add_part(tmp_path / "needle.parts", 0, batch(0))
    done = Batches(file, SIZE, 17)
    done.join()
    assert read_records(file) == batch(0) and done.missing() == [1, 2, 3, 4, 5]


def test_a_short_last_batch_of_a_shorter_start_is_asked_again_and_a_longer_ones_work_is_kept(tmp_path):
    file = tmp_path / "needle.jsonl"
    add_part(tmp_path / "needle.parts", 1, batch(1, total=4))
    add_part(tmp_path / "needle.parts", 4, batch(4))
    assert Batches(file, SIZE, 17).missing() == [0, 1, 2, 3, 5]
    append(file, batch(0))
    short = Batches(file, SIZE, 3)
    short.join()
    assert short.records == batch(0) and not short.missing() and part_of(short.folder, 4).is_file()


def test_the_main_process_waits_for_a_part_that_a_network_file_system_shows_late(tmp_path):
    done, asked = Batches(tmp_path / "needle.jsonl", SIZE, 5), []

    def appears(file):
        asked.append(file.name)
        add_part(done.folder, int(file.stem), batch(int(file.stem), total=5))
        return True

    done.join(appears)
    assert done.records == RECORDS[:5] and asked == ["0.jsonl", "1.jsonl"]


def test_machines_without_a_common_folder_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SEEN_WITHIN", 0.0)
    with pytest.raises(ValueError, match="does not see .*settings.json.*choose a folder on a shared file system"):
        Processes(1, 2).see(tmp_path / "settings.json")

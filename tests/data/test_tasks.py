"""Tasks by name: a local copy in the dataset's own layout, or the hub's; and the figures that each reports."""

import datasets
import huggingface_hub
import pytest
from miniatures import hrbench, mme_raw, vstar_questions, write_parquet

from mgpo.data.loading import count_usable
from mgpo.data.schemas import SCHEMAS
from mgpo.data.tasks import TASKS, by_columns, mean_iou, task_of, yes_or_no


def test_a_folder_with_both_sizes_gives_each_task_its_own(tmp_path):
    write_parquet(tmp_path / "hr_bench_4k.parquet", hrbench())
    write_parquet(tmp_path / "hr_bench_8k.parquet", hrbench()[:2])
    assert [count_usable(TASKS[f"hrbench{k}"].rows(str(tmp_path)), k) for k in ("4k", "8k")] == [4, 2]


def test_raw_folders_are_read(tmp_path):
    vstar_questions(tmp_path / "vstar")
    mme_raw(tmp_path / "mme")
    assert count_usable(TASKS["vstar"].rows(str(tmp_path / "vstar")), "vstar") == 3
    assert count_usable(TASKS["mme_realworld_lite"].rows(str(tmp_path / "mme")), "mme") == 5
    with pytest.raises(ValueError, match="is expected"):
        count_usable(TASKS["pope"].rows(str(tmp_path / "mme")), "mme")


def test_the_hub_is_asked_by_id_config_and_split(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "hr.parquet", hrbench())
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return real("parquet", data_files=str(file), split="train", streaming=True)

    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(TASKS["hrbench8k"].rows(None))
    assert asked == [(("DreamMr/HR-Bench", "hrbench_version_split"), {"split": "hrbench_8k", "streaming": True})]
    assert rows[0]["source"] == "DreamMr/HR-Bench hrbench_8k row 1" and len(rows) == 4


def test_a_dataset_of_files_is_downloaded_and_read_as_a_folder(tmp_path, monkeypatch):
    vstar_questions(tmp_path)
    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda hub, **kw: asked.update({hub: kw}) or str(tmp_path)
    )
    assert count_usable(TASKS["vstar"].rows(None), "vstar") == 3
    assert asked["craigwu/vstar_bench"]["repo_type"] == "dataset"
    assert not any("OCR" in pattern for pattern in asked["craigwu/vstar_bench"]["allow_patterns"])


def test_anything_readable_is_a_task(tmp_path):
    file = write_parquet(tmp_path / "mine.parquet", hrbench())
    assert count_usable(task_of(str(file)).rows(None), "mine") == 4
    assert task_of("vstar") is TASKS["vstar"]


def test_every_layout_of_a_task_exists():
    known = {schema.name for schema in SCHEMAS}
    assert all(set(task.layouts) <= known for task in TASKS.values())


def test_both_means_of_mme_realworld():
    records = [{"category": "Perception/OCR", "correct": True}] * 3 + [{"category": "Reasoning/OCR", "correct": False}]
    found = by_columns(records)
    assert [round(value, 3) for value in found.values()] == [0.5, 0.75]
    assert all("mean of" in name for name in found)


def test_pope_counts_the_answers_given():
    def record(chosen, answer):
        return {"chosen": chosen, "answer": answer}

    records = [record("A", "A"), record("A", "B"), record("B", "A"), record(None, "B")]
    assert yes_or_no(records) == {"F1": 0.5, "precision": 0.5, "recall": 0.5, "share of yes": 0.5}
    assert yes_or_no([record("B", "A")])["F1"] == 0.0


def test_treebench_iou_takes_the_best_box_for_each_target():
    gold = [[0, 0, 10, 10], [20, 20, 30, 30]]
    looked = [{"box_px_original": [0, 0, 10, 10]}, {"box_px_original": None}, {"box_px_original": [0, 0, 10, 20]}]
    records = [{"turns": looked, "gold_boxes": gold}, {"turns": looked[1:2], "gold_boxes": gold},
               {"turns": looked, "gold_boxes": []}]  # fmt: skip
    assert mean_iou(records) == {"mean IoU": 0.25}
    assert mean_iou(records[2:]) == {}


def test_a_typo_is_told_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no task, file or folder 'neadle'. Did you mean 'needle'"):
        list(task_of("neadle").rows(None))


def test_a_vstar_folder_is_read_whole_whatever_the_split(tmp_path):
    vstar_questions(tmp_path)
    assert [count_usable(TASKS["vstar"].rows(str(tmp_path), split), "v") for split in ("train", "test")] == [3, 3]

"""Paired comparison, against numbers by hand and simulation."""

import numpy as np
import pytest

from mgpo.evaluation.comparing import bootstrap_interval, compare, compare_records, drawn_together, mcnemar
from mgpo.evaluation.results import append


def records(right, questions=None):
    questions = questions or [f"q{n}" for n in range(len(right))]
    return [
        {"id": str(n), "question": q, "choices": ["x", "y"], "answer": "A", "image_size": [9, 9], "correct": bool(r)}
        for n, (r, q) in enumerate(zip(right, questions))
    ]


def test_by_hand():
    a, b = records([1, 1, 0, 0, 0, 0]), records([1, 0, 1, 1, 1, 0])
    found = compare_records("t", a, b)
    assert (found.a, found.b, found.difference) == (pytest.approx(2 / 6), pytest.approx(4 / 6), pytest.approx(2 / 6))
    assert (found.only_a, found.only_b, found.p) == (1, 3, mcnemar(1, 3)) and mcnemar(1, 3) == 2 * (1 + 4) / 16
    assert found.interval[0] < found.difference < found.interval[1]
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0 and mcnemar(0, 10) == 2 / 1024


def test_the_interval_covers():
    """95 of 100 intervals should hold the true difference of 10 points; 85 is far outside of chance."""
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        difference = rng.choice([-1, 0, 1], 120, p=[0.1, 0.7, 0.2])
        low, high = bootstrap_interval(difference.astype(float), list(range(120)), seed)
        inside += low <= 0.1 <= high
    assert 86 <= inside <= 100


def test_rotations_of_a_question_are_drawn_together():
    once = np.array([1.0, 0.0, -1.0, 1.0, 0.0, 0.0])
    single = bootstrap_interval(once, list(range(6)))
    fourfold = bootstrap_interval(np.repeat(once, 4), list(np.repeat(range(6), 4)))
    assert fourfold == pytest.approx(single, abs=0.05)


def test_folders_are_compared_task_by_task(tmp_path):
    for name, right in (("a", [1, 0, 0]), ("b", [1, 1, 1])):
        (tmp_path / name).mkdir()
        append(tmp_path / name / "vstar.jsonl", records(right))
    (found,) = compare(tmp_path / "a", tmp_path / "b")
    assert found.task == "vstar" and found.only_b == 2
    assert compare(tmp_path / "a/vstar.jsonl", tmp_path / "b/vstar.jsonl") == [found]
    with pytest.raises(ValueError, match=r"differ in question 2 \(question: 'q1' in the first, 'other' in the second"):
        compare_records("t", records([1, 1]), records([1, 1], ["q0", "other"]))
    with pytest.raises(ValueError, match="the first run answered 2 questions, the second 1"):
        compare_records("t", records([1, 1]), records([1]))
    with pytest.raises(ValueError, match="is not a results folder"):
        compare(tmp_path / "a", tmp_path / "none")


def test_questions_about_other_images_are_drawn_apart():
    """BLINK asks the same words with the same choices of many images; HR-Bench asks the same of one image, choices in any order."""
    record = {"question": "Which fits?", "image_size": [9, 9], "choices": ["x", "y"]}
    apart = [record | {"images_digest": digest} for digest in ("a", "b")]
    assert drawn_together(apart[0]) != drawn_together(apart[1])
    assert drawn_together(apart[0]) == drawn_together(apart[0] | {"choices": ["y", "x"]})
    assert drawn_together(record) == drawn_together(record | {"choices": ["y", "x"]}), "results of earlier versions"


def test_the_folder_of_a_training_is_named_as_such(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="is the folder of a training. Name two folders that mgpo eval wrote"):
        compare(tmp_path, tmp_path)

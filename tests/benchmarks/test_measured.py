"""A point of the calibration is what its shape says: pixels, rollouts, widths."""

import json

import pytest

from benchmarks import calibrate
from benchmarks.measured import FITTED, HELD_OUT, measure
from benchmarks.workload import Random, Shape
from mgpo.images.imaging import PixelBudget


@pytest.fixture(scope="module")
def row():
    random = Random(64, 128, 2, heads=2, key_value_heads=1, tower=64, tower_inner=128, depth=2, whole=(1,))
    shape = Shape("64 x 2", PixelBudget(20 * 784, 36 * 784), (600, 400), 1, True, rollouts=4, random=random)
    return json.loads(json.dumps(measure(shape, 1, held_out=False)))


def test_a_random_model_sees_the_pixels_of_its_shape(row):
    """Not the 1,280 tokens that a model without a budget of its own is given."""
    assert 20 <= row["episode"]["overview"] <= 36 and 20 <= row["episode"]["crop"] <= 36
    assert row["rollouts"] == 4 and 0 < row["episode"]["new_crops"] <= 1
    assert all(mean <= most for mean, most in zip(row["episode"]["said"], row["episode"]["longest"]))


def test_every_phase_has_its_seconds_and_they_are_the_step(row):
    assert set(row["seconds"]) == {*calibrate.STEP, "step"}
    assert sum(row["seconds"][name] for name in calibrate.STEP) == pytest.approx(row["seconds"]["step"])
    assert min(row["seconds"].values()) >= 0 < min(row["operations"].values())


def test_the_model_of_time_can_read_it(row, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "FILE", tmp_path / "measured.json")
    calibrate.FILE.write_text(json.dumps([row]))
    try:
        calibrate.points.cache_clear()
        (point,) = calibrate.points()
        for name, counted in point.operations.items():
            assert calibrate.needs(point)[name].operations.total == pytest.approx(counted, rel=0.15)
    finally:
        calibrate.points.cache_clear()


def test_what_is_stored_is_what_the_command_would_measure():
    """Shapes are in the order of the file, and those that are held out are marked."""
    rows = json.loads(calibrate.FILE.read_text())
    assert [row["name"] for row in rows] == [shape.label for shape in FITTED + HELD_OUT]
    assert [row["held_out"] for row in rows] == [shape in HELD_OUT for shape in FITTED + HELD_OUT]

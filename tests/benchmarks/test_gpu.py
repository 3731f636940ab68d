"""The GPU benchmark, run on the CPU with a tiny model: every measurement is there, and what goes wrong costs its own case only."""

import json

import pytest

from benchmarks import gpu
from benchmarks.gpu import Case, Results


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A case that works, and one whose model does not exist."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    gpu.main((Case("tiny", 36, pairs=1), Case("no such model", 36)), ["--out", str(out), "--minutes", "4"])
    return json.loads(out.read_text())


def test_each_path_is_measured_and_compared(measured):
    about, shared, equality, stock, ratios, failed = measured
    assert about["device"] == "CPU" and [row["path"] for row in (shared, stock)] == ["shared", "stock"]
    for row in (shared, stock):
        assert row["step_s"] == pytest.approx(row["rollout_s"] + row["update_s"], rel=0.5)
        assert row["update_tflops"] > 0 and row["own_tokens"] > row["sampled_tokens"] > 0
    assert 0 < shared["sampled_tokens_per_s"] == pytest.approx(shared["sampled_tokens"] / shared["sampling"])
    assert ratios["step_ratio"] == pytest.approx(stock["step_s"] / shared["step_s"])
    assert "ended with" in failed["error"] and failed["model"] == "no such model"


def test_both_paths_are_as_exact_as_bfloat16_allows(measured):
    row = measured[2]
    assert row["path"] == "equality"
    assert 0 < row["shared_mean_error"] < 2 * row["stock_mean_error"] < 0.2


def test_time_that_is_used_up_is_said(tmp_path):
    out = tmp_path / "gpu.json"
    gpu.main((Case("tiny", 36), Case("tiny", 20)), ["--out", str(out), "--minutes", "0"])
    assert [row.get("error") for row in json.loads(out.read_text())[1:]] == ["skipped: the time is used up"] * 2


def test_what_was_written_stays_when_a_later_measurement_fails(tmp_path):
    results = Results(tmp_path / "x.json")
    results.add(one=1)
    with pytest.raises(TypeError):
        results.add(two=object())
    results.add(three=3)
    assert json.loads(results.file.read_text()) == [{"one": 1}, {"three": 3}]


@pytest.mark.parametrize(
    ("name", "tera"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312)]
)
def test_the_peak_goes_by_the_gpu_s_name(monkeypatch, name, tera):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    assert gpu.peak_operations("cuda") == tera * 1e12
    assert gpu.peak_operations("cpu") is None


def test_the_shapes_are_the_models():
    """Parameters of the language half with its untied head, within the rounding of their names."""
    for name, billions in (("3B", 3.4), ("7B", 7.6)):
        text = gpu.MODELS[name]
        head = text["hidden_size"] // text["num_attention_heads"]
        layer = 2 * text["hidden_size"] * (text["hidden_size"] + text["num_key_value_heads"] * head)
        layer += 3 * text["hidden_size"] * text["intermediate_size"]
        total = text["num_hidden_layers"] * layer + 2 * gpu.VOCABULARY * text["hidden_size"]
        assert total / 1e9 == pytest.approx(billions, rel=0.02)

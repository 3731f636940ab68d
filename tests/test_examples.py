"""The scripts in `examples/` run as they are, with a tiny model."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from family_models import make
from trl.chat_template_utils import qwen3_vl_chat_template

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def data(rows, tmp_path, monkeypatch):
    """A file of questions, in the folder in which the script runs."""
    monkeypatch.chdir(tmp_path)
    Path("my_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    return "my_data.jsonl"


def run(name, *words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_each_is_short_and_tested():
    assert {file.name for file in EXAMPLES.glob("*environment.py")} == {
        "trl_environment.py",
        "verifiers_environment.py",
    }
    for file in EXAMPLES.glob("*environment.py"):
        compile(file.read_text(), file.name, "exec")
        assert len(file.read_text().splitlines()) < 60


def test_trl_environment(data, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    model = str(make("qwen3_vl", tmp_path / "model", qwen3_vl_chat_template))
    run("trl_environment.py", model, data, "--steps", "1", "--batch", "4", "--rollouts", "2", "--call_tokens", "8",
        "--answer_tokens", "8", "--use_cpu", monkeypatch=monkeypatch)  # fmt: skip
    assert (tmp_path / "runs/zoom/model.safetensors").is_file()

"""The scripts and the notebook in `examples/` run as they are, with a tiny model and a few steps."""

import ast
import base64
import csv
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from family_models import make
from trl.chat_template_utils import qwen3_vl_chat_template

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "look_twice.ipynb"
SHORT = ("--steps", "1", "--batch", "4", "--rollouts", "2", "--use_cpu")
FIGURES = 200_000
"""Bytes that the notebook's figures may take together."""


@pytest.fixture
def data(rows, tmp_path, monkeypatch):
    """A file of questions, in the folder in which the script runs."""
    monkeypatch.chdir(tmp_path)
    Path("my_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    return "my_data.jsonl"


def run(name, *words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def refused(capsys, monkeypatch, name, *words):
    """What a script says that ends by a mistake of its user: one sentence, without a traceback."""
    with pytest.raises(SystemExit) as stop:
        run(name, *words, monkeypatch=monkeypatch)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in told
    return told.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("own_data.py", ["photos", "nowhere.jsonl"]),
        ("own_reward.py", ["nowhere.jsonl"]),
        ("several_turns.py", ["nowhere.jsonl"]),
        ("train_from_python.py", ["nowhere.jsonl"]),
        ("trl_environment.py", ["mgpo-tiny", "nowhere.jsonl"]),
        ("evaluate_endpoint.py", ["nowhere.jsonl", "--model", "Qwen3-VL"]),
    ],
)
def test_a_missing_file_is_a_sentence(tmp_path, monkeypatch, capsys, script, words):
    monkeypatch.chdir(tmp_path)
    assert "nowhere.jsonl" in refused(capsys, monkeypatch, script, *words)


def test_a_server_that_does_not_run_is_a_sentence(data, monkeypatch, capsys):
    pytest.importorskip("openai")
    told = refused(
        capsys, monkeypatch, "evaluate_endpoint.py", data, "--url", "http://127.0.0.1:9/v1", "--model", "Qwen3-VL"
    )
    assert "http://127.0.0.1:9/v1/ cannot be reached" in told and "Does a server run" in told


def test_each_is_short_listed_and_tested():
    """Each script has a test here or in tests/environments, and a line in the README beside it."""
    listed = (EXAMPLES / "README.md").read_text()
    here = Path(__file__).parent
    tests = Path(__file__).read_text() + (here / "environments/test_verifiers_env.py").read_text()
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) >= 7
    for file in scripts:
        compile(file.read_text(), file.name, "exec")
        assert len(file.read_text().splitlines()) < 60, file.name
    for file in [*scripts, NOTEBOOK]:
        assert f"({file.name})" in listed and file.name in tests, file.name
    assert not [name for name in re.findall(r"\]\(([^)]+)\)", listed) if not (EXAMPLES / name).exists()]


def test_trl_environment(data, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    model = str(make("qwen3_vl", tmp_path / "model", qwen3_vl_chat_template))
    run("trl_environment.py", model, data, "--steps", "1", "--batch", "4", "--rollouts", "2", "--call_tokens", "8",
        "--answer_tokens", "8", "--use_cpu", monkeypatch=monkeypatch)  # fmt: skip
    assert (tmp_path / "runs/zoom/model.safetensors").is_file()


def test_own_data(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos = Path(rows[0]["image"]).parent
    lines = [["image", "question", "choices", "answer"]]
    lines += [
        [Path(row["image"]).name, row["question"], "H | K|L|N", "HKLN"["ABCD".index(row["answer"])]] for row in rows
    ]
    lines += [[Path(rows[0]["image"]).name, 'What is written, "in ink"?', "", "Café"]]
    with open("questions.csv", "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(lines)
    run("own_data.py", str(photos), "questions.csv", "--model", "mgpo-tiny", *SHORT, monkeypatch=monkeypatch)
    written = [json.loads(line) for line in Path("questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["answer"] for row in written] == [row["answer"] for row in rows] + ["Café"]
    assert written[0]["choices"] == ["H", "K", "L", "N"] and not written[-1]["choices"]
    assert "7 questions: questions.jsonl" in capsys.readouterr().out
    assert Path("runs/own_data/model.safetensors").is_file()
    with open("questions.csv", "a", newline="") as out:
        csv.writer(out).writerow(["0.png", "Which?", "a|b", "c"])
    words = ("own_data.py", str(photos), "questions.csv")
    assert "0.png: the answer 'c' is not one of the choices" in refused(capsys, monkeypatch, *words)
    Path("questions.csv").write_text("image,question,answer\n0.png,Which?,a\n")
    assert "needs the columns image, question, choices and answer" in refused(capsys, monkeypatch, *words)


def test_own_reward(data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does for a script
    run("own_reward.py", data, "--model", "mgpo-tiny", *SHORT, monkeypatch=monkeypatch)
    first = json.loads((tmp_path / "runs/own_reward/metrics.jsonl").read_text().splitlines()[0])
    brevity = first["rewards/brevity/mean"]
    assert 0 < brevity < 1  # answers of a few tokens, shorter than `LONG`
    assert first["reward"] == pytest.approx(first["rewards/accuracy_reward/mean"] + 0.1 * brevity, abs=1e-6)


def test_several_turns(data, tmp_path, monkeypatch, capsys):
    run("several_turns.py", data, "--model", "mgpo-tiny", "--frame", "original", *SHORT, monkeypatch=monkeypatch)
    kept = yaml.safe_load((tmp_path / "runs/several_turns/config.yaml").read_text())
    assert kept["max_turns"] == 3 and kept["crop_frame"] == "original"
    assert capsys.readouterr().out.count("turn 1:") == 2


def test_train_from_python(data, tmp_path, monkeypatch, capsys):
    run("train_from_python.py", data, "--model", "mgpo-tiny", *SHORT, monkeypatch=monkeypatch)
    assert (tmp_path / "runs/from_python/adapter_model.safetensors").is_file()
    told = capsys.readouterr().out
    assert "step 1: {'grounding/valid_share': '" in told and ", answer " in told


def test_evaluate_endpoint(data, monkeypatch, capsys):
    pytest.importorskip("openai")
    chat = pytest.importorskip("plain_chat")
    from mgpo.policies.local import LocalPolicy
    from mgpo.tiny.views import BUDGET

    policy, seen = LocalPolicy.load("mgpo-tiny"), []
    policy.set_budget(BUDGET)
    with chat.serving(chat.chat_app(policy, seen)) as url:
        run("evaluate_endpoint.py", data, "--url", url, "--model", "tiny", "--coordinates", "absolute",
            "--min_pixels", str(BUDGET.min_pixels), "--max_pixels", str(BUDGET.max_pixels), "--answers", "lenient",
            monkeypatch=monkeypatch)  # fmt: skip
    told = capsys.readouterr().out
    assert re.search(
        r"mgpo +\d of 2 right .*\n  \d+% if .*; \d have none\ndirect +\d of 2 right .*\n.*none\nthe look gained \d answers and lost \d",
        told,
    )
    assert any(len(body["messages"]) == 3 for body in seen)


def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """All code cells in order, in one namespace, as a kernel does; the last expression of a cell is evaluated."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGPO_NOTEBOOK_STEPS", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    names, shown = {"__name__": "__main__"}, []
    for number, cell in enumerate(cell for cell in cells() if cell["cell_type"] == "code"):
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    assert sum(hasattr(value, "_repr_png_") for value in shown) == 2  # where it looked, before and after
    assert names["log"] and len(names["before"]) == len(names["after"]) == names["QUESTIONS"]
    assert "after    right" in capsys.readouterr().out


def test_the_notebook_holds_the_outputs_of_one_whole_run():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    figures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 3 and sum(len(base64.b64decode(figure)) for figure in figures) < FIGURES
    text = json.dumps(outputs)
    assert "/tmp/" not in text and "/root/" not in text and "/home/" not in text

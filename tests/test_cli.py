"""The command line, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mgpo import cli
from mgpo.method.boxes import BoxStatus

run = CliRunner()


def call(*argv):
    result = run.invoke(cli.app, [str(arg) for arg in argv])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.jpg"
    Image.effect_noise((900, 600), 90).convert("RGB").save(file)
    return file


def test_help_names_every_command():
    text = call("--help")
    for command in ("train", "eval", "compare", "data", "ask", "demo", "reproduce", "env", "validate", "push"):
        assert command in text


def test_env_prints_versions():
    told = json.loads(call("env"))
    assert told["packages"]["trl"].startswith("1.16.") and told["python"] and told["cores"]


@pytest.mark.parametrize("protocol", ["mgpo", "direct"])
def test_eval_writes_a_row(random_tiny, tmp_path, protocol):
    out = tmp_path / "deep" / "result"
    call(
        "eval", "--model", random_tiny, "--n", 4, "--seed", 7, "--protocol", protocol, "--grounding-tokens", 24,
        "--answer-tokens", 6, "--batch-size", 3, "--out", out,
    )  # fmt: skip
    (row,) = json.loads((out / "summary.json").read_text())
    assert (row["n"], row["task"], row["split"], row["seed"]) == (4, "needle", "test", 7)
    assert (row["method"], row["protocol"]) == ("base", protocol)
    assert 0 <= row["accuracy"] <= 1 and row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
    assert row["chance"] == 0.25 and row["pixel_budget"] == 36 * 28 * 28
    assert (row["valid_box_rate"] is None) == (protocol == "direct")


def test_eval_on_a_file_of_ones_own(random_tiny, tmp_path, rows):
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "result"
    call("eval", "--model", random_tiny, "--tasks", data, "--split", "train", "--n", 3, "--grounding-tokens", 8,
         "--answer-tokens", 4, "--out", out)  # fmt: skip
    (row,) = json.loads((out / "summary.json").read_text())
    assert row["n"] == 3 and row["task"] == str(data) and (out / "questions.jsonl").is_file()


def test_ask_saves_a_picture(random_tiny, tmp_path, photo):
    picture = tmp_path / "asked.png"
    text = call("ask", photo, "Which letter is on the red sign?", "--choice", "H", "--choice", "K [bold]", "--model",
                random_tiny, "--save", picture)  # fmt: skip
    assert "turn 1" in text and "turn 2" in text and "box no_json" in text
    with Image.open(picture) as image:
        assert image.width > 500 and image.height > 600


def test_one_question_about_two_photographs(random_tiny, tmp_path, photo):
    """Together: one answer and one picture. Without --together: one of each per photograph."""
    asked = ("ask", photo, photo, "Which is older?", "--model", random_tiny, "--json", "--save", tmp_path / "a.png")
    (line,) = call(*asked, "--together").splitlines()
    assert json.loads(line)["turns"][0]["image"] == 2 and len(json.loads(line)["image_sizes"]) == 2
    assert [file.name for file in tmp_path.glob("a*.png")] == ["a.png"]
    assert len(call(*asked).splitlines()) == 2 and (tmp_path / "a_2.png").is_file()


def test_ask_without_choices_and_a_smaller_budget(random_tiny, tmp_path, photo):
    call(
        "ask",
        photo,
        "What is it?",
        "--model",
        random_tiny,
        "--max-pixels",
        16 * 28 * 28,
        "--save",
        tmp_path / "a.png",
    )
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["train", "--learning_rat", "1"], "Did you mean 'learning_rate'?"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["train", "--config=nowhere.yaml"], "nowhere.yaml does not exist"),
        (["train", "tiny_mgpo"], "mgpo train takes its recipe by name: --config tiny_mgpo."),
        (["train", "--config", "tiny_mpgo"], "Did you mean 'tiny_mgpo'"),
        (["validate", "tiny_mpgo"], "Did you mean 'tiny_mgpo'"),
        (["train", "--config", "tiny_mgpo", "--max_steps", "many"], "max_steps must be a whole number, not 'many'."),
        (["eval", "--model", "runs/nowhere"], "The model folder runs/nowhere does not exist"),
        (["ask", "nowhere.jpg", "What?", "--model", "RANDOM"], "nowhere.jpg' does not exist"),
        (["eval", "--tasks", "nowhere.jsonl", "--model", "RANDOM"], "nowhere.jsonl does not exist"),
        (["eval", "--tasks", "vstarr"], "There is no task, file or folder 'vstarr'. Did you mean 'vstar'?"),
        (["data", "check", "needel"], "Did you mean 'needle'?"),
        (["data", "check", "questons.jsonl"], "questons.jsonl does not exist. Did you mean 'questions.jsonl'?"),
        (["eval", "--split", "nosuch", "--model", "RANDOM", "--n", "2"], "nosuch"),
    ],
)
def test_a_mistake_is_a_sentence_and_no_traceback(random_tiny, tmp_path, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.jsonl").touch()
    argv = [str(random_tiny) if arg == "RANDOM" else arg for arg in argv]
    monkeypatch.setattr("sys.argv", ["mgpo", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr()
    assert stop.value.code == 2
    assert sentence in " ".join(told.err.split()) and "Traceback" not in told.err


QUICK = {
    "train --nonsense 1": "unknown setting 'nonsense'.",
    "train --config tiny_mgpo --max_stepps 3": "Did you mean 'max_steps'?",
    "train --config mine.yaml": "mine.yaml: unknown setting 'lerning_rate'. Did you mean 'learning_rate'?",
    "train --config missing.yaml": "The recipe missing.yaml does not exist",
    "validate tiny_mgpo --nonsense 1": "unknown setting 'nonsense'.",
    "export verl tiny_mgpo --nonsense 1": "unknown setting 'nonsense'.",
    "eval --model runs/nowhere": "The model folder runs/nowhere does not exist.",
    "eval --tasks vstarr": "Did you mean 'vstar'?",
    "eval --tasks vstar --data nowhere.tsv": "nowhere.tsv does not exist.",
    "eval --answers boxed": "answers 'boxed' is unknown. Choose one of: strict, lenient.",
    "eval --engine fast": "engine 'fast' is unknown.",
    "eval --controls blur": "--controls: 'blur' is unknown.",
    "eval --protocol magic": "protocol 'magic' is unknown.",
    "eval --endpoint localhost:8000/v1": "'localhost:8000/v1' is no address of a server. Write it like http://localhost:8000/v1.",
    "ask missing.jpg What?": "Image 'missing.jpg' does not exist.",
    "ask photo.png What? --model runs/nowhere": "The model folder runs/nowhere does not exist.",
    "ask photo.png What? --protocol magic": "protocol 'magic' is unknown.",
    "serve --port 0 --engine fast": "engine 'fast' is unknown.",
}
"""Mistakes, and what is said of them before a library is imported that takes seconds."""


def test_mistakes_are_said_before_torch_and_trl_are_imported(tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "photo.png")
    (tmp_path / "mine.yaml").write_text("lerning_rate: 1\n")
    code = """
import json, sys
for name in ("torch", "transformers", "trl", "datasets"):
    sys.modules[name] = None
from mgpo.cli import main
for line in json.load(sys.stdin):
    sys.argv = ["mgpo", *line.split()]
    try:
        main()
    except SystemExit as stop:
        print("status", stop.code, file=sys.stderr, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, input=json.dumps(list(QUICK)), capture_output=True, text=True
    )
    told = [" ".join(part.split()) for part in done.stderr.split("status 2")]
    assert len(told) == len(QUICK) + 1 and not told[-1], done.stderr
    for line, said in zip(QUICK, told):
        assert QUICK[line] in said and said.count("mgpo:") == 1, line


def test_a_training_without_a_recipe_is_not_begun():
    result = run.invoke(cli.app, ["train"])
    assert result.exit_code != 0 and "--config" in result.output + str(result.exception)


def test_without_a_photograph_a_scene_is_drawn_and_asked_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run.invoke(cli.app, ["ask", "--json"])
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["right_answer"] in "ABCD" and len(found["choices"]) == 4 and found["question"].endswith("?")
    assert found["image"].startswith("needle/test/77/") and found["letter"] in (*"ABCD", None)
    assert found["turns"][0]["status"] in set(BoxStatus)  # the scene is drawn at random: not every box is valid
    assert Path(found["picture"]).is_file()
    done = run.invoke(cli.app, ["ask", "--save", "mine.png"])
    assert "right answer" in done.stdout and (tmp_path / "mine.png").is_file()


def test_a_shipped_model_says_that_it_does_not_know_photographs(tmp_path):
    Image.new("RGB", (300, 200)).save(tmp_path / "photo.png")
    done = run.invoke(cli.app, ["ask", str(tmp_path / "photo.png"), "What is it?"])
    assert "mgpo-tiny-mgpo knows only drawn signs" in done.stderr and "--model" in done.stderr

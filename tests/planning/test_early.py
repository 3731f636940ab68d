"""What cannot be met is refused in a moment: before torch and TRL are imported."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mgpo import cli

HEAVY = ("torch", "trl", "transformers")
CODE = """
import json, sys
sys.argv = ["mgpo", *{argv}]
from mgpo.cli import main
try:
    main()
except SystemExit as stop:
    print(json.dumps([stop.code, [name for name in {heavy} if name in sys.modules]]))
"""


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["recipe", "--model", "Qwen/Qwen3-VL-4B-Instruct", "--gpus", "24"], "write the number of GPUs and the GB of each"),
        (["recipe", "--model", "Qwen/Qwen3-VL-88B", "--gpus", "1x24"], "cannot be estimated. Did you mean 'Qwen3-VL-8B'?"),
        (["recipe", "--model", "Qwen3-VL-4B", "--gpus", "1x24"], "has no owner. Did you mean Qwen/Qwen3-VL-4B?"),
        (["recipe", "--model", "Qwen/Qwen3-VL-4B", "--gpus", "1x24", "--method", "ppo"], "Choose one of: mgpo, grpo, direct, sft"),
        (["recipe", "--model", "Qwen/Qwen3-VL-4B", "--gpus", "1x24", "--out", "mine.yaml"], "mine.yaml exists already"),
        (["validate", "min.yaml"], "it is neither a file nor a shipped recipe. Did you mean 'mine.yaml'?"),
        (["validate", "list.yaml"], "list.yaml must contain a YAML mapping"),
        (["validate", "mine.yaml", "--method", "ppo"], "method='ppo' is unknown"),
        (["train", "--config", "ppo.yaml"], "method='ppo' is unknown"),
        (["train", "--config=nowhere.yaml"], "The recipe nowhere.yaml does not exist"),
        (["ask", "photo.png", "photo.png"], "The last argument is the question, but photo.png is a file"),
        (["ask", "photo.png"], "needs a photograph and a question"),
        (["ask", "photo.png", "What?", "--save", "x.txt"], "must end in .png, .jpg, .jpeg or .webp"),
    ],
)  # fmt: skip
def test_it_is_refused_with_a_sentence_and_without_torch(tmp_path, argv, sentence):
    (tmp_path / "mine.yaml").write_text("method: mgpo")
    (tmp_path / "ppo.yaml").write_text("method: ppo")
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "photo.png").touch()
    code = CODE.format(argv=argv, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout and json.loads(done.stdout.splitlines()[-1]) == [2, []], done.stdout + done.stderr
    assert sentence in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize("command", ["train", "validate"])
def test_help_says_where_all_options_are_listed(command):
    said = " ".join(CliRunner().invoke(cli.app, [command, "--help"]).output.replace("│", " ").split())
    assert "max_grounding_tokens" in said and "--help-all" in said


def test_serving_says_at_once_that_it_loads(monkeypatch):
    import mgpo.serving.run

    seen = []
    monkeypatch.setattr(mgpo.serving.run, "serve", seen.append)
    said = CliRunner().invoke(cli.app, ["serve", "--model", "runs/mine"])
    assert "loading runs/mine ..." in said.stderr and seen[0].model == "runs/mine"

"""Every code block of README and docs is run, with mgpo-tiny and a few steps in place of the large model, or at least parsed.

A block, or a line of one, that cannot run here is listed with the reason; a new one that is not listed is run, and fails
if it does not work. The examples of docs/serving.md that need a server run in `tests/test_serving_docs.py`.
"""

import dataclasses
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from support import make_rows
from typer.testing import CliRunner

import mgpo
from mgpo.cli import app
from mgpo.cli.launching import split
from mgpo.cli.settings import refuse_words
from mgpo.config import DataArguments, MGPOConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_HERE = {
    "make ": "runs everything, this test among it",
    "pip install": "installs",
    "python3 -m venv": "makes an environment",
    "python -m lmms_eval": "lmms-eval has an environment of its own: make test-lmms",
    "vf-eval": "verifiers has an environment of its own: make test-verifiers",
    "python examples/": "runs in tests/test_examples.py and tests/environments/test_verifiers_env.py",
    "vllm serve": "vLLM has an environment of its own: make test-vllm",
    "VLLM_SERVER_DEV_MODE=1 vllm serve": "as above",
    "curl": "runs against a server in tests/test_serving_docs.py",
    "python -m benchmarks.scale": "runs in tests/benchmarks/test_scale.py",
    "python -m benchmarks.calibrate": "as above",
    "python -m benchmarks.measured": "takes ten minutes; tests/benchmarks/test_measured.py measures a point",
    "sbatch": "runs in tests/test_cluster.py",
    "NODES=2 NODE=0": "runs in tests/test_cluster.py",
    "cat photo.jpg | mgpo ask": "runs in tests/test_serving_docs.py",
}
PARSED = ("mgpo serve", "--endpoint", "--accelerate_config")
"""What serves, needs a server or starts processes is parsed by the command line only."""
SHORT = (
    "--max_steps 1 --per_device_train_batch_size 4 --num_generations 2 --gradient_accumulation_steps 1 --steps_per_generation 1 "
    "--dataset_size 8 --output_dir runs/demo/mgpo_seed0 --use_cpu true --report_to none --disable_tqdm true"
).split()
IN_PYTHON = {
    "Qwen/Qwen2.5-VL-3B-Instruct": "mgpo-tiny",
    "max_pixels=640 * 28 * 28": "max_steps=1, per_device_train_batch_size=4, num_generations=2, max_reply_tokens=160, "
    "max_grounding_tokens=24, max_answer_tokens=6, use_cpu=True, report_to='none'",
}


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page):
    """Commands of a page's bash blocks, a here-document with the line that begins it."""
    for block in blocks(page, "bash"):
        block = re.sub(r"<<EOF\n.*?^EOF$", "", block.replace("\\\n", " "), flags=re.DOTALL | re.MULTILINE)
        yield from filter(str.strip, block.splitlines())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the examples name: photographs, data, a benchmark, and the recipes."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "recipes").symlink_to(Path(mgpo.__file__).parent / "recipes")
    rows = make_rows(folder)
    with Image.open(rows[0]["image"]) as picture:
        for name in ("photo.jpg", "street.jpg", "one.jpg", "two.jpg", "before.jpg", "after.jpg"):
            picture.save(folder / name)
    (folder / "my_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_folder").mkdir()
    shutil.copy(folder / "my_data.jsonl", folder / "my_folder/train.jsonl")
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(folder / "my.parquet")
    asked = {"text": "Which?\n(A) red\n(B) blue\nAnswer.", "label": "A", "category": "direct_attributes"}
    (folder / "vstar_bench").mkdir()
    lines = [json.dumps(asked | {"image": rows[i]["image"], "question_id": str(i)}) + "\n" for i in range(2)]
    (folder / "vstar_bench/test_questions.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("webbrowser.open", lambda url: True)
    return place


def shortened(words):
    """The same command with mgpo-tiny and little to do; a recipe is written for the large model, which is not loaded."""
    if words[0] == "recipe":
        return words
    words = ["mgpo-tiny" if word.startswith("Qwen/") else word for word in words]
    if words[0] == "train":
        return words + SHORT
    return [*words, "--n", "2"] if words[0] == "eval" else words


def parse(words):
    """What typer makes of a command line; it exits with an error if an option does not exist. accelerate reads its own."""
    if "--accelerate_config" in words:
        parser = launch_command_parser()
        for_launcher, words = split(words, parser)
        parser.parse_args([*for_launcher, "--module", "mgpo"])
        if words[0] == "train":
            refuse_words(words[1:])
    typer.main.get_command(app).make_context("mgpo", list(words))
    command = typer.main.get_command(app).commands[words[0]]
    command.make_context(words[0], list(words[1:]))


def run(words):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (words, done.output[-1500:], done.exception)


def test_python_of_the_api_page(here):
    """Train, save, ask: as written, but for the names in `IN_PYTHON`."""
    import datasets

    (code,) = blocks(ROOT / "docs/api.md", "python")
    for written, tiny in IN_PYTHON.items():
        assert written in code
        code = code.replace(written, tiny)
    rows = [json.loads(line) for line in Path("my_data.jsonl").read_text().splitlines()]
    names = {"my_dataset": datasets.Dataset.from_list(rows)}
    exec(compile(code, "api.md", "exec"), names)
    assert names["found"].turns


def test_commands_of_the_readme_and_of_all_pages(here):
    for out in ("runs/eval/one", "runs/eval/two"):  # what is compared and looked at
        run(["eval", "--tasks", "vstar", "--data", "vstar_bench", "--out", out])
    shutil.copytree("runs/eval/one", "runs/eval/mine")
    ran = 0
    lines = [line for page in PAGES for line in commands(page) if line.startswith("mgpo ")]
    lines.sort(key=lambda line: not line.startswith("mgpo train"))  # what others look at
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if any(part in line for part in PARSED):
            parse(words)
            continue
        run(shortened(words))
        ran += 1
    assert ran >= 14


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_runs_or_says_why_not(page):
    for line in commands(page):
        assert line.startswith(("mgpo ", *NOT_HERE)), f"{page.name}: {line!r} is neither run nor listed"
    known = {"", "bash", "python", "json", "yaml"}
    kinds = set(re.findall(r"^```(\w*)\n(?=(?:.|\n)*?^```$)", page.read_text(), re.MULTILINE))
    assert kinds <= known, kinds - known
    if blocks(page, "python"):
        assert page.name in ("api.md", "serving.md"), "run its Python blocks too"


def test_rows_and_settings_are_what_they_claim():
    fields = {field.name for kind in (DataArguments, MGPOConfig) for field in dataclasses.fields(kind)}
    found = [yaml.safe_load(block) for page in PAGES for block in blocks(page, "yaml")]
    assert found and all(set(settings) <= fields for settings in found)
    rows = [json.loads(block) for page in PAGES for block in blocks(page, "json")]
    assert rows and all({"question", "answer"} <= set(row) and {"image", "images"} & set(row) for row in rows)


def test_the_page_of_settings_is_what_its_script_writes():
    """Else: python docs/write_settings.py"""
    script = runpy.run_path(str(ROOT / "docs/write_settings.py"))
    assert (ROOT / "docs/settings.md").read_text() == script["page"]()

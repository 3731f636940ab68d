"""Keys and tokens are in no file, log or page that a run, an evaluation or a server leaves behind."""

import json
import logging
import sys

import pytest
from support import make_rows

from mgpo.cli import main
from mgpo.evaluation.judge import Judge
from mgpo.policies.client import openai_client
from mgpo.policies.endpoint import EndpointPolicy

SECRET = "s3cr3t-2f9c1e"
NAMES = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "MGPO_ENDPOINT_KEY",
    "MGPO_JUDGE_KEY",
    "MGPO_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
)


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["mgpo", *map(str, words)])
    try:
        main()
    except SystemExit as ended:
        return ended.code or 0
    return 0


@pytest.fixture
def secrets(monkeypatch):
    for number, name in enumerate(NAMES):
        monkeypatch.setenv(name, f"{SECRET}-{number}")


def test_a_run_leaves_no_secret_behind(secrets, random_tiny, tmp_path, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    rows = make_rows(tmp_path / "data")
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = [
        "--model_name_or_path",
        random_tiny,
        "--dataset_name",
        tmp_path / "data",
        "--output_dir",
        "run",
        "--max_steps",
        "1",
    ]
    train += [
        "--per_device_train_batch_size",
        "4",
        "--num_generations",
        "2",
        "--max_grounding_tokens",
        "12",
        "--use_cpu",
        "true",
    ]
    train += [
        "--max_answer_tokens",
        "6",
        "--max_reply_tokens",
        "160",
        "--hub_token",
        f"{SECRET}-hub",
        "--disable_tqdm",
        "true",
    ]
    train += [
        "--no_gradient_checkpointing",
        "--vllm_server_base_url",
        f"http://me:{SECRET}@localhost:8000",
        "--model_init_kwargs",
        json.dumps({"token": f"{SECRET}-model"}),
    ]
    assert command(monkeypatch, "train", *train) == 0
    assert command(monkeypatch, "train", *train, "--learning_rate", "1e-3") != 0  # an error, which must not tell either
    assert command(monkeypatch, "eval", "--model", "run", "--n", "2", "--out", "results") == 0
    assert command(monkeypatch, "view", "run", "--no-browser", "--out", "run.html") == 0
    assert command(monkeypatch, "view", "results", "--no-browser", "--out", "results.html") == 0
    assert command(monkeypatch, "env") == 0
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "settings.json",
        "run.html",
        "results.html",
        "README.md",
    } <= {f.name for f in files}
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err + caplog.text and "run folder" in said.out


@pytest.mark.parametrize(
    "endpoint",
    [
        f"https://user:{SECRET}@localhost/v1",
        f"http://{SECRET}@localhost/v1",
        f"http://localhost/v1?api_key={SECRET}",
        f"http://localhost/v1?sig={SECRET}",
    ],
)
def test_a_secret_in_a_url_is_refused_before_it_is_written(endpoint, tmp_path, monkeypatch, capfd):
    for build in (lambda: EndpointPolicy(endpoint, "m"), lambda: Judge(endpoint, "m", tmp_path / "j.jsonl")):
        with pytest.raises(ValueError, match="holds a secret") as refused:
            build()
        assert SECRET not in str(refused.value)
    for way in (["--endpoint", endpoint], ["--judge", endpoint, "--judge-model", "m"]):
        assert command(monkeypatch, "eval", "--n", "1", "--out", tmp_path / "out", *way) == 2
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET in file.read_text()]
    assert SECRET not in "".join(capfd.readouterr())


def test_an_ordinary_query_is_no_secret():
    assert openai_client("http://localhost/v1?api-version=2024", "MGPO_ENDPOINT_KEY", 5).api_key == "none"

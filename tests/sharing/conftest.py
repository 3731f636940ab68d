"""A finished run with its evaluation, made by the commands that users call, and a hub on this machine."""

import pytest
from hub import Hub, serving
from huggingface_hub import constants
from typer.testing import CliRunner

from mgpo.cli import app

TOKEN = "hf_" + "t0ken" * 6


def call(*words):
    """A command of mgpo; its result, with an error as `exception`."""
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`runs/mine` in a folder of its own, and its evaluation in `runs/eval/fresh`."""
    place = tmp_path_factory.mktemp("sharing")
    folder = place / "runs/mine"
    for words in (
        ("train", "--model_name_or_path", "mgpo-tiny", "--dataset_name", "needle", "--dataset_size", "4", "--output_dir", folder,
         "--max_steps", "1", "--per_device_train_batch_size", "4", "--num_generations", "2", "--save_steps", "1",
         "--trajectories_every", "1", "--max_reply_tokens", "200", "--use_cpu", "true", "--disable_tqdm", "true", "--hub_token", TOKEN),
        ("eval", "--model", folder, "--n", "2", "--out", place / "runs/eval/fresh"),
    ):  # fmt: skip
        done = call(*words)
        assert done.exit_code == 0, (words, done.output[-2000:], done.exception)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers on this machine, and a user who is logged in to it."""
    there = Hub()
    with serving(there) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield there

"""A finished run with its evaluation, made by the commands that users call, and a hub on this machine."""

import pytest
from huggingface_hub import constants
from local_hub import TOKEN, Hub, call, serving


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """`runs/mine` in a folder of its own, and its evaluation in `runs/eval/fresh`."""
    place = tmp_path_factory.mktemp("sharing")
    folder = place / "runs/mine"
    for words in (
        ("train", "--model_name_or_path", "mgpo-tiny", "--dataset_name", "needle", "--dataset_size", "4", "--output_dir", folder,
         "--max_steps", "1", "--per_device_train_batch_size", "4", "--num_generations", "2", "--save_steps", "1",
         "--trajectories_every", "1", "--max_reply_tokens", "200", "--max_grounding_tokens", "48", "--use_cpu", "true", "--disable_tqdm", "true", "--hub_token", TOKEN),
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

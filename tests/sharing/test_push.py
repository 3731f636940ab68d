"""What `mgpo push` sends, read from what a hub on this machine received by HTTP from huggingface_hub itself."""

import io
import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, constants
from local_hub import TOKEN, call
from PIL import Image

from mgpo.asking.grounded import GroundedVQA
from mgpo.policies import names
from mgpo.worlds.needle import needle_rows

NAME = "me/model"


def test_a_dry_run_shows_all_and_sends_nothing(run, hub):
    told = call("push", run, NAME, "--dry-run", "--private")
    assert told.exit_code == 0 and not hub.requests
    text = told.output
    for name in (
        "README.md",
        "model.safetensors",
        "config.yaml",
        "results/fresh.json",
        "episode.jpg",
        "me/model (private)",
    ):
        assert name in text
    assert "9.5 MB" in text and "stays here: " in text and "trajectories/" in text.split("stays here")[1]
    assert "Nothing was uploaded" in text


def test_a_push_sends_a_whole_model_and_nothing_private(run, hub, tmp_path):
    told = call("push", run, NAME)
    assert told.exit_code == 0 and f"uploaded: {hub.address}/me/model" in told.output, (told.output, told.exception)
    assert hub.commits == 1 and all(who == f"Bearer {TOKEN}" for _, path, who, _ in hub.requests if "yaml" not in path)
    assert (
        json.loads(next(body for _, path, _, body in hub.requests if path.endswith("repos/create")))["name"] == "model"
    )
    assert hub.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert {name.split("/")[0] for name in hub.files} == {
        "README.md", "chat_template.jinja", "config.json", "config.yaml", "environment.json", "episode.jpg", "generation_config.json",
        "metrics.jsonl", "model.safetensors", "processor_config.json", "results", "tokenizer.json", "tokenizer_config.json",
        "video_preprocessor_config.json",
    }  # fmt: skip
    assert {"trajectories", "checkpoint-1", ".lock", "data.json"} <= {file.name for file in run.iterdir()}
    everything = b"".join(hub.files.values())
    assert TOKEN.encode() not in everything and str(run.parent).encode() not in everything
    # What was sent is a model that answers as the run does, with the run's own settings.
    for name, data in hub.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    row = next(needle_rows("test", 3, 1))
    one, other = (
        GroundedVQA.from_pretrained(str(f)).ask(row["image"], row["question"], row["choices"]) for f in (run, tmp_path)
    )
    assert one.text == other.text and one.box_px_original == other.box_px_original


ASK = """
from mgpo.asking.grounded import GroundedVQA
from mgpo.worlds.needle import needle_rows

row, vqa = next(needle_rows("test", 3, 1)), GroundedVQA.from_pretrained("me/model")
print([vqa.ask(row["image"], row["question"], row["choices"]).text, vqa.protocol.budget.max_pixels, vqa.limits.grounding])
"""


def test_what_was_pushed_is_asked_by_its_name_as_it_was_trained(run, hub, tmp_path):
    """In a process of its own, which downloads all files, `config.yaml` with the settings among them."""
    assert call("push", run, NAME).exit_code == 0
    place = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=os.environ | place, capture_output=True, text=True, timeout=240
    )
    row, vqa = next(needle_rows("test", 3, 1)), GroundedVQA.from_pretrained(str(run))
    here = [vqa.ask(row["image"], row["question"], row["choices"]).text, vqa.protocol.budget.max_pixels, 48]
    assert vqa.limits.grounding == 48 and done.stdout.strip().splitlines()[-1:] == [str(here)], done.stderr[-2000:]


@pytest.mark.parametrize("text", ["method: train\nmax_pixels: 4\n", "[1, 2]", "a: [", "\x00"])
def test_a_settings_file_of_another_project_is_not_read_as_a_runs(text, tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))
    assert names.trained_with("someone/model") == {}


def test_the_card_has_results_one_episode_and_the_recipe(run, hub):
    call("push", run, NAME)
    text = hub.files["README.md"].decode()
    card = ModelCard(text)
    assert "# me/model\n" in text and 'from_pretrained("me/model")' in text and "base_model" not in card.data.to_dict()
    rows = json.loads((run.parent / "eval/fresh/summary.json").read_text())
    sent = json.loads(hub.files["results/fresh.json"])
    assert sent == [rows[0] | {"model": NAME}]
    assert f"| needle | test | mgpo | 2 | {100 * rows[0]['accuracy']:.1f} |" in text
    (figure,) = card.data.eval_results
    assert figure.metric_value == 100 * rows[0]["accuracy"] and figure.dataset_args["questions"] == 2
    assert "](episode.jpg)" in text and "| `max_steps` | 1 |" in text
    with Image.open(io.BytesIO(hub.files["episode.jpg"])) as picture:
        assert picture.format == "JPEG" and picture.width > 500
    settings = yaml.safe_load(hub.files["config.yaml"])
    assert settings["method"] == "mgpo" and settings["output_dir"] == "mine"


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_a_sentence(run, hub, status):
    hub.refuses = status
    failed = call("push", run, NAME).exception
    assert "The hub refused me/model" in str(failed) and TOKEN not in str(failed)
    assert ("your token may not write there" in str(failed)) == (status < 500)


def test_a_public_repository_is_no_private_one(run, hub):
    assert "me/model exists and is public" in str(call("push", run, NAME, "--private").exception)
    assert not hub.commits
    hub.private = True
    assert call("push", run, NAME, "--private").exit_code == 0 and hub.commits == 1


def test_other_weights_are_not_mixed_with_these(run, hub):
    hub.siblings = ["README.md", "model-00001-of-00002.safetensors"]
    assert "me/model holds other weights (model-00001" in str(call("push", run, NAME).exception)
    assert not hub.commits


def test_without_hub_or_login_a_sentence_says_so(run, hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "could not be reached" in str(call("push", run, NAME).exception)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "You are not logged in to the hub. Run hf auth login" in str(call("push", run, NAME).exception)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in str(call("push", run, NAME).exception)
    assert call("push", run, NAME, "--dry-run").exit_code == 0 and not hub.requests


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/mo del", "me/-x"])
def test_a_name_that_is_none_of_the_hub_is_refused(run, name):
    assert isinstance(call("push", run, name, "--dry-run").exception, ValueError)


def test_a_person_is_asked_first(run, hub, monkeypatch):
    from mgpo.cli import sharing

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    sharing.push(run, NAME, results=None, picture=None, private=False, dry_run=False, yes=False)
    assert not hub.commits
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    sharing.push(run, NAME, results=None, picture=None, private=False, dry_run=False, yes=True)
    assert hub.commits == 1


def test_a_run_that_trains_is_not_shared(run, tmp_path):
    from mgpo.runs.folder import only_one

    mine = shutil.copytree(run, tmp_path / "mine")
    with only_one(mine):
        assert "Another process" in str(call("push", mine, NAME, "--dry-run").exception)

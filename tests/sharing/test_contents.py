"""Which files of a run are shared, and what is refused."""

import json
import os
import shutil
from fnmatch import fnmatch

import pytest
import yaml
from PIL import Image

from mgpo.runs.resuming import PRIVATE
from mgpo.sharing.card import without_places
from mgpo.sharing.contents import contents_of, picture_of_file
from mgpo.sharing.push import prepare

NAME = "me/model"
UNASKED = (
    ".env", "token", "training_args.bin", "optimizer.pt", "pytorch_model.bin", "adapter_model.bin", "notes.txt", "log.txt",
    "skipped_train.jsonl", "data.json", "view.html", "photo.jpg", "modeling.py", ".saving/model.safetensors", "nonfinite/step.json",
    "trajectories/step_000001.jsonl", "trajectories/images/a.jpg", "checkpoint-1/model.safetensors", "runs/events.out", "results/mine.json",
)  # fmt: skip


@pytest.fixture
def mine(run, tmp_path):
    """A copy of the run, with its evaluation beside it, whose weights keep their date."""
    shutil.copytree(run.parent / "eval", tmp_path / "runs/eval")
    settings = tmp_path / "runs/eval/fresh/settings.json"
    written = json.loads(settings.read_text()) | {"model": str(tmp_path / "runs/mine")}
    settings.write_text(json.dumps(written))
    return shutil.copytree(run, tmp_path / "runs/mine")


def paths(contents):
    return {item.path for item in contents.items}


def test_a_checkpoint_is_shared_with_its_runs_settings(mine):
    contents = contents_of(mine / "checkpoint-1", NAME)
    settings = yaml.safe_load(next(item for item in contents.items if item.path == "config.yaml").read())
    assert settings["max_reply_tokens"] == 200
    assert [path for path in paths(contents) if path.endswith(".safetensors")] == ["model.safetensors"]


def test_what_is_not_listed_stays(mine):
    before = contents_of(mine, NAME)
    for name in UNASKED:
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text("private")
    after = contents_of(mine, NAME)
    assert paths(after) == paths(before) and not any(item.read() == b"private" for item in after.items)
    assert {name.split("/")[0] for name in UNASKED} <= {name.rstrip("/") for name in after.left_here}
    assert not [path for path in paths(after) for pattern in PRIVATE if fnmatch(path, pattern)]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.yaml", "hub_token: hf_abcdefghijklmnopqrstuvwx\n"),
        ("config.yaml", "run_name: http://me:pa55word@server\n"),
        ("README.md", "key sk-abcdefghijklmnopqrstuvwxyz012345"),
        ("metrics.jsonl", '{"note": "correct-horse"}\n'),
        ("chat_template.jinja", "-----BEGIN OPENSSH PRIVATE KEY-----"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(mine, monkeypatch, file, text):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct-horse")
    with (mine / file).open("a") as out:
        out.write(text)
    with pytest.raises(ValueError, match=f"{file} seems to hold a key") as refused:
        contents_of(mine, NAME)
    assert text.strip() not in str(refused.value)


def test_evaluations_are_those_of_these_weights(mine):
    assert "results/fresh.json" in paths(contents_of(mine, NAME))
    os.utime(mine / "model.safetensors", (1, 1))  # trained again, or copied without its date
    changed = contents_of(mine, NAME)
    assert "results/fresh.json" not in paths(changed)
    assert any("other weights" in note and "--results" in note for note in changed.notes)
    folder = mine.parent / "eval/fresh"
    assert "results/fresh.json" in paths(contents_of(mine, NAME, [folder]))
    with (mine / "model.safetensors").open("ab") as out:
        out.write(b" ")
    with pytest.raises(ValueError, match="other weights"):
        contents_of(mine, NAME, [folder])
    with pytest.raises(ValueError, match="no finished evaluation"):
        contents_of(mine, NAME, [mine])


def test_an_evaluation_that_was_made_twice_is_shared_once(mine):
    again = mine.parent / "eval/once_more"
    shutil.copytree(mine.parent / "eval/fresh", again)
    rows = json.loads((again / "summary.json").read_text())
    (again / "summary.json").write_text(json.dumps([row | {"seconds_per_question": 9} for row in rows]))
    shared = contents_of(mine, NAME)
    assert "results/fresh.json" in paths(shared) and "results/once_more.json" not in paths(shared)
    assert any("once_more is left out: it holds the same figures as" in note for note in shared.notes)
    (again / "summary.json").write_text(json.dumps([row | {"n": 3} for row in rows]))
    assert "results/once_more.json" in paths(contents_of(mine, NAME))


def test_a_task_of_ones_own_is_shared_by_name_only(mine):
    summary = mine.parent / "eval/fresh/summary.json"
    (row,) = json.loads(summary.read_text())
    summary.write_text(json.dumps([row | {"task": "/home/me/secret plan/my|data.jsonl"}]))
    contents = contents_of(mine, NAME)
    assert not any(b"secret plan" in item.read() for item in contents.items)
    card = next(item for item in contents.items if item.path == "README.md").read().decode()
    assert "| my\\|data.jsonl | test |" in card


def test_the_authors_text_is_kept(mine):
    with (mine / "README.md").open("a") as out:
        out.write("\n## Results\n\nMy own table.\n")
    card = contents_of(mine, NAME).items[0].read().decode()
    assert "My own table." in card and card.count("## Results") == 1
    (mine / "README.md").unlink()
    assert "# me/model\n" in contents_of(mine, NAME).items[0].read().decode()


def test_places_of_this_machine_are_last_names(mine):
    settings = yaml.safe_load((mine / "config.yaml").read_text())
    settings |= {"dataset_name": "/home/me/patients/x.jsonl", "model_name_or_path": "/data/base model"}
    (mine / "config.yaml").write_text(yaml.safe_dump(settings))
    readme = (mine / "README.md").read_text().replace("mgpo-tiny", "/data/base model")
    (mine / "README.md").write_text(readme)
    contents = contents_of(mine, NAME)
    assert not [item.path for item in contents.items if b"patients" in item.read() or b"/data/base" in item.read()]
    assert without_places({"a": ["/x/y", "/no_think", "~/k/v"], "b": 1}) == {"a": ["y", "/no_think", "v"], "b": 1}


def test_pictures_lose_what_cameras_write_and_photographs_are_not_shared_unasked(mine, tmp_path):
    file, exif = tmp_path / "asked.jpg", Image.Exif()
    exif[0x010E] = "my address"
    Image.new("RGB", (4000, 20), "red").save(file, exif=exif)
    assert b"my address" in file.read_bytes() and b"my address" not in picture_of_file(file).data
    settings = yaml.safe_load((mine / "config.yaml").read_text()) | {"dataset_name": "mine.jsonl"}
    (mine / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "episode.jpg" not in paths(prepare(mine, NAME)) and "--picture" in prepare(mine, NAME).notes[-1]
    assert "episode.jpg" in paths(prepare(mine, NAME, picture=file))


def test_half_a_model_and_adapters_of_a_private_base_are_refused(mine, tmp_path):
    (mine / "model.safetensors").rename(mine / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (mine / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks model-00002-of-00002.safetensors"):
        contents_of(mine, NAME)
    (mine / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/data/base"}))
    (mine / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="a folder that nobody else has"):
        contents_of(mine, NAME)
    (mine / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    card = contents_of(mine, NAME).items[0].read().decode()  # adapters are loaded from a folder
    assert 'from_pretrained(snapshot_download("me/model"))' in card and "import snapshot_download\nfrom mgpo" in card
    with pytest.raises(ValueError, match="holds no model"):
        contents_of(mine / "trajectories", NAME)

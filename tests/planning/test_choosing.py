"""`mgpo recipe`: the recipe fits by the estimate, is one that `mgpo validate` accepts, and what is shipped is what it writes."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import mgpo
from mgpo.cli import app
from mgpo.planning.choosing import LINEAR_TARGETS, choose, write_recipe
from mgpo.planning.gpus import Gpus
from mgpo.planning.sizes import SIZES
from mgpo.planning.validate import validate_recipe

RECIPES = Path(mgpo.__file__).parent / "recipes"
SHIPPED = {
    "qwen3_vl_2b_lora_24gb": ("Qwen/Qwen3-VL-2B-Instruct", "1x24", "LoRA"),
    "qwen3_vl_4b_lora_24gb": ("Qwen/Qwen3-VL-4B-Instruct", "1x24", "LoRA"),
    "qwen3_vl_4b_qlora_16gb": ("Qwen/Qwen3-VL-4B-Instruct", "1x16", "4-bit LoRA"),
    "qwen3_vl_2b_full_80gb": ("Qwen/Qwen3-VL-2B-Instruct", "1x80", "full training"),
    "qwen3_5_2b_lora_24gb": ("Qwen/Qwen3.5-2B", "1x24", "LoRA"),
    "qwen3_5_4b_lora_24gb": ("Qwen/Qwen3.5-4B", "1x24", "LoRA"),
    "qwen3_5_4b_qlora_16gb": ("Qwen/Qwen3.5-4B", "1x16", "4-bit LoRA"),
    "qwen3_5_2b_full_80gb": ("Qwen/Qwen3.5-2B", "1x80", "full training"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_recipe_is_what_the_command_writes(name, tmp_path):
    """So that no recipe is left behind when the estimate changes: write it again with the command in its second line."""
    model, gpus, way = SHIPPED[name]
    assert choose(model, Gpus.read(gpus))[0].way.name == way
    write_recipe(model, Gpus.read(gpus), "mgpo", "data/mme_realworld_train", tmp_path / f"{name}.yaml")
    assert (RECIPES / f"{name}.yaml").read_text() == (tmp_path / f"{name}.yaml").read_text()
    assert "has not been run on a GPU" in (RECIPES / f"{name}.yaml").read_text()


@pytest.mark.parametrize("gpus", ["1x16", "1x24", "1x48", "1x80", "2x24", "3x80", "8x80"])
@pytest.mark.parametrize("name", ["Qwen3-VL-2B", "Qwen3.5-4B", "Qwen2.5-VL-7B"])
def test_what_is_written_is_valid_and_fits_by_the_same_estimate(name, gpus, tmp_path):
    out, model, owned = tmp_path / "r.yaml", f"Qwen/{name}", Gpus.read(gpus)
    write_recipe(model, owned, "mgpo", "needle", out)
    lines = validate_recipe(out, ["--num_gpus", str(owned.count)])
    assert not any(line.startswith("note: some updates mix") for line in lines)
    assert any(line.startswith("old log-probabilities: not recomputed") for line in lines)
    if owned.count == 1:  # validate takes several GPUs to be sharded
        (peak,) = (line for line in lines if "on each GPU at once" in line)
        assert float(peak.rpartition("have ")[2].split()[0]) <= owned.gib


@pytest.mark.parametrize("method", ["mgpo", "grpo", "direct", "sft"])
def test_every_method_has_a_recipe(method, tmp_path):
    out = tmp_path / "r.yaml"
    write_recipe("Qwen/Qwen3-VL-2B-Instruct", Gpus(1, 24), method, "needle", out)
    assert yaml.safe_load(out.read_text())["method"] == method and validate_recipe(out, [])


def test_more_memory_never_trains_fewer_weights_or_fewer_pixels():
    order = ["4-bit LoRA", "LoRA", "training of all weights but the vision tower's", "full training"]
    found = [choose("Qwen/Qwen3-VL-4B-Instruct", Gpus(1, gib))[0] for gib in (12, 16, 24, 48, 80, 88, 96, 141)]
    ranks = [order.index(choice.way.name) for choice in found]
    assert ranks == sorted(ranks) and ranks[0] == 0 and ranks[-1] == 3
    assert found[0].tokens == 320 and found[-1].tokens == 1280


def test_the_reasons_say_what_did_not_fit(tmp_path):
    lines = write_recipe("Qwen/Qwen3-VL-4B-Instruct", Gpus(1, 16), "mgpo", "needle", tmp_path / "r.yaml")
    assert lines[1].startswith("- full training needs at least 9") and lines[1].endswith("GiB, more than 14.5")
    assert any(line.startswith("- LoRA needs at least") for line in lines)
    assert any(line.startswith("- 4-bit LoRA fits: 1") for line in lines)
    with pytest.raises(ValueError, match="exists already"):
        write_recipe("Qwen/Qwen3-VL-4B-Instruct", Gpus(1, 16), "mgpo", "needle", tmp_path / "r.yaml")


def test_lora_of_linear_attention_reaches_its_projections():
    settings = choose("Qwen/Qwen3.5-2B", Gpus(1, 24))[0].settings
    assert settings["lora_target_modules"] == LINEAR_TARGETS
    assert "lora_target_modules" not in choose("Qwen/Qwen3-VL-2B-Instruct", Gpus(1, 24))[0].settings


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "Qwen/Qwen3-VL-4B-Instruct", "--gpus", "1x10"], "needs 11.* GiB. What would fit: Qwen3-VL-2B"),
        (["--model", "Qwen/Qwen3-VL-2B-Instruct", "--gpus", "1x4"], "No smaller model of its family fits either"),
        (["--model", "mgpo-tiny", "--gpus", "1x24"], "The size of mgpo-tiny is not known, .* Known: Qwen2.5-VL-3B"),
        (["--model", "Qwen/Qwen3.5-2B", "--gpus", "24"], "write the number of GPUs and the GB of each"),
        (["--model", "Qwen/Qwen3.5-2B", "--gpus", "1x24", "--method", "ppo"], "method='ppo' is unknown"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_with_what_would(arguments, sentence, tmp_path):
    result = CliRunner().invoke(app, ["recipe", *arguments, "--out", str(tmp_path / "r.yaml")])
    with pytest.raises(ValueError, match=sentence):
        raise result.exception
    assert not (tmp_path / "r.yaml").exists()


def test_the_command_writes_the_recipe_and_says_why(tmp_path):
    out = tmp_path / "mine" / "r.yaml"
    found = CliRunner().invoke(app, ["recipe", "--model", "Qwen/Qwen3.5-4B", "--gpus", "1x24", "--out", str(out)])
    assert found.exit_code == 0 and "LoRA fits" in found.output and f"mgpo validate {out}" in found.output
    assert "a card sold as 24 GB is counted as 22 GiB" in found.output
    assert yaml.safe_load(out.read_text())["dataset_name"] == "needle"


def test_every_known_size_fits_somewhere():
    for name in SIZES:
        assert choose(f"Qwen/{name}", Gpus(1, 80 if name.endswith("72B") else 48))


def test_a_recipe_for_several_images_counts_them(tmp_path):
    """Four images of a question leave room for less than one, and the recipe says how many it was made for."""
    one, four = (choose("Qwen/Qwen3-VL-4B-Instruct", Gpus(1, 24), images=n)[0] for n in (1, 4))
    assert four.settings["max_images"] == 4 and "max_images" not in one.settings
    batch = "per_device_train_batch_size"
    assert (four.tokens, four.settings[batch]) < (one.tokens, one.settings[batch])
    write_recipe("Qwen/Qwen3-VL-4B-Instruct", Gpus(1, 24), "mgpo", "needle", tmp_path / "r.yaml", 4)
    text = (tmp_path / "r.yaml").read_text()
    assert "max_images: 4\n" in text and "--data needle --images 4\n" in text

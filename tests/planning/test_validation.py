"""`mgpo validate`: what a recipe will do, in numbers, and a sentence where it cannot run."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import mgpo
from mgpo.cli import app
from mgpo.config import DataArguments, MGPOConfig
from mgpo.planning.memory import memory_lines
from mgpo.planning.sizes import known_size
from mgpo.planning.validate import validate_recipe
from mgpo.training.run import parse

RECIPES = Path(mgpo.__file__).parent / "recipes"
SHIPPED = sorted(RECIPES.glob("*.yaml"))
PAPER = ("qwen2_5_vl_3b_mgpo.yaml", "qwen2_5_vl_7b_mgpo.yaml")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """mgpo-tiny's configuration and processor: a folder without weights, so that loading any would fail."""
    from mgpo.tiny.assemble import build_processor
    from mgpo.tiny.model import tiny_config
    from mgpo.tiny.tokenizer import special_ids

    folder = tmp_path_factory.mktemp("no_weights")
    processor = build_processor()
    processor.save_pretrained(folder)
    tiny_config(special_ids(processor.tokenizer)).save_pretrained(folder)
    (folder / "config.yaml").write_text("min_pixels: 15680\nmax_pixels: 28224\n")
    return str(folder)


@pytest.fixture
def recipe(tmp_path, checkpoint):
    """Writes a recipe for the tiny checkpoint; returns its path."""

    def write(**settings):
        path = tmp_path / "recipe.yaml"
        base = {"model_name_or_path": checkpoint, "num_generations": 8, "per_device_train_batch_size": 16}
        path.write_text(yaml.safe_dump(base | settings))
        return path

    return write


def starting(lines, start):
    return [line for line in lines if line.startswith(start)]


def refused(path, *overrides):
    with pytest.raises(ValueError) as error:
        validate_recipe(path, list(overrides))
    return str(error.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_validates(path):
    lines = validate_recipe(path, [])
    assert starting(lines, "visual tokens") or starting(lines, "note: the model's pixel budget")
    assert bool(starting(lines, "longest episode")) == ("sft" not in path.stem)


def test_there_are_recipes():
    assert len(SHIPPED) >= 6


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_batches_on_its_32_gpus(name):
    text = "\n".join(validate_recipe(RECIPES / name, ["--num_gpus", "32"]))
    assert "4 per device x 32 batches x 32 devices = 4096 = 512 questions x 8" in text
    assert "4 per device x 8 batches x 32 devices = 1024 = 128 questions x 8; 4 updates per generation" in text
    assert "old log-probabilities: recomputed" in text and "320 updates = 80 generations = 40960 questions" in text
    assert "256 to 1280 per image" in text and "the model's context holds 128000" in text


def test_the_paper_s_recipes_differ_in_the_model_alone():
    small, large = (yaml.safe_load((RECIPES / name).read_text()) for name in PAPER)
    assert {key for key in small | large if small.get(key) != large.get(key)} == {"model_name_or_path", "output_dir"}
    paper = {"learning_rate": 1e-6, "lr_scheduler_type": "constant", "beta": 0.01, "epsilon": 0.2, "temperature": 1.0}
    assert {key: large[key] for key in paper} == paper


def test_the_longest_episode_is_the_trainer_s(recipe):
    path = recipe(max_grounding_tokens=28, max_answer_tokens=6, max_reply_tokens=300)
    (line,) = starting(validate_recipe(path, []), "longest episode")
    assert "300 question + 38 overview + 28 grounding + 300 reply + 38 crop + 6 answer = 710 tokens" in line
    assert "the model's context holds 2048" in line


def test_an_unknown_key_is_refused_with_a_suggestion(recipe):
    assert "unknown setting 'lerning_rate'. Did you mean 'learning_rate'?" in refused(recipe(lerning_rate=1e-6))
    assert "Did you mean 'max_pixels'?" in refused(recipe(), "--max_pixel", "1000")


def test_rollouts_that_are_no_whole_groups_are_refused(recipe):
    path = recipe(per_device_train_batch_size=3, gradient_accumulation_steps=4)
    message = refused(path)
    assert "3 per_device_train_batch_size x 4 gradient_accumulation_steps x 1 device = 12 rollouts" in message
    assert "num_generations=8" in message and "--num_gpus" in message
    assert "Set per_device_train_batch_size to 2 or 4, or num_generations to 6." in message
    assert "= 3 questions x 8" in "\n".join(validate_recipe(path, ["--num_gpus", "2"]))


def test_a_too_small_max_completion_length_is_refused_with_what_fits(recipe):
    path = recipe(max_grounding_tokens=28, max_answer_tokens=6, max_reply_tokens=300)
    message = refused(path, "--max_completion_length", "371")
    assert "28 grounding + 300 reply + 38 crop + 6 answer: 372 tokens" in message
    assert validate_recipe(path, ["--max_completion_length", "372"])


def test_an_episode_beyond_the_context_is_refused(recipe):
    assert "but the model's context is 2048 tokens" in refused(recipe(max_answer_tokens=2000))
    assert "takes 2204 tokens" in refused(recipe(max_reply_tokens=900, max_answer_tokens=200))


def test_old_logprobs_and_misaligned_updates(recipe):
    aligned = validate_recipe(recipe(gradient_accumulation_steps=2), [])
    assert starting(aligned, "old log-probabilities: not recomputed")
    twice = validate_recipe(recipe(gradient_accumulation_steps=2, num_iterations=2), [])
    assert starting(twice, "old log-probabilities: recomputed") and not starting(twice, "note: some updates mix")
    mixed = validate_recipe(recipe(gradient_accumulation_steps=2, steps_per_generation=3), [])
    assert "1.5 updates per generation" in "\n".join(mixed) and starting(mixed, "note: some updates mix")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_steps: [1]", "max_steps must be a whole number, not [1]"),
        ("num_generations: 8.0", "num_generations must be a whole number, not 8.0"),
        ("max_steps: many", "max_steps must be a whole number, not 'many'"),
        ("num_generations: 1", "at least 2 rollouts"),
        ("method: magic", "Choose one of: mgpo, grpo, direct, sft"),
        ("method: [", "cannot be read"),
        ("", "must contain a YAML mapping"),
        ("model_name_or_path: ./nowhere", "The model folder ./nowhere does not exist"),
        ("dataset_size: 0", "needle has 0 questions, but one generation takes 1"),
    ],
)
def test_what_cannot_run_is_said_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert sentence in refused(path)


def test_a_missing_dataset_is_a_note_and_a_short_one_an_error(recipe, tmp_path):
    assert starting(
        validate_recipe(recipe(dataset_name="data/none"), []), "note: dataset: data/none is not a file or folder"
    )
    folder = tmp_path / "data"
    folder.mkdir()
    assert starting(
        validate_recipe(recipe(dataset_name=str(folder)), []), f"note: dataset: {folder} has no train.jsonl"
    )
    (folder / "train.jsonl").write_text('{"question": "?"}\n' * 2)
    assert "row 1 and 1 more row: it has no 'image' and no 'answer'" in refused(recipe(dataset_name=str(folder)))
    (folder / "a.png").write_bytes(b"")
    row = {"image": "a.png", "question": "?", "choices": ["red", "blue"], "answer": "A"}
    (folder / "train.jsonl").write_text((json.dumps(row) + "\n") * 2)
    assert f"dataset: {folder}, 2 questions" in "\n".join(validate_recipe(recipe(dataset_name=str(folder)), []))
    assert "but one generation takes 4" in refused(recipe(dataset_name=str(folder)), "--num_gpus", "2")


def test_a_gpu_recipe_validates_without_a_gpu(recipe):
    lines = validate_recipe(recipe(bf16=True, tf32=True), [])
    assert starting(lines, "note: mixed precision")


def test_the_memory_estimate_is_labelled_and_counts_what_stays():
    data = DataArguments(model_name_or_path="Qwen/Qwen2.5-VL-7B-Instruct", dtype="bfloat16")
    config = MGPOConfig(use_cpu=True, beta=0.01)
    parts = {"question": 200, "overview": 300, "grounding": 50, "reply": 100, "crop": 300, "answer": 50}
    lines = memory_lines(data, config, 32, parts, 298)
    full, master, update, cache, peak = starting(lines, "memory (rough estimate)")
    assert "15.4 weights + 15.4 gradients + 30.9 AdamW states + 15.4 reference model = 77.2 GiB" in full
    assert "2.4 on each of 32 GPUs" in full and "139.0 GiB" in master and "8 rollouts x 1000 tokens" in cache
    assert "activations" in update and "GiB on each GPU at once" in peak
    assert len(lines) - 5 == len(starting(lines, "assumes: ")) >= 5
    data.use_peft, data.lora_r = True, 32
    adapters = known_size(data.model_name_or_path).adapter_parameters(32, data.lora_target_modules)
    assert adapters == 80_740_352, "PEFT's own count for this rank and these targets"
    assert "15.4 weights + 1.2 LoRA of 81 M" in memory_lines(data, config, 1, parts, 298)[0]
    data.load_in_4bit = True
    assert "6.53 B of them in 4 bits: 6.4 weights" in memory_lines(data, config, 1, parts, 298)[0]
    assert memory_lines(DataArguments(), config, 1, parts, 298) == []


@pytest.mark.parametrize("model", ["Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3.5-4B"])
def test_a_hub_s_model_is_known_without_a_download(recipe, model):
    lines = validate_recipe(recipe(model_name_or_path=model, dtype="float32"), [])
    assert (
        "256 to 1280 per image (262144 to 1310720 pixels, 32 x 32 pixels each)" in starting(lines, "visual tokens")[0]
    )
    assert "the model's context holds 262144" in starting(lines, "longest episode")[0]
    assert starting(lines, "memory (rough estimate)") and starting(lines, "assumes: ")


def test_training_parses_every_shipped_recipe_as_it_is():
    """Regression: `report_to: Any` made argparse refuse its own default, so no recipe could be trained."""
    data, config = parse(["--config", str(RECIPES / "tiny_mgpo.yaml")])
    assert data.dataset_name == "needle" and config.report_to in ("none", [])


def test_the_command_prints_the_lines(recipe):
    result = CliRunner().invoke(app, ["validate", str(recipe()), "--num_gpus", "2"])
    assert result.exit_code == 0 and "on 2 devices" in result.output, result.output


def test_rows_that_will_be_skipped_are_counted(tmp_path, recipe):
    from PIL import Image

    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    row = '{"image": "a.png", "question": "Which?", "choices": ["red", "blue"], "answer": "%s"}\n'
    (tmp_path / "train.jsonl").write_text((row % "A") * 40 + row % "C")
    path = recipe(dataset_name=str(tmp_path / "train.jsonl"))
    assert "1 of 41 rows" in refused(path)
    text = "\n".join(validate_recipe(path, ["--on_bad_row", "skip"]))
    skipped = "1 row cannot be used and will be skipped; the first is "
    assert "40 questions" in text and skipped in text and "row 41" in text


def test_data_with_more_images_than_planned_is_refused(tmp_path, rows):
    """As training refuses it: with what to set."""
    lines = [{"images": [rows[0]["image"], rows[1]["image"]], "question": "Which?", "answer": "x"}] * 16
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe, asked = (
        Path(mgpo.__file__).parent / "recipes/tiny_mgpo.yaml",
        ["--dataset_name", str(tmp_path / "two.jsonl")],
    )
    with pytest.raises(ValueError, match="questions about 2 images, more than max_images=1. Set max_images to 2"):
        validate_recipe(recipe, asked)
    assert validate_recipe(recipe, [*asked, "--max_images", "2"])

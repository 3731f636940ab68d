"""`mgpo train`: settings that are read as they were meant, the supervised baseline, and what a run folder tells."""

import shutil

import datasets
import pytest
import torch
import yaml

from mgpo.images.imaging import PixelBudget
from mgpo.policies.loading import budget_of, load_processor
from mgpo.training import run as training
from mgpo.training.run import build_trainer, parse, train

RUN = [
    "--per_device_train_batch_size", "2", "--num_generations", "2", "--learning_rate", "1e-3", "--max_steps", "2",
    "--no_gradient_checkpointing", "--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "1", "--save_strategy", "no",
]  # fmt: skip

TINY_RUN = [
    *RUN, "--save_strategy", "steps", "--save_steps", "2", "--max_grounding_tokens", "12", "--max_answer_tokens", "6",
    "--max_reply_tokens", "160",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "method: mgpo\nlearning_rate: 1.0e-6\nnum_generations: 4\nper_device_train_batch_size: 8\nuse_cpu: true\n"
    )
    return file


def read(recipe, *more):
    return parse(["--config", str(recipe), "--output_dir", str(recipe.parent / "run"), *more])


def test_a_recipe_is_read(recipe):
    data, config = read(recipe)
    assert (config.learning_rate, config.num_generations, config.method) == (1e-6, 4, "mgpo")
    assert data.model_name_or_path == "mgpo-tiny" and data.dataset_name == "needle"


def test_the_command_line_wins(recipe):
    _, config = read(recipe, "--learning_rate", "5e-4", "--method", "grpo")
    assert (config.learning_rate, config.method, config.num_generations) == (5e-4, "grpo", 4)


def test_an_unknown_key_of_a_recipe_is_refused_with_a_suggestion(recipe):
    recipe.write_text(recipe.read_text() + "max_grounding_token: 12\n")
    with pytest.raises(ValueError, match="recipe.yaml: unknown setting 'max_grounding_token'.*'max_grounding_tokens'"):
        read(recipe)


@pytest.mark.parametrize("flag", ["--learning_rat", "--learning-rat", "--learning_rat=1"])
def test_an_unknown_flag_is_refused_with_a_suggestion(recipe, flag):
    with pytest.raises(ValueError, match="command line: unknown setting 'learning_rat'.*'learning_rate'"):
        read(recipe, flag, "1")


def test_a_recipe_that_is_no_yaml_is_a_sentence(tmp_path):
    (tmp_path / "broken.yaml").write_text("method: [")
    with pytest.raises(ValueError, match="broken.yaml cannot be read"):
        parse(["--config", str(tmp_path / "broken.yaml")])


def test_a_missing_recipe_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml does not exist"):
        parse(["--config", str(tmp_path / "nowhere.yaml")])


@pytest.mark.parametrize("recipe", [f"tiny_{name}.yaml" for name in ("mgpo", "grpo", "direct", "sft")])
def test_shipped_recipes_are_read(recipe, tmp_path):
    from importlib.resources import files

    data, config = parse(["--config", str(files("mgpo") / "recipes" / recipe), "--output_dir", str(tmp_path)])
    assert data.model_name_or_path == "mgpo-tiny" and config.method in recipe


def test_no_secret_is_written(recipe, random_tiny, monkeypatch):
    data, config = read(recipe, "--hub_token", "hf_SECRET", "--model_name_or_path", str(random_tiny))
    config.model_init_kwargs = {"token": "hf_SECRET", "dtype": "float32"}
    folder = recipe.parent / "run"
    folder.mkdir()
    training.write_run_files(folder, training.plain_settings(data, config))
    written = (folder / "config.yaml").read_text() + (folder / "environment.json").read_text()
    assert "hf_SECRET" not in written
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["learning_rate"] == 1e-6 and settings["max_grounding_tokens"] == 128
    assert settings["model_init_kwargs"]["dtype"] == "float32"


@pytest.fixture
def sft(random_tiny, tmp_path, rows, monkeypatch):
    monkeypatch.setattr(training, "_questions", lambda *_: datasets.Dataset.from_list(rows))
    argv = ["--model_name_or_path", str(random_tiny), "--output_dir", str(tmp_path / "run"), "--method", "sft", *RUN]
    return parse(argv)


def test_the_supervised_baseline_learns_the_short_answer_only(sft, rows):
    trainer = build_trainer(*sft)
    tokenizer, image_id = trainer.processing_class.tokenizer, trainer.processing_class.image_token_id
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    for i in range(3):
        on = batch["labels"][i] != -100
        learned = tokenizer.decode(batch["labels"][i][on])
        assert learned == f"\\boxed{{{rows[i]['answer']}}}<|im_end|>"
        assert torch.equal(batch["labels"][i][on], batch["input_ids"][i][on])
        text = tokenizer.decode(batch["input_ids"][i])
        assert rows[i]["question"] in text and "A. H\nB. K" in text and "Which region" not in text
    features = int((batch["image_grid_thw"].prod(-1) // 4).sum())
    assert int((batch["input_ids"] == image_id).sum()) == features


def test_the_supervised_baseline_trains(sft):
    data, config = sft
    config.freeze_vision_tower = True
    folder = train(data, config)
    assert (folder / "model.safetensors").is_file() and (folder / "config.yaml").is_file()
    from transformers import Qwen2_5_VLForConditionalGeneration

    before = Qwen2_5_VLForConditionalGeneration.from_pretrained(data.model_name_or_path).state_dict()
    after = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed) and not any(".visual." in name for name in changed)


def test_a_supervised_model_is_asked_with_the_images_it_was_trained_on(sft, tmp_path):
    """Its base states a budget of its own; without it in the run's settings the model was asked with the method's."""
    data, config = sft
    data.model_name_or_path = str(shutil.copytree(data.model_name_or_path, tmp_path / "base"))
    (tmp_path / "base" / "config.yaml").write_text(f"min_pixels: {20 * 784}\nmax_pixels: {36 * 784}\n")
    folder = train(data, config)
    assert budget_of(load_processor(str(folder))) == budget_of(load_processor(data.model_name_or_path)) != PixelBudget()


def test_the_supervised_prompt_is_the_one_that_direct_evaluation_uses(sft, rows, processor):
    from mgpo.images.imaging import open_image
    from mgpo.method.episode import Episode
    from mgpo.method.protocol import Method, Protocol
    from mgpo.method.question import Question
    from mgpo.policies.tokens import TurnTokens
    from mgpo.tiny.views import BUDGET

    trainer = build_trainer(*sft)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    episode = Episode(
        Question.from_row(rows[0]), open_image(rows[0]["image"]), Protocol(method=Method.DIRECT, budget=BUDGET)
    )
    asked = TurnTokens(processor).opening(episode.opening())
    first = int((batch["labels"][0] != -100).int().argmax())
    ids = batch["input_ids"][0][:first][batch["attention_mask"][0][:first].bool()]
    assert ids.tolist() == asked


def test_a_resumed_supervised_run_starts_from_its_weights(sft):
    """transformers saves a vision-language model under other names than it has in memory, and loads none of them."""
    data, config = sft
    config.save_strategy, config.save_steps = "steps", 2
    folder = train(data, config)
    trainer = build_trainer(data, config)
    trained = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer._load_from_checkpoint(str(folder / "checkpoint-2"))
    from transformers import Qwen2_5_VLForConditionalGeneration

    saved = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).state_dict()
    now = trainer.model.state_dict()
    assert any(not torch.equal(trained[name], now[name]) for name in now)
    assert all(torch.equal(saved[name], now[name]) for name in now)


def test_a_run_folder_s_settings_are_a_recipe(random_tiny, rows, tmp_path, monkeypatch):
    """`config.yaml` is written as resolved, and can be read again to the same settings."""
    monkeypatch.setattr(training, "_questions", lambda *_: datasets.Dataset.from_list(rows))
    argv = ["--model_name_or_path", str(random_tiny), "--output_dir", str(tmp_path / "run"), *TINY_RUN]
    data, config = parse(argv)
    folder = training.train(data, config)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["max_pixels"] == 36 * 28 * 28 and settings["max_completion_length"] > 0
    again = training.plain_settings(*parse(["--config", str(folder / "config.yaml")]))
    assert {key for key in again if again[key] != settings[key] and not training.MAY_CHANGE.fullmatch(key)} == set()


def test_a_finished_run_is_neither_trained_further_nor_mixed_with_another(random_tiny, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_questions", lambda *_: datasets.Dataset.from_list(rows))
    argv = ["--model_name_or_path", str(random_tiny), "--output_dir", str(tmp_path / "run"), *TINY_RUN]
    folder = training.train(*parse(argv))
    before = (folder / "model.safetensors").read_bytes()
    training.train(*parse(argv))
    assert (folder / "model.safetensors").read_bytes() == before
    assert not (folder / "checkpoint-3").exists()
    with pytest.raises(ValueError, match="other settings .learning_rate"):
        training.train(*parse([*argv, "--learning_rate", "3e-4"]))
    with pytest.raises(ValueError, match="a run of 2 steps already"):
        training.train(*parse([*argv, "--max_steps", "1"]))

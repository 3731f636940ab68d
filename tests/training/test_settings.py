"""What settings change in training: method, turns, frozen parts, LoRA, evaluation, and where images come from."""

import json

import pytest
import torch
from peft import LoraConfig
from support import CUT, MIXED, PROSE, SMALL, TALL, WIDE, Script, box, make_trainer, rollouts, unpadded
from transformers import Qwen2_5_VLForConditionalGeneration

from mgpo.config import DataArguments
from mgpo.training.weights import peft_config


def test_single_turn_runs_and_logs_grounding(random_tiny, tmp_path, rows, monkeypatch):
    said = (box(WIDE) + "\n\\boxed{A}", PROSE + " \\boxed{A}", (box(TALL), CUT), box((70, 70, 20, 20)) + "\\boxed{B}")
    Script([said]).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows, method="grpo")
    output = trainer._generate_and_score_completions(rollouts(rows))
    assert output["tool_mask"].all() and output["num_images"] == [1, 1, 1, 1]
    for i in range(4):
        prompt, completion, _ = unpadded(output, i)
        assert completion == Script.ids(trainer.turn_tokens, said[i])
        grid = output["image_grid_thw"][i]
        assert prompt.count(trainer.turn_tokens.image_token_id) == grid.prod() // 4
        assert prompt == trainer.turn_tokens.opening(trainer._episodes[i].user_turns[0])
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logged["grounding/valid_share"] == 0.5 and logged["turns/1_truncated"] == 0.25
    assert logged["reward"] == 0.75
    assert logged["tools/call_frequency"] == 0 and not [name for name in logged if name.startswith("turns/2")]


def test_single_turn_trains(random_tiny, tmp_path, rows):
    trainer = make_trainer(random_tiny, tmp_path, rows, method="grpo", extra_reward_funcs=["support.even_ids"])
    trainer.train()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["grounding/valid_share"] == 0 and line["grad_norm"] > 0


def test_three_turns_with_an_early_answer(random_tiny, tmp_path, rows, monkeypatch):
    script = Script(
        (
            (box(WIDE), box(WIDE), PROSE, box(TALL)),
            ("\\boxed{A}", box(SMALL), box(SMALL), ("no", CUT)),
            ("thrown away", "\\boxed{A}", "\\boxed{C}", "\\boxed{B}"),
        )
    ).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows, max_turns=3)
    output = trainer._generate_and_score_completions(rollouts(rows))
    episodes = trainer._episodes
    assert len(script.calls) == 3, "all samples take part in every call: it is collective"
    assert [len(episode.model_turns) for episode in episodes] == [2, 3, 3, 3]
    assert output["num_images"] == [2, 3, 3, 3]
    assert output["advantages"].sign().tolist() == [0, 0, -1, 1]  # right, right; wrong, right
    tokenizer = trainer._tokenizer
    for i, episode in enumerate(episodes):
        _, ids, mask = unpadded(output, i)
        learned = [t for t, m in zip(ids, mask) if m]
        spoken = [turn[i] for turn in script.turns][: len(episode.model_turns)]
        assert learned == [t for said in spoken for t in Script.ids(trainer.turn_tokens, said)]
    assert tokenizer.decode(unpadded(output, 0)[1]).endswith("\\boxed{A}<|im_end|>")
    assert trainer._metrics["train"]["rewards/accuracy_reward/mean"][-1] == 0.75


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(before, model):
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


@pytest.mark.parametrize("frozen", [True, False])
def test_freezing_the_vision_tower(random_tiny, tmp_path, rows, frozen, monkeypatch):
    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows, freeze_vision_tower=frozen, save_strategy="no")
    before = weights(trainer.model)
    trainer.train()
    changed = moved(before, trainer.model)
    vision = {name for name in before if ".visual." in name}
    assert vision and before.keys() - vision
    assert not changed & vision if frozen else any(".visual." in name and "qkv" in name for name in changed)
    assert any("language_model" in name for name in changed)


def test_lora_trains_its_adapters_only(random_tiny, tmp_path, rows, monkeypatch):
    Script(MIXED).install(monkeypatch)
    lora = peft_config(DataArguments(use_peft=True, lora_r=4, lora_alpha=8))
    assert isinstance(lora, LoraConfig)
    trainer = make_trainer(random_tiny, tmp_path, rows, peft_config=lora)
    before = weights(trainer.model)
    trainer.train()
    changed = moved(before, trainer.model)
    assert changed and all("lora_" in name for name in changed)
    assert all("language_model" in name for name in changed)


def test_a_run_leaves_metrics_and_trajectories(random_tiny, tmp_path, rows, monkeypatch):
    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows, max_steps=2, trajectories_every=1, trajectories_kept=1)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all({"reward", "grad_norm", "grounding/valid_share", "turns/1_truncated"} <= line.keys() for line in steps)
    for step in (1, 2):
        saved = (tmp_path / "trajectories" / f"step_{step:06d}.jsonl").read_text().splitlines()
        row = json.loads(saved[0])
        assert len(saved) == 1 and row["turns"][0]["status"] == "valid" and row["end"] == "answered"
        assert (tmp_path / "trajectories" / row["overview"]).is_file()
        assert (tmp_path / "trajectories" / row["turns"][0]["shown"]).is_file()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"trajectories_every": 2}, [1, 3, 5, 6]),
        ({"trajectories_every": 4, "steps_per_generation": 4}, [1, 5]),  # made before steps 1 and 5
        ({"trajectories_every": 20, "steps_per_generation": 3, "gradient_accumulation_steps": 2}, [1, 5]),  # 1, 2, 4, 5
        ({"trajectories_every": 3, "steps_per_generation": 2}, [1, 3, 5]),  # step 4 is due, and learns from those of 3
    ],
)
def test_rollouts_of_the_first_every_nth_and_the_last_step_are_saved(
    settings, expected, random_tiny, tmp_path, rows, monkeypatch
):
    Script(MIXED).install(monkeypatch)
    make_trainer(random_tiny, tmp_path, rows * 4, max_steps=6, trajectories_kept=1, **settings).train()
    saved = [int(file.stem.removeprefix("step_")) for file in sorted((tmp_path / "trajectories").glob("*.jsonl"))]
    assert saved == expected
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert set(saved) <= {line["step"] for line in lines if "loss" in line}


def test_evaluation_of_the_trainer_logs_and_leaves_no_gradient(random_tiny, tmp_path, rows, monkeypatch):
    import datasets

    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(
        random_tiny, tmp_path, rows, eval_dataset=datasets.Dataset.from_list(rows[:2]), per_device_eval_batch_size=4
    )
    metrics = trainer.evaluate()
    assert metrics["eval_grounding/valid_share"] == 0.5 and metrics["eval_reward"] == 0.5
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_loaded_model_with_its_processor_works_too(random_tiny, tmp_path, rows, processor, monkeypatch):
    from mgpo.policies.loading import load_processor

    Script(MIXED).install(monkeypatch)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny)
    trainer = make_trainer(model, tmp_path, rows)
    assert trainer.processing_class.tokenizer.vocab_size == load_processor(str(random_tiny)).tokenizer.vocab_size
    trainer._generate_and_score_completions(rollouts(rows))


def test_unscripted_turns_keep_their_limits(random_tiny, tmp_path, rows):
    trainer = make_trainer(random_tiny, tmp_path, rows)
    torch.manual_seed(0)
    output = trainer._generate_and_score_completions(rollouts(rows))
    banned = set(trainer.turn_tokens.banned_ids())
    for i in range(4):
        _, ids, mask = unpadded(output, i)
        first = mask.index(0)
        assert 1 <= first <= 24
        assert 1 <= sum(mask) - first <= 6
        assert not banned & {token for token, learned in zip(ids, mask) if learned}
    assert trainer.generation_config.max_new_tokens == trainer.args.max_completion_length


@pytest.mark.parametrize("shared", [True, False])
def test_evaluation_during_training_decodes_greedily(random_tiny, tmp_path, rows, shared):
    """It sampled at temperature 1, so `load_best_model_at_end` chose by chance: the same words as `mgpo eval` now."""
    import datasets

    from mgpo.method.episode import Episode
    from mgpo.method.question import Question
    from mgpo.policies.local import LocalPolicy
    from mgpo.policies.turn_loop import TurnLimits, run_episodes

    trainer = make_trainer(
        random_tiny, tmp_path / "run", rows, eval_dataset=datasets.Dataset.from_list(rows[:2]), shared_prefix=shared,
        per_device_eval_batch_size=4,
    )  # fmt: skip
    heard = []
    keep = trainer._calculate_rewards

    def listening(*args):
        heard.append([[turn.text for turn in episode.model_turns] for episode in trainer._episodes])
        return keep(*args)

    trainer._calculate_rewards = listening
    torch.manual_seed(1)
    trainer.evaluate()
    policy = LocalPolicy.load(str(random_tiny))
    greedy = [Episode(Question.from_row(row), row["image"], trainer.protocol) for row in rows[:2]]
    run_episodes(policy, greedy, TurnLimits(trainer.args.max_grounding_tokens, trainer.args.max_answer_tokens))
    said = [[turn.text for turn in episode.model_turns] for episode in greedy]
    assert heard == [[said[0], said[0], said[1], said[1]]]
    assert trainer.generation_config.do_sample, "training samples"


def test_rollouts_of_an_image_column_share_one_photograph(random_tiny, tmp_path, rows):
    """`datasets.Image` decodes anew for each rollout: 512 tokens were prefilled for four of them instead of 128."""
    import datasets

    data = datasets.Dataset.from_list(rows[:1]).cast_column("image", datasets.Image())
    trainer = make_trainer(random_tiny, tmp_path, rows, num_generations=4)
    trainer._generate_and_score_completions([data[0] for _ in range(4)])
    assert len({id(episode.originals[0]) for episode in trainer._episodes}) == 1
    assert len({id(episode.user_turns[0].image) for episode in trainer._episodes}) == 1


def test_an_image_in_memory_is_known_by_its_pixels():
    """A column of `datasets.Image` gives a new object for each rollout; four rollouts prefilled their prompt four times."""
    from PIL import Image

    from mgpo.images.identity import image_key

    one, same, other = (Image.new("RGB", (30, 20), colour) for colour in ("red", "red", "blue"))
    assert image_key(one) == image_key(same) != image_key(other)
    assert image_key(one) != image_key(one.resize((20, 30)))
    palettes = [Image.new("P", (30, 20)) for _ in range(2)]
    for image, colour in zip(palettes, ((255, 0, 0), (0, 0, 255))):
        image.putpalette(colour)
    assert palettes[0].tobytes() == palettes[1].tobytes() and image_key(palettes[0]) != image_key(palettes[1])


def test_a_model_trained_from_python_is_asked_as_it_was_trained(random_tiny, tmp_path, rows):
    """As the example of docs/api.md: train, save, load. Its folder had no config.yaml, so other limits and turns were used."""
    from mgpo.asking.grounded import GroundedVQA

    trainer = make_trainer(
        random_tiny, tmp_path / "run", rows, max_turns=3, max_grounding_tokens=20, max_answer_tokens=9, max_pixels=25_088,
        min_box_side=14, max_reply_tokens=170, save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    for folder in ("run", "run/checkpoint-1", "elsewhere"):
        loaded = GroundedVQA.from_pretrained(str(tmp_path / folder), protocol=None)
        assert loaded.protocol == trainer.protocol
        assert (loaded.limits.grounding, loaded.limits.answer) == (20, 9)
    assert loaded.ask(rows[0]["image"], "Which?", ["14", "41"]).turns

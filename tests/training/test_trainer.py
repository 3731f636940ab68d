"""The trainer: which tokens are learned, which images they see, what is logged, and what it refuses to start with."""

import json

import pytest
import torch
from peft import LoraConfig
from support import CUT, MIXED, PROSE, SMALL, TALL, WIDE, Script, box, make_trainer, rollouts, unpadded
from transformers import Qwen2_5_VLForConditionalGeneration

from mgpo.config import DataArguments
from mgpo.method.protocol import ASK_LETTER, SHOW_AGAIN, SHOW_CROP, End
from mgpo.training.weights import peft_config


@pytest.fixture
def mixed(random_tiny, tmp_path, rows, monkeypatch):
    """A trainer, and its output for four scripted episodes of two questions."""
    script = Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows)
    return trainer, trainer._generate_and_score_completions(rollouts(rows)), script


def environment_ids(tokenizer, intro, row, image):
    """The environment's turn, written out by hand: everything between the two turns of the model."""
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"])]
    text = "\n".join([intro, row["question"], *lines, ASK_LETTER])
    pads = "<|image_pad|>" * ((image.width // 28) * (image.height // 28))
    said = f"\n<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer(said, add_special_tokens=False)["input_ids"]


def test_the_mask_is_one_on_sampled_tokens_and_zero_on_all_others(mixed, rows):
    trainer, output, _ = mixed
    tokenizer = trainer._tokenizer
    eos = tokenizer.eos_token_id
    intros = (SHOW_CROP, SHOW_AGAIN, SHOW_CROP, SHOW_AGAIN)
    for i, intro in enumerate(intros):
        row = rows[i // 2]
        _, ids, mask = unpadded(output, i)
        first, last = Script.ids(tokenizer, MIXED[0][i]), Script.ids(tokenizer, MIXED[1][i])
        forced = [] if first[-1] == eos else [eos]
        environment = environment_ids(tokenizer, intro, row, trainer._episodes[i].user_turns[1].image)
        assert ids == first + forced + environment + last
        assert mask == [1] * len(first) + [0] * len(forced) + [0] * len(environment) + [1] * len(last)
    assert [MIXED[0][i][-1] == CUT for i in range(4)] == [False, True, False, False]


def test_advantages_are_group_normalised_answers(mixed):
    trainer, output, _ = mixed
    # q0's answer is A: right, wrong. q1's answer is B: right, cut off.
    half = 0.5 / (0.5**0.5 + 1e-4)
    assert output["advantages"].tolist() == pytest.approx([half, -half, half, -half], abs=1e-5)
    assert [episode.end for episode in trainer._episodes] == [
        End.ANSWERED, End.ANSWERED, End.ANSWERED, End.TRUNCATED,
    ]  # fmt: skip


def test_image_tokens_equal_image_features_in_every_sample(mixed, processor):
    trainer, output, _ = mixed
    image_id = processor.image_token_id
    assert output["num_images"] == [2, 2, 2, 2]
    features = (output["image_grid_thw"].prod(-1) // 4).view(4, 2).sum(-1).tolist()
    sizes = {tuple(grid) for grid in output["image_grid_thw"].tolist()}
    assert len(sizes) >= 3, "the crops were meant to differ in size"
    for i in range(4):
        prompt, completion, _ = unpadded(output, i)
        assert (prompt + completion).count(image_id) == features[i]
        whole = torch.cat([output["prompt_ids"][i], output["completion_ids"][i]])
        assert torch.equal(output["mm_token_type_ids"][i].bool(), whole == image_id)
    shown = [turn.image for episode in trainer._episodes for turn in episode.user_turns]
    expected = processor.image_processor(images=shown, return_tensors="pt")
    assert torch.equal(output["pixel_values"], expected["pixel_values"])
    assert torch.equal(output["image_grid_thw"], expected["image_grid_thw"])


def test_turn_two_is_sampled_with_the_whole_history(mixed):
    trainer, output, script = mixed
    first, second = script.calls
    for i, episode in enumerate(trainer._episodes):
        prompt, completion, _ = unpadded(output, i)
        last = Script.ids(trainer._tokenizer, MIXED[1][i])
        assert first["ids"][i] == prompt
        assert second["ids"][i] == (prompt + completion)[: -len(last)]
        assert second["images"][i] == [turn.image for turn in episode.user_turns]
    pixels = trainer.turn_tokens.pixels([image for shown in second["images"] for image in shown])["pixel_values"]
    assert torch.equal(pixels, output["pixel_values"])


def test_invalid_boxes_show_the_same_overview_again(mixed):
    trainer, _, _ = mixed
    again = [episode.user_turns[1].image is episode.user_turns[0].image for episode in trainer._episodes]
    assert again == [False, True, False, True]


def test_gold_boxes_change_nothing_that_is_learned(random_tiny, tmp_path, rows):
    outputs = []
    for name, kept in (("with", rows), ("without", [{k: v for k, v in r.items() if k != "gold_boxes"} for r in rows])):
        trainer = make_trainer(random_tiny, tmp_path / name, kept, extra_reward_funcs=["support.even_ids"])
        torch.manual_seed(3)
        outputs.append(trainer._generate_and_score_completions(rollouts(kept)))
        metrics = trainer._metrics["train"]
        assert ("grounding/hit_rate" in metrics) == (name == "with")
    with_boxes, without = outputs
    for key in ("prompt_ids", "completion_ids", "tool_mask", "advantages", "pixel_values"):
        assert torch.equal(with_boxes[key], without[key]), key
    assert with_boxes["advantages"].abs().sum() > 0


def test_gold_boxes_reach_no_reward_function(random_tiny, tmp_path, rows, monkeypatch):
    seen = {}
    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows)
    trainer.reward_funcs[0] = lambda completions, **columns: seen.update(columns) or [0.0] * len(completions)
    trainer._generate_and_score_completions(rollouts(rows))
    assert "answer" in seen and not [name for name in seen if "gold" in name or name == "image"]


def test_a_dropped_image_raises(random_tiny, tmp_path, rows, monkeypatch):
    """TRL drops all images of a batch without a word when one sample does not match."""
    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows)
    loop = trainer._tool_call_loop

    def cut_a_placeholder(*args):
        out = loop(*args)
        image_id = trainer.turn_tokens.image_token_id
        at = out[2][1].index(image_id)
        del out[2][1][at], out[0][1][at]
        return out

    monkeypatch.setattr(trainer, "_tool_call_loop", cut_a_placeholder)
    with pytest.raises(RuntimeError, match="Sample .q0. holds 69 image tokens for 70 image features"):
        trainer._generate_and_score_completions(rollouts(rows))


def test_a_sampled_placeholder_raises_and_names_the_question(random_tiny, tmp_path, rows, monkeypatch):
    turns = [list(turn) for turn in MIXED]
    turns[1][2] = "<|image_pad|>"
    Script(turns).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows)
    with pytest.raises(RuntimeError, match="'q1'"):
        trainer._generate_and_score_completions(rollouts(rows))


def test_a_path_is_opened_once_per_question(random_tiny, tmp_path, rows, monkeypatch):
    """TRL hands every rollout its own copy of the row, so the path is another string each time."""
    from mgpo.images import imaging

    opened, real = [], imaging.open_image
    monkeypatch.setattr(imaging, "open_image", lambda source, most: opened.append(source) or real(source, most))
    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer._generate_and_score_completions(batch)
    assert len(opened) == len({row["id"] for row in batch}) == 2


def test_images_are_not_gathered_for_logs(random_tiny, tmp_path, rows):
    """TRL's default gathers all images of every batch across processes."""
    trainer = make_trainer(random_tiny, tmp_path, rows)
    assert not trainer.log_multimodal
    trainer._generate_and_score_completions(rollouts(rows))
    logged = list(trainer._logs["prompt"])
    blocks = [
        block for prompt in logged for message in prompt for block in message["content"] if isinstance(block, dict)
    ]
    assert len(logged) == 4 and {"type": "image"} in blocks and not any("image" in block for block in blocks)


def test_an_episode_longer_than_the_model_is_refused(random_tiny, tmp_path, rows):
    with pytest.raises(ValueError, match="2048.*max_answer_tokens"):
        make_trainer(random_tiny, tmp_path, rows, max_answer_tokens=3000)


def test_a_question_longer_than_its_limit_is_named(random_tiny, tmp_path, rows, monkeypatch):
    Script(MIXED).install(monkeypatch)
    long = [rows[0], rows[1] | {"question": "Zażółć gęślą jaźń? " * 40}]
    trainer = make_trainer(random_tiny, tmp_path, long)
    with pytest.raises(ValueError, match="'q1'.*max_reply_tokens=160"):
        trainer._generate_and_score_completions(rollouts(long))


def test_why_boxes_were_rejected_is_logged(mixed):
    trainer, _, _ = mixed
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logged["grounding/valid_share"] == 0.5
    assert logged["grounding/rejected_no_json"] == 0.25
    assert logged["grounding/rejected_inverted"] == 0.25
    assert logged["grounding/rejected_outside"] == 0
    assert logged["turns/1_truncated"] == 0.25
    assert logged["turns/2_truncated"] == 0.25
    assert logged["tools/failure_frequency"] == 0.5
    assert 0 < logged["grounding/crop_area"] < 1
    first = [len(Script.ids(trainer._tokenizer, said)) for said in MIXED[0]]
    assert logged["turns/1_tokens"] == pytest.approx(sum(first) / 4)


def test_extra_rewards_are_added_by_dotted_path(random_tiny, tmp_path, rows, monkeypatch):
    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows, extra_reward_funcs=["support.even_ids"])
    output = trainer._generate_and_score_completions(rollouts(rows))
    rewards = []
    for i, right in enumerate((1.0, 0.0, 1.0, 0.0)):
        ids = unpadded(output, i)[1]
        rewards.append(right + sum(t % 2 == 0 for t in ids) / len(ids))
    assert trainer._metrics["train"]["reward"][-1] == pytest.approx(sum(rewards) / 4, abs=1e-5)
    assert "rewards/even_ids/mean" in trainer._metrics["train"]


@pytest.mark.parametrize("path", ["support.no_such", "no_such_module.f", "nodots"])
def test_an_unknown_extra_reward_is_a_sentence(random_tiny, tmp_path, rows, path):
    with pytest.raises(ValueError, match=f"extra_reward_funcs: '{path}' was not found"):
        make_trainer(random_tiny, tmp_path, rows, extra_reward_funcs=[path])


def test_single_turn_runs_and_logs_grounding(random_tiny, tmp_path, rows, monkeypatch):
    said = (box(WIDE) + "\n\\boxed{A}", PROSE + " \\boxed{A}", (box(TALL), CUT), box((70, 70, 20, 20)) + "\\boxed{B}")
    Script([said]).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows, method="grpo")
    output = trainer._generate_and_score_completions(rollouts(rows))
    assert "tool_mask" not in output and output["num_images"] == [1, 1, 1, 1]
    for i in range(4):
        prompt, completion, _ = unpadded(output, i)
        assert completion == Script.ids(trainer._tokenizer, said[i])
        grid = output["image_grid_thw"][i]
        assert prompt.count(trainer.turn_tokens.image_token_id) == grid.prod() // 4
        assert prompt == trainer.turn_tokens.opening(trainer._episodes[i].user_turns[0])
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logged["grounding/valid_share"] == 0.5 and logged["turns/1_truncated"] == 0.25
    assert logged["reward"] == 0.75
    assert not [name for name in logged if name.startswith("turns/2") or name.startswith("tools/")]


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
        assert learned == [t for said in spoken for t in Script.ids(tokenizer, said)]
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
    for step in (0, 1):
        saved = (tmp_path / "trajectories" / f"step_{step:06d}.jsonl").read_text().splitlines()
        row = json.loads(saved[0])
        assert len(saved) == 1 and row["turns"][0]["status"] == "valid" and row["end"] == "answered"
        assert (tmp_path / "trajectories" / row["overview"]).is_file()
        assert (tmp_path / "trajectories" / row["turns"][0]["shown"]).is_file()


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

    from mgpo.method.protocol import Episode
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
    assert len({id(episode.original) for episode in trainer._episodes}) == 1
    assert len({id(episode.user_turns[0].image) for episode in trainer._episodes}) == 1


def test_an_image_in_memory_is_known_by_its_pixels():
    """A column of `datasets.Image` gives a new object for each rollout; four rollouts prefilled their prompt four times."""
    from PIL import Image

    from mgpo.training.trainer import _image_key

    one, same, other = (Image.new("RGB", (30, 20), colour) for colour in ("red", "red", "blue"))
    assert _image_key(one) == _image_key(same) != _image_key(other)
    assert _image_key(one) != _image_key(one.resize((20, 30)))
    palettes = [Image.new("P", (30, 20)) for _ in range(2)]
    for image, colour in zip(palettes, ((255, 0, 0), (0, 0, 255))):
        image.putpalette(colour)
    assert palettes[0].tobytes() == palettes[1].tobytes() and _image_key(palettes[0]) != _image_key(palettes[1])


def test_a_model_trained_from_python_is_asked_as_it_was_trained(random_tiny, tmp_path, rows):
    """As the README's example: train, save, load. Its folder had no config.yaml, so other limits and turns were used."""
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

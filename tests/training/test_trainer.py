"""The trainer: which tokens are learned, which images they see, what is logged, and what it refuses to start with."""

import pytest
import torch
from support import CUT, MIXED, Script, make_trainer, rollouts, unpadded

from mgpo.method.episode import End
from mgpo.method.prompts import ASK_LETTER, SHOW_AGAIN, SHOW_CROP


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
        first, last = Script.ids(trainer.turn_tokens, MIXED[0][i]), Script.ids(trainer.turn_tokens, MIXED[1][i])
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
        last = Script.ids(trainer.turn_tokens, MIXED[1][i])
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

    opened, real = [], imaging.open_padded
    monkeypatch.setattr(imaging, "open_padded", lambda source, most: opened.append(source) or real(source, most))
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
    first = [len(Script.ids(trainer.turn_tokens, said)) for said in MIXED[0]]
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

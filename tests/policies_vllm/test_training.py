"""Training with vLLM in this process: the same policy samples and is trained, in every turn and after every update.

What stock TRL 1.16 does instead is shown beside it (defects A and B of docs/vllm.md).
"""

import gc
import json

import pytest
import torch
from peft import LoraConfig
from support import make_trainer
from trl.generation.vllm_generation import VLLMGeneration

from mgpo.worlds.needle import needle_rows

SAMPLED = {
    "use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 2048, "vllm_gpu_memory_utilization": 0.1,
    "max_grounding_tokens": 28, "max_answer_tokens": 12, "max_reply_tokens": 200, "num_generations": 4,
    "per_device_train_batch_size": 8, "learning_rate": 1e-4, "extra_reward_funcs": ["support.even_ids"],
    "reward_weights": [0.0, 1.0],
}  # fmt: skip
SMALL = 6e-3
"""Sampling renormalises over the tokens that are not banned, so log-probabilities differ by the share of the banned ones:
up to 0.003 in these runs, and 0.004 in the batches of `gap`."""


@pytest.fixture(scope="module")
def needle():
    return [row | {"image": row["image"]} for row in needle_rows("train", 3, 6)]


@pytest.fixture
def trainer_of(cpu_engine, tmp_path, needle):
    made = []

    def make(**changes):
        made.append(make_trainer("mgpo-tiny", tmp_path / f"run{len(made)}", needle, **(SAMPLED | changes)))
        return made[-1]

    yield make
    made.clear()
    gc.collect()  # an engine that ends after the next one has begun would take the process group with it


def logged(trainer):
    lines = (trainer.args.output_dir and open(f"{trainer.args.output_dir}/metrics.jsonl")).read().splitlines()
    return [json.loads(line) for line in lines]


def same_policy(steps, turns=2):
    for step in steps:
        assert step["sampling/sampling_logp_difference/max"] < SMALL
        assert abs(step["sampling/importance_sampling_ratio/min"] - 1) < SMALL
        assert abs(step["sampling/importance_sampling_ratio/max"] - 1) < SMALL
        for turn in range(1, turns + 1):
            assert step[f"sampling/turn_{turn}_logp_difference"] < 1e-3


def test_three_steps(trainer_of):
    """With the tower trained: each rollout must see the weights of its own step."""
    trainer = trainer_of(max_steps=3)
    trainer.train()
    steps = [line for line in logged(trainer) if "loss" in line]
    assert len(steps) == 3 and 0 < sum(line["grounding/valid_share"] for line in steps) < 3
    same_policy(steps)
    assert all(line["grad_norm"] > 0 for line in steps)


@pytest.mark.parametrize("case", ["LoRA", "frozen tower", "three turns", "accumulation"])
def test_settings(trainer_of, case):
    changes = {
        "LoRA": {
            "peft_config": LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)"),
            "learning_rate": 1e-2,
        },
        "frozen tower": {"freeze_vision_tower": True},
        "three turns": {"max_turns": 3},
        "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    }[case]
    trainer = trainer_of(max_steps=2, **changes)
    trainer.train()
    same_policy([line for line in logged(trainer) if "loss" in line])


def test_the_loss_is_that_of_transformers_rollouts(trainer_of):
    """Greedy on both sides (top_k 1), three steps, with rewards that follow from the tokens."""
    greedy = {"max_steps": 3, "top_k": 1, "vllm_importance_sampling_correction": False, "beta": 0.05}
    runs = []
    for use_vllm in (True, False):
        trainer = trainer_of(**greedy, use_vllm=use_vllm)
        trainer.train()
        runs.append([line for line in logged(trainer) if "loss" in line])
    for one, other in zip(*runs):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-6)
        assert one["rewards/even_ids/mean"] == pytest.approx(other["rewards/even_ids/mean"])
        assert one["completions/mean_length"] == other["completions/mean_length"]


def shake(trainer):
    """Another tower, as an update would leave it."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.model.visual.parameters():
            parameter.add_(0.5 * parameter.abs().mean() * torch.randn_like(parameter))


def gap(trainer, rows):
    """Largest difference of sampled and recomputed log-probabilities of one batch."""
    batch = [dict(row) for row in rows[:2] for _ in range(4)]
    out = trainer._generate_and_score_completions(batch)
    mask = (out["completion_mask"] * out["tool_mask"]).bool()
    return (out["old_per_token_logps"] - out["sampling_per_token_logps"]).abs()[mask].max().item()


def test_a_trained_tower_is_seen_by_the_next_rollout_and_stock_trl_samples_with_the_old_one(trainer_of, needle):
    trainer = trainer_of(max_logprob_difference=100.0)
    assert gap(trainer, needle) < SMALL
    shake(trainer)
    VLLMGeneration.sync_weights(trainer.vllm_generation)  # stock: language weights are new, image embeddings are old
    assert gap(trainer, needle) > 20 * SMALL
    trainer.state.global_step += 1  # ours, as after a step
    assert gap(trainer, needle) < SMALL


def test_stock_trl_expands_placeholders_twice(trainer_of, needle):
    trainer = trainer_of()
    gap(trainer, needle)
    turns = [episode.user_turns[0] for episode in trainer._episodes]
    ids, images = [trainer.turn_tokens.opening(turn) for turn in turns], [[turn.image] for turn in turns]
    seen, *_ = trainer.vllm_generation.generate(ids, images, 1)
    assert all(len(theirs) > len(own) for theirs, own in zip(seen, ids)), (
        "fixed upstream: policies/vllm_engine.py can go"
    )
    with pytest.raises(RuntimeError, match="placeholders were expanded twice"):
        trainer.vllm_sampling.engine.colocated = False
        trainer.vllm_sampling.engine.speak(ids, images, 4, 1)


def test_another_policy_stops_the_run(trainer_of, needle):
    trainer = trainer_of()
    gap(trainer, needle)
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(3)
    with pytest.raises(RuntimeError, match="In turn ., vLLM's log-probabilities differ .* max_logprob_difference=0.2"):
        gap(trainer, needle)


def test_a_budget_that_differs_from_the_checkpoints_reaches_vllm(trainer_of, needle):
    trainer = trainer_of(max_pixels=64 * 784, min_pixels=40 * 784)
    assert gap(trainer, needle) < SMALL

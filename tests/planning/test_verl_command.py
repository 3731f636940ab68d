"""The exported command carries a recipe over, and says what it cannot carry."""

import shlex
from pathlib import Path

import pytest
import yaml

import mgpo
from mgpo.planning.verl_command import verl_script
from mgpo.planning.verl_notes import CARRIED, KNOWN, LOOP, MEANINGLESS

RECIPES = Path(mgpo.__file__).parent / "recipes"


def exported(recipe, *overrides):
    """The script's lines, verl's arguments by key, and the agent loop's settings."""
    lines = verl_script(RECIPES / f"{recipe}.yaml", list(overrides))
    start = lines.index("python3 -m verl.trainer.main_ppo \\")
    words = shlex.split(" ".join(line.rstrip("\\") for line in lines[start + 1 :]))
    begin = next(i for i, line in enumerate(lines) if line.startswith("cat >"))
    loop = yaml.safe_load("\n".join(lines[begin + 1 : lines.index("END")]))
    return lines, dict(word.split("=", 1) for word in words), loop[0]


def test_the_papers_recipe_is_the_papers_batch_in_verl():
    lines, given, loop = exported("qwen2_5_vl_7b_mgpo", "--num_gpus", "32")
    assert (given["data.train_batch_size"], given["actor_rollout_ref.actor.ppo_mini_batch_size"]) == ("512", "128")
    assert (given["actor_rollout_ref.rollout.n"], given["trainer.nnodes"], given["trainer.n_gpus_per_node"]) == (
        "8",
        "4",
        "8",
    )
    assert float(given["actor_rollout_ref.actor.optim.lr"]) == 1e-6
    assert (given["actor_rollout_ref.actor.use_kl_loss"], given["actor_rollout_ref.actor.kl_loss_coef"]) == (
        "True",
        "0.01",
    )
    assert given["trainer.total_training_steps"] == "80", "320 updates, four per generation"
    # question 640 + image 1282; box 256 + reply 640 + image 1282 + answer 1024
    assert (given["data.max_prompt_length"], given["data.max_response_length"]) == ("1922", "3202")
    assert (loop["min_pixels"], loop["max_pixels"], loop["max_answer_tokens"]) == (200704, 1003520, 1024)
    assert (
        lines[1:4][0].startswith("# not carried over: vllm_importance_sampling_mode: sequence_mask")
        and lines[2] == "set -e"
    )
    assert (
        "mgpo data convert data/mme_realworld_train runs/qwen2_5_vl_7b_mgpo/verl --to verl --split train --overwrite"
        in lines
    )


def test_what_verl_cannot_do_is_said_and_paths_hold_in_every_process(tmp_path):
    lines, given, _ = exported("tiny_mgpo", "--num_gpus", "1", "--extra_reward_funcs", "mgpo.experiments.coin.coin")
    notes = [line for line in lines if line.startswith("# not carried over: ")]
    for note, name in zip(
        notes, ("extra_reward_funcs", "lr_scheduler_type: linear", "freeze_vision_tower"), strict=True
    ):
        assert name in note
    assert given["data.train_files"] == "$PWD/runs/tiny_mgpo/verl/train.parquet"
    assert "mgpo data convert needle runs/tiny_mgpo/verl --to verl --split train --overwrite --n 4000 --seed 0" in lines


@pytest.mark.parametrize(
    ("recipe", "setting", "key", "value"),
    [
        ("tiny_mgpo", ["--delta", "4.0"], "actor_rollout_ref.actor.clip_ratio_c", "4.0"),
        ("tiny_mgpo", ["--epsilon_high", "0.28"], "actor_rollout_ref.actor.clip_ratio_high", "0.28"),
        ("tiny_mgpo", ["--scale_rewards", "none"], "algorithm.norm_adv_by_std_in_grpo", "False"),
        ("tiny_mgpo", ["--loss_type", "dr_grpo"], "actor_rollout_ref.actor.loss_scale_factor", "44"),
        ("tiny_mgpo", ["--steps_per_generation", "2"], "data.train_batch_size", "32"),
        ("tiny_mgpo", ["--steps_per_generation", "2"], "trainer.total_training_steps", "25"),
        ("tiny_mgpo", ["--max_steps", "-1", "--num_train_epochs", "3"], "trainer.total_epochs", "3"),
        ("qwen2_5_vl_7b_lora_vllm", [], "actor_rollout_ref.model.lora_rank", "32"),
        ("qwen2_5_vl_7b_lora_vllm", [], "actor_rollout_ref.rollout.load_format", "safetensors"),
    ],
)
def test_settings_have_their_counterpart(recipe, setting, key, value):
    assert exported(recipe, *setting)[1][key] == value


def test_recipes_that_verl_cannot_follow_are_refused():
    for recipe, what in (("tiny_sft", "supervised fine-tuning"), ("qwen3_5_4b_qlora_16gb", "load_in_4bit")):
        with pytest.raises(ValueError, match=f"main_ppo has no {what}. Train this recipe with mgpo train"):
            verl_script(RECIPES / f"{recipe}.yaml", [])
    with pytest.raises(ValueError, match="12 GPUs are not whole machines of 8"):
        verl_script(RECIPES / "tiny_mgpo.yaml", ["--num_gpus", "12"])


def test_the_tables_name_settings_that_exist():
    assert not (CARRIED | MEANINGLESS | set(LOOP)) - KNOWN
    assert not CARRIED & MEANINGLESS


def test_a_script_that_is_started_again_converts_again_and_checks_the_rows_first(tmp_path):
    """verl resumes by itself (`resume_mode: auto`), so the script must get there a second time."""
    (tmp_path / "mine.yaml").write_text(
        "model_name_or_path: mgpo-tiny\ndataset_name: data/mine\nmax_steps: 10\nwarmup_steps: 0.2\n"
    )
    lines = verl_script(tmp_path / "mine.yaml", ["--lr_scheduler_type", "cosine"])
    check, convert = (
        next(line for line in lines if line.startswith(f"mgpo data {what}")) for what in ("check", "convert")
    )
    assert (
        lines.index(check) < lines.index(convert) and "--overwrite" in convert and str(tmp_path / "mine.yaml") in check
    )
    assert any("lr_warmup_steps=2 " in line for line in lines)  # a share of ten steps
    assert any(
        "lr_warmup_steps=0 " in line
        for line in verl_script(tmp_path / "mine.yaml", ["--lr_scheduler_type", "constant"])
    )

"""`mgpo export verl RECIPE`: the commands that train by a recipe of ours with verl.

    mgpo export verl recipes/qwen2_5_vl_7b_mgpo.yaml --num_gpus 32 > run.sh && bash run.sh

The script writes the data as Parquet and the agent loop's settings, then starts `verl.trainer.main_ppo`. It is made here without
verl. What verl cannot do as the recipe says is written into the script as comments, one line each.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from mgpo.config import DataArguments, MGPOConfig
from mgpo.images.imaging import PixelBudget
from mgpo.method.methods import SFT
from mgpo.planning.validate import model_facts, read_recipe
from mgpo.planning.verl_notes import LOOP, LOSSES, SCHEDULES, notes_of, schedule_of
from mgpo.policies.names import resolve

Pairs = list[tuple[str, Any]]
NO_DUAL_CLIP = 1_000_000.0
"""verl also bounds the loss of tokens with a negative advantage, at `clip_ratio_c` times the advantage; TRL only with `delta`."""


def verl_script(recipe: Path, overrides: list[str]) -> list[str]:
    """A shell script.

    Args:
        recipe: a YAML file.
        overrides: further settings as on the command line of `mgpo train`, `--num_gpus N` and `--gpus_per_node M` (8).

    Raises:
        ValueError: the recipe cannot run, or is one that verl cannot follow at all (SFT, weights in 4 bits).
    """
    per_node, others = _gpus_per_node(overrides)
    devices, data, config = read_recipe(recipe, others)
    if config.method == SFT or data.load_in_4bit:
        what = "supervised fine-tuning" if config.method == SFT else "load_in_4bit"
        raise ValueError(f"{recipe}: verl's main_ppo has no {what}. Train this recipe with mgpo train.")
    config.learning_rate, notes = float(config.learning_rate), notes_of(recipe, others, data, config)
    folder = Path(config.output_dir) / "verl"
    train, test = folder / f"{data.dataset_split}.parquet", folder / f"{data.dataset_test_split}.parquet"
    evaluates = str(config.eval_strategy).rpartition(".")[2].lower() != "no"
    pairs = [
        *_data(config, data, train, test if evaluates else train),
        *_lengths(config, data),
        *_algorithm(config, devices),
        *_actor(config, data, devices),
        *_model(data, config),
        *_rollout(config, data, folder / "agent_loop.yaml"),
        *_trainer(config, devices, per_node, evaluates),
    ]
    arguments = ["    " + _argument(key, value) for key, value in pairs]
    conversions = [_conversion(data, folder, data.dataset_split, data.dataset_size)]
    if evaluates:
        conversions.append(_conversion(data, folder, data.dataset_test_split, data.dataset_test_size))
    # verl would end at the first row that the agent loop refuses, hours into the training.
    checked = [
        "mgpo",
        "data",
        "check",
        data.dataset_name,
        "--split",
        data.dataset_split,
        "--config",
        str(recipe.resolve()),
    ]
    checks = [] if data.dataset_name == "needle" else [shlex.join(checked)]
    return [
        f"# {recipe} with verl 0.9.1 on {devices} GPU{'s' * (devices > 1)}, written by mgpo export verl (docs/verl.md).",
        *(f"# not carried over: {note}" for note in notes),
        "set -e",
        *checks,
        *conversions,
        f"cat > {shlex.quote(str(folder / 'agent_loop.yaml'))} <<'END'",
        *yaml.safe_dump([_loop(config, data)], sort_keys=False).splitlines(),
        "END",
        "python3 -m verl.trainer.main_ppo \\",
        *(f"{line} \\" for line in arguments[:-1]),
        arguments[-1],
    ]


def _gpus_per_node(overrides: list[str]) -> tuple[int, list[str]]:
    words = [part for word in overrides for part in word.split("=", 1)]
    for name in ("--gpus_per_node", "--gpus-per-node"):
        if name in words:
            at = words.index(name)
            value = words[at + 1] if at + 1 < len(words) else ""
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"--gpus_per_node {value}: write the number of GPUs of one machine.")
            return int(value), words[:at] + words[at + 2 :]
    return 8, words


def _loop(config: MGPOConfig, data: DataArguments) -> dict[str, Any]:
    """The entry of verl's list of agent loops."""
    budget = _budget(config, data)
    found = {"name": "mgpo", "_target_": "mgpo.verl.agent_loop.MGPOAgentLoop"}
    found |= {name: getattr(config, name) for name in LOOP if name != "coordinates" or config.coordinates != "auto"}
    return found | {"min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels}


def _budget(config: MGPOConfig, data: DataArguments) -> PixelBudget:
    own = model_facts(data.model_name_or_path).budget or PixelBudget()
    return own.changed(config.min_pixels, config.max_pixels)


def _conversion(data: DataArguments, folder: Path, split: str, size: int) -> str:
    words = ["mgpo", "data", "convert", data.dataset_name, str(folder), "--to", "verl", "--split", split, "--overwrite"]
    if data.dataset_name == "needle":
        words += ["--n", str(size), "--seed", str(data.dataset_seed)]
    return shlex.join(words)


def _data(config: MGPOConfig, data: DataArguments, train: Path, test: Path) -> Pairs:
    # verl always reads a file to validate on; with test_freq=-1 and val_before_train=False it is not asked.
    pairs: Pairs = [
        ("data.train_files", train),
        ("data.val_files", test),
        ("data.val_max_samples", data.dataset_test_size),
        ("data.custom_cls.path", "pkg://mgpo.verl.dataset"),
        ("data.custom_cls.name", "MGPODataset"),
        ("data.filter_overlong_prompts", False),
        ("data.truncation", "error"),
        ("data.shuffle", config.shuffle_dataset is not False),
        ("data.seed", config.seed),
    ]
    for name, value in (config.chat_template_kwargs or {}).items():
        pairs.append((f"+data.apply_chat_template_kwargs.{name}", value))
    return pairs


def _lengths(config: MGPOConfig, data: DataArguments) -> Pairs:
    """The longest episode, which verl pads to: nothing of it may be cut."""
    facts = model_facts(data.model_name_or_path)
    parts = config.episode_parts(config.protocol(facts.budget or PixelBudget(), facts.form))
    prompt = parts["question"] + parts["overview"]
    return [("data.max_prompt_length", prompt), ("data.max_response_length", sum(parts.values()) - prompt)]


def _algorithm(config: MGPOConfig, devices: int) -> Pairs:
    generated = config.per_device_train_batch_size * config.steps_per_generation * devices
    corrected = config.use_vllm and config.vllm_importance_sampling_correction
    pairs: Pairs = [
        ("data.train_batch_size", generated // config.num_generations),
        ("algorithm.adv_estimator", "grpo"),
        ("algorithm.norm_adv_by_std_in_grpo", config.scale_rewards not in (False, "none")),
        ("algorithm.use_kl_in_reward", False),
    ]
    if corrected:
        pairs += [
            ("algorithm.rollout_correction.rollout_is", config.vllm_importance_sampling_mode.partition("_")[0]),
            ("algorithm.rollout_correction.rollout_is_threshold", config.vllm_importance_sampling_clip_max),
        ]
    return pairs


def _actor(config: MGPOConfig, data: DataArguments, devices: int) -> Pairs:
    updated = config.per_device_train_batch_size * config.gradient_accumulation_steps * devices
    actor, size = "actor_rollout_ref.actor", config.per_device_train_batch_size
    pairs: Pairs = [
        (f"{actor}.strategy", "fsdp2"),
        (f"{actor}.ppo_mini_batch_size", max(1, updated // config.num_generations)),
        (f"{actor}.ppo_micro_batch_size_per_gpu", size),
        (f"{actor}.ppo_epochs", config.num_iterations),
        (f"{actor}.clip_ratio", config.epsilon),
        (f"{actor}.clip_ratio_low", config.epsilon),
        (f"{actor}.clip_ratio_high", config.epsilon if config.epsilon_high is None else config.epsilon_high),
        (f"{actor}.clip_ratio_c", NO_DUAL_CLIP if config.delta is None else config.delta),
        (f"{actor}.use_kl_loss", config.beta > 0),
        (f"{actor}.kl_loss_coef", config.beta),
        (f"{actor}.kl_loss_type", "low_var_kl"),
        (f"{actor}.entropy_coeff", 0),
        (f"{actor}.loss_agg_mode", LOSSES.get(config.loss_type, LOSSES["grpo"])),
        (f"{actor}.grad_clip", config.max_grad_norm),
        (f"{actor}.data_loader_seed", config.seed),
        (f"{actor}.optim.lr", config.learning_rate),
        (f"{actor}.optim.lr_scheduler_type", SCHEDULES.get(schedule_of(config), "constant")),
        (f"{actor}.optim.lr_warmup_steps", _warmup(config)),
        (f"{actor}.optim.weight_decay", config.weight_decay),
        (f"{actor}.optim.betas", [config.adam_beta1, config.adam_beta2]),
        ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", size),
        ("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", size),
    ]
    if config.loss_type == "dr_grpo":  # as this project's trainer: by what the model itself may say
        facts = model_facts(data.model_name_or_path)
        most = config.spoken_tokens(config.protocol(facts.budget or PixelBudget(), facts.form))
        pairs.append((f"{actor}.loss_scale_factor", most))
    return pairs


def _warmup(config: MGPOConfig) -> int:
    """Steps of verl's schedule, which counts generations. transformers' `constant` has no warm-up, and below 1 it is a share."""
    if schedule_of(config) == "constant" or config.max_steps < 1:
        return 0
    updates = max(1, config.steps_per_generation * config.num_iterations // config.gradient_accumulation_steps)
    return round(config.get_warmup_steps(config.max_steps) / updates)


def _model(data: DataArguments, config: MGPOConfig) -> Pairs:
    model = "actor_rollout_ref.model"
    pairs: Pairs = [
        (f"{model}.path", resolve(data.model_name_or_path)),
        (f"{model}.external_lib", "mgpo.verl.repairs"),
        (f"{model}.enable_gradient_checkpointing", config.gradient_checkpointing),
    ]
    if data.attn_implementation != "flash_attention_2":  # verl's default, which its packing of rows needs
        attention = data.attn_implementation or "sdpa"
        pairs += [(f"+{model}.override_config.attn_implementation", attention), (f"{model}.use_remove_padding", False)]
    if data.use_peft:
        pairs += [
            (f"{model}.lora_rank", data.lora_r),
            (f"{model}.lora_alpha", data.lora_alpha),
            (f"{model}.target_modules", data.lora_target_modules),
            ("actor_rollout_ref.rollout.load_format", "safetensors"),  # only adapters are pushed to vLLM
        ]
    return pairs


def _rollout(config: MGPOConfig, data: DataArguments, loop: Path) -> Pairs:
    rollout = "actor_rollout_ref.rollout"
    half = config.bf16 or data.dtype == "bfloat16"
    pairs: Pairs = [
        (f"{rollout}.name", "vllm"),
        (f"{rollout}.n", config.num_generations),
        (f"{rollout}.temperature", config.temperature),
        (f"{rollout}.top_p", config.top_p),
        (f"{rollout}.top_k", config.top_k or -1),
        (f"{rollout}.dtype", "bfloat16" if half else "float32"),
        (f"{rollout}.seed", config.seed),
        (f"{rollout}.tensor_model_parallel_size", config.vllm_tensor_parallel_size),
        (f"{rollout}.gpu_memory_utilization", config.vllm_gpu_memory_utilization),
        (f"{rollout}.agent.default_agent_loop", "mgpo"),
        (f"{rollout}.agent.agent_loop_config_path", loop),
    ]
    if not half:  # verl computes in bfloat16 unless it is told
        pairs += [
            (f"+actor_rollout_ref.{part}.fsdp_config.mixed_precision.param_dtype", "fp32") for part in ("actor", "ref")
        ]
    if config.vllm_max_model_length:
        pairs.append((f"{rollout}.max_model_len", config.vllm_max_model_length))
    return pairs


def _trainer(config: MGPOConfig, devices: int, per_node: int, evaluates: bool) -> Pairs:
    """verl's step is a generation with all its updates; ours is an update."""
    updates = max(1, config.steps_per_generation * config.num_iterations // config.gradient_accumulation_steps)
    here = min(devices, per_node)
    if devices % here:
        raise ValueError(f"{devices} GPUs are not whole machines of {per_node}. Set --gpus_per_node.")
    saves = str(config.save_strategy).rpartition(".")[2].lower() == "steps" and config.save_steps >= 1
    pairs: Pairs = [
        ("trainer.n_gpus_per_node", here),
        ("trainer.nnodes", devices // here),
        ("trainer.total_epochs", max(1, round(config.num_train_epochs))),
        ("trainer.save_freq", max(1, round(config.save_steps / updates)) if saves else -1),
        ("trainer.test_freq", max(1, round((config.eval_steps or updates) / updates)) if evaluates else -1),
        ("trainer.val_before_train", False),
        ("trainer.logger", ["console", *_reports(config)]),
        ("trainer.project_name", "mgpo"),
        ("trainer.experiment_name", Path(config.output_dir).name),
        ("trainer.default_local_dir", Path(config.output_dir)),
    ]
    if config.save_total_limit:
        pairs.append(("trainer.max_actor_ckpt_to_keep", config.save_total_limit))
    if config.max_steps > 0:  # as many as it takes: epochs would end the run before
        pairs = [pair for pair in pairs if pair[0] != "trainer.total_epochs"]
        pairs += [
            ("trainer.total_training_steps", max(1, round(config.max_steps / updates))),
            ("trainer.total_epochs", max(1, round(config.max_steps / updates))),
        ]
    return pairs


def _reports(config: MGPOConfig) -> list[str]:
    given = [config.report_to] if isinstance(config.report_to, str) else config.report_to or []
    return [name for name in given if name in ("wandb", "tensorboard", "swanlab", "mlflow", "trackio")]


def _argument(key: str, value: Any) -> str:
    """An override as the shell reads it. Ray's processes have other working directories, so paths are made absolute there."""
    if isinstance(value, Path) and not value.is_absolute():
        return f'{key}="$PWD"/{shlex.quote(str(value))}'
    return shlex.quote(f"{key}={_value(value)}")


def _value(value: Any) -> str:
    """A value as Hydra's command line reads it: texts with signs of its grammar in quotes."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    text = "null" if value is None else str(value)
    plain = isinstance(value, (int, float)) or all(c.isalnum() or c in "-_./:" for c in text)
    return text if plain else "'" + text.replace("'", "\\'") + "'"

"""What a recipe says that verl does not do, or does in another way: `mgpo export verl` writes it into its script as comments."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from mgpo.config import DataArguments, MGPOConfig

LOOP = (
    "method", "max_turns", "crop_frame", "max_images", "min_box_side", "max_box_aspect", "coordinates",
    "max_grounding_tokens", "max_answer_tokens", "max_reply_tokens",
)  # fmt: skip
"""Settings of the recipe that are the agent loop's under the same name (`mgpo.verl.settings`), beside its pixel budget."""
CARRIED = {
    *LOOP, "model_name_or_path", "dtype", "attn_implementation", "dataset_name", "dataset_split", "dataset_seed", "dataset_size",
    "dataset_test_split", "dataset_test_size", "use_peft", "lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit",
    "min_pixels", "max_pixels", "output_dir", "bf16", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type",
    "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "num_generations",
    "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size",
    "num_iterations", "temperature", "top_p", "top_k", "epsilon", "epsilon_high", "delta", "beta", "loss_type", "scale_rewards",
    "importance_sampling_level", "freeze_vision_tower", "gradient_checkpointing", "save_steps", "save_total_limit",
    "eval_strategy", "eval_steps", "seed", "shuffle_dataset", "max_completion_length", "chat_template_kwargs", "report_to",
    "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "vllm_max_model_length",
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max", "optim",
    "use_bias_correction_kl", "save_strategy",
}  # fmt: skip
"""Settings that have a counterpart in verl."""
MEANINGLESS = {
    "shared_prefix", "decoded_bytes", "use_cpu", "use_vllm", "vllm_mode", "vllm_enable_sleep_mode", "vllm_call_seconds",
    "max_logprob_difference", "logging_steps", "disable_tqdm", "trajectories_every", "trajectories_kept",
    "log_multimodal", "check_images", "max_nonfinite_steps", "reward_seconds", "allow_low_precision_weights",
    "fp16", "tf32", "ds3_gather_for_generation", "dataloader_num_workers",
}  # fmt: skip
"""Settings of this project's own trainer and of TRL's, without which verl does the same, or does it in its own way."""
LOSSES = {
    "grpo": "seq-mean-token-mean", "bnpo": "token-mean", "dapo": "token-mean", "dr_grpo": "seq-mean-token-sum-norm",
}  # fmt: skip
SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"}


def notes_of(recipe: Path, overrides: list[str], data: DataArguments, config: MGPOConfig) -> list[str]:
    """What the recipe asks for and verl does not do, or does in another way."""
    written = yaml.safe_load(recipe.read_text()) or {}
    values = vars(config) | {name: written[name] for name in written}
    flags = [word[2:].replace("-", "_") for word in overrides if word.startswith("--")]
    names = [name for name in dict.fromkeys([*written, *flags]) if name not in CARRIED | MEANINGLESS | {"num_gpus"}]
    notes = [f"{name}: {values.get(name)}" for name in names]
    schedule = schedule_of(config)
    if schedule not in SCHEDULES:
        notes.append(f"lr_scheduler_type: {schedule}; verl knows constant and cosine, so the learning rate is constant")
    if config.warmup_steps and config.max_steps < 1:
        notes.append(
            f"warmup_steps: {config.warmup_steps}; none, because max_steps does not say how long the training is"
        )
    if data.on_bad_row == "skip":
        notes.append("on_bad_row: skip; the conversion refuses bad rows and names them: leave them out of the data")
    if config.freeze_vision_tower and not data.use_peft:  # LoRA's modules are those of the language model
        notes.append(
            "freeze_vision_tower: true; verl 0.9.1 has a setting of this name, but trains the tower all the same"
        )
    if config.loss_type not in LOSSES:
        notes.append(f"loss_type: {config.loss_type}; it is seq-mean-token-mean, as for grpo")
    if config.scale_rewards not in (True, False, "group", "none"):
        notes.append(f"scale_rewards: {config.scale_rewards}; advantages are divided by their group's deviation")
    if config.importance_sampling_level != "token":
        notes.append(f"importance_sampling_level: {config.importance_sampling_level}; ratios are those of tokens")
    if not str(getattr(config.optim, "value", config.optim)).startswith("adamw"):
        notes.append(f"optim: {config.optim}; it is AdamW")
    if (
        config.use_vllm
        and config.vllm_importance_sampling_correction
        and config.vllm_importance_sampling_mode[-8:] != "truncate"
    ):
        notes.append(
            f"vllm_importance_sampling_mode: {config.vllm_importance_sampling_mode}; ratios over the bound are truncated to it"
        )
    if config.use_bias_correction_kl and config.beta:
        notes.append("use_bias_correction_kl: true; the KL term is not weighted by the ratio")
    return notes


def schedule_of(config: MGPOConfig) -> str:
    """The name of the learning rate's schedule."""
    return str(getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type))


KNOWN = {field.name for kind in (DataArguments, MGPOConfig) for field in fields(kind)}
"""All settings of a recipe; a test checks that the tables above name no others."""

"""A rough estimate of the memory that a recipe needs, for the sizes of Qwen2.5-VL that we know. Arithmetic only.

It counts what stays on the devices (weights, gradients, AdamW's two states, the reference model of the KL term) and
what generation adds (the key-value cache). It does not count activations, logits and pixel values, which depend on
kernels and checkpointing. With several devices it assumes that all that stays is sharded evenly, as ZeRO-3 and FSDP do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mgpo.config import SFT, DataArguments, MGPOConfig
from mgpo.method.protocol import Method
from mgpo.training.precision import REMEDY

GIB = 2**30
ESTIMATE = "memory (rough estimate)"


@dataclass(frozen=True)
class Size:
    """Shape of a Qwen2.5-VL: all parameters, those of the vision tower among them, and the text model's widths."""

    parameters: int
    vision: int
    layers: int
    hidden: int
    inner: int
    key_value: int

    @property
    def cache_bytes(self) -> int:
        """Key-value cache of one token, in a two-byte type."""
        return self.layers * 2 * self.key_value * 2

    def adapter_parameters(self, rank: int, targets: str) -> int:
        """Parameters of LoRA on the text model's projections that `targets` (a regular expression) matches."""
        h, kv, inner = self.hidden, self.key_value, self.inner
        attention = {"q_proj": (h, h), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (h, h)}
        mlp = {"gate_proj": (h, inner), "up_proj": (h, inner), "down_proj": (inner, h)}
        shapes = {f"self_attn.{name}": shape for name, shape in attention.items()}
        shapes |= {f"mlp.{name}": shape for name, shape in mlp.items()}
        path = "model.language_model.layers.0."
        return self.layers * rank * sum(sum(s) for name, s in shapes.items() if re.fullmatch(targets, path + name))


SIZES = {
    "3B": Size(3_754_622_976, 668_684_288, layers=36, hidden=2048, inner=11_008, key_value=256),
    "7B": Size(8_292_166_656, 676_550_144, layers=28, hidden=3584, inner=18_944, key_value=512),
}


def known_size(name: str) -> Size | None:
    """The size of a Qwen2.5-VL by its hub id, None for everything else."""
    found = re.search(r"Qwen2\.5-VL-(\w+?)-", name + "-")
    return SIZES.get(found.group(1)) if found else None


def memory_lines(data: DataArguments, config: MGPOConfig, devices: int, episode_tokens: int | None) -> list[str]:
    """The estimate in words; no lines for a model of unknown size.

    Args:
        devices: how many GPUs share what stays on the devices.
        episode_tokens: the longest episode, prompt included; None without rollouts.
    """
    size = known_size(data.model_name_or_path)
    if size is None:
        return []
    width = 4 if data.dtype == "float32" else 2
    weights = size.parameters * width
    if data.use_peft:
        trained, adapter_width = size.adapter_parameters(data.lora_r, data.lora_target_modules), 4
        what = f"LoRA of {trained / 1e6:.0f} M parameters, its gradients and AdamW states in float32"
        parts = {"weights": weights, what: 4 * trained * adapter_width}
    else:
        trained = size.parameters - (size.vision if config.freeze_vision_tower else 0)
        states = 2 * trained * (1 if "8bit" in str(config.optim) else width)
        parts = {"weights": weights, "gradients": trained * width, "AdamW states": states}
        if config.beta and config.method != SFT:
            parts["reference model"] = weights
    total = sum(parts.values())
    dtype = "float32" if width == 4 else "bfloat16" if data.dtype == "auto" else data.dtype
    lines = [
        f"{ESTIMATE}: {size.parameters / 1e9:.2f} B parameters in {dtype}: "
        + " + ".join(f"{_gib(count)} {part}" for part, count in parts.items())
        + f" = {_gib(total)} GiB{_shared(total, devices)}; activations, logits and pixel values are not included"
    ]
    if not data.use_peft and width == 2:
        master = total + trained * (4 + 2 * (4 - width))
        lines.append(
            f"{ESTIMATE}: {_gib(master)} GiB{_shared(master, devices)} with float32 master weights and states, as "
            f"DeepSpeed and FSDP keep them; without these, bfloat16 rounds away most updates at learning_rate="
            f"{config.learning_rate:g}"
        )
        if devices == 1 and not config.allow_low_precision_weights:
            lines.append(f"note: mgpo train refuses weights in {dtype} without float32 copies. {REMEDY}")
    if config.use_vllm and episode_tokens is not None:
        lines.append(_vllm_line(config, weights, episode_tokens * size.cache_bytes))
    elif episode_tokens is not None:
        rollouts = config.per_device_train_batch_size * config.steps_per_generation
        twice = config.shared_prefix and devices == 1 and config.method == Method.MGPO
        cache = _gib((2 if twice else 1) * rollouts * episode_tokens * size.cache_bytes)
        gathered = f" in addition to {_gib(weights)} GiB of gathered weights" if devices > 1 else ""
        lines.append(
            f"{ESTIMATE}: during generation, up to {cache} GiB of key-value cache on each GPU "
            f"({rollouts} rollouts x {episode_tokens} tokens{', held twice at the start of a turn' if twice else ''}){gathered}"
        )
    return lines


def _vllm_line(config: MGPOConfig, weights: float, episode_bytes: float) -> str:
    """The memory that vLLM takes: of each training GPU if it is colocated, of GPUs of its own if it is a server."""
    held = f"{_gib(weights)} GiB of weights and {_gib(episode_bytes)} GiB of key-value cache per running episode"
    if config.vllm_mode == "server":
        return f"{ESTIMATE}: the vLLM server, on its own GPUs, holds {held}"
    share, parallel = config.vllm_gpu_memory_utilization, config.vllm_tensor_parallel_size
    asleep = "; it sleeps during updates" if config.vllm_enable_sleep_mode else ", also during updates"
    return (
        f"{ESTIMATE}: vLLM takes {share:.0%} of each GPU ({80 * share:.0f} of 80 GB){asleep}. This share must hold {held}, "
        f"split over {parallel} GPU{'s' if parallel > 1 else ''}"
    )


def _gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def _shared(total: float, devices: int) -> str:
    return f", {_gib(total / devices)} on each of {devices} GPUs if sharded (ZeRO-3, FSDP)" if devices > 1 else ""

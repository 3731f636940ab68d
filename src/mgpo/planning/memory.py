"""The estimate of memory in words: one line per phase of training, and what was assumed.

`mgpo.planning.estimate` holds the arithmetic and `mgpo.planning.sizes` the models. With several devices it is assumed that all
that stays is sharded evenly, as ZeRO-3 and FSDP do.
"""

from __future__ import annotations

from mgpo.config import DataArguments, MGPOConfig
from mgpo.method.protocol import Method
from mgpo.planning.estimate import GIB, Estimate, estimate
from mgpo.planning.sizes import Size, known_size
from mgpo.training.precision import REMEDY

ESTIMATE = "memory (rough estimate)"


def memory_lines(
    data: DataArguments, config: MGPOConfig, devices: int, parts: dict[str, int], image_tokens: int
) -> list[str]:
    """The estimate in words; no lines for a model of unknown size.

    Args:
        devices: how many GPUs share what stays on the devices.
        parts: tokens of the longest episode, by part (`MGPOConfig.episode_parts`).
        image_tokens: most visual tokens of an image.
    """
    size = known_size(data.model_name_or_path)
    if size is None:
        return []
    found = estimate(size, data, config, parts, image_tokens, devices, sharded=devices > 1)
    total = sum(found.weights.values())
    width = 4 if data.dtype == "float32" else 2
    dtype = "float32" if width == 4 else "bfloat16" if data.dtype == "auto" else data.dtype
    four = f", {size.text_linear / 1e9:.2f} B of them in 4 bits" if data.load_in_4bit else ""
    lines = [
        f"{ESTIMATE}: {size.parameters / 1e9:.2f} B parameters in {dtype}{four}: "
        f"{_sum_of(found.weights)} = {_gib(total)} GiB{_shared(total, devices)}"
    ]
    if found.copies:
        lines += _master_lines(found, config, devices, dtype)
    lines.append(
        f"{ESTIMATE}: an update adds {_sum_of(found.update)} = {_gib(sum(found.update.values()))} GiB on each GPU"
    )
    if config.use_vllm:
        lines.append(_vllm_line(found, config, size, sum(parts.values())))
    elif found.sampling:
        lines.append(_sampling_line(found, config, devices, sum(parts.values())))
    without = " without vLLM" if config.use_vllm else ""
    beside = "" if found.engine is None else " with vLLM"
    lines.append(
        f"{ESTIMATE}: at most {_gib(found.peak)} GiB on each GPU at once{without}, so a GPU should have {_gib(found.needed)} "
        f"GiB{beside}"
    )
    return lines + [f"assumes: {assumption}" for assumption in found.assumptions]


def _master_lines(found: Estimate, config: MGPOConfig, devices: int, dtype: str) -> list[str]:
    """What full training of 16-bit weights takes where float32 copies are kept, and that it is refused elsewhere."""
    master = sum(found.weights.values()) + found.copies
    lines = [
        f"{ESTIMATE}: {_gib(master)} GiB{_shared(master, devices)} with float32 master weights and states, as "
        f"DeepSpeed and FSDP keep them; without these, bfloat16 rounds away most updates at learning_rate="
        f"{config.learning_rate:g}"
    ]
    if devices == 1 and not config.allow_low_precision_weights:
        lines.append(f"note: mgpo train refuses weights in {dtype} without float32 copies. {REMEDY}")
    return lines


def _sampling_line(found: Estimate, config: MGPOConfig, devices: int, episode: int) -> str:
    rollouts = config.per_device_train_batch_size * config.steps_per_generation
    others = {
        name: count for name, count in found.sampling.items() if name not in ("key-value cache", "gathered weights")
    }
    cache, weights = found.sampling["key-value cache"], found.sampling.get("gathered weights")
    twice = "prompts" in found.sampling and config.method == Method.MGPO
    gathered = f" in addition to {_gib(weights)} GiB of gathered weights" if weights is not None else ""
    return (
        f"{ESTIMATE}: during generation, up to {_gib(cache)} GiB of key-value cache on each GPU "
        f"({rollouts} rollouts x {episode} tokens{', most of it twice at the start of a turn' if twice else ''}){gathered}, and "
        f"{_sum_of(others)}; {_gib(sum(found.sampling.values()))} GiB in all"
    )


def _vllm_line(found: Estimate, config: MGPOConfig, size: Size, episode: int) -> str:
    """The memory that vLLM takes: of each training GPU if it is colocated, of GPUs of its own if it is a server."""
    weights, kept = 2.0 * size.parameters, episode * size.cache_bytes + size.state_bytes
    held = f"{_gib(weights)} GiB of weights in 16 bits and {_gib(kept)} GiB of key-value cache per running episode"
    if found.engine is None:
        return f"{ESTIMATE}: the vLLM server, on its own GPUs, holds {held}"
    share, parallel = found.engine.share, config.vllm_tensor_parallel_size
    asleep = "; it sleeps during updates" if found.engine.sleeps else ", also during updates"
    return (
        f"{ESTIMATE}: vLLM takes {share:.0%} of each GPU ({80 * share:.0f} of 80 GB){asleep}, beside {_sum_of(found.sampling)}. "
        f"This share must hold {held}, split over {parallel} GPU{'s' if parallel > 1 else ''}"
    )


def _sum_of(parts: dict[str, float]) -> str:
    return " + ".join(f"{_gib(count)} {part}" for part, count in parts.items())


def _gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def _shared(total: float, devices: int) -> str:
    return f", {_gib(total / devices)} on each of {devices} GPUs if sharded (ZeRO-3, FSDP)" if devices > 1 else ""

"""What sampling a generation takes on each GPU: by this package's sampler, by TRL's own path, or by vLLM beside the trainer.

`mgpo.policies.shared.sampler` shares prompts and fills caches in passes of a bounded size. TRL's own path (`shared_prefix: false`)
hands all rollouts of a generation to `generate` at once: their prompts are one padded batch, each with all its
images. Of the logits, transformers keeps those of the last position alone (`logits_to_keep=1`, which TRL's fused head leaves as it is).
"""

from __future__ import annotations

from dataclasses import dataclass

from mgpo.config import MGPOConfig
from mgpo.method.methods import SFT
from mgpo.method.protocol import Method
from mgpo.planning.sizes import Size

PACKED_TOKENS = 32_768
"""Tokens of a pass that fills the cache (`mgpo.policies.shared.sampler.SharedSampler`)."""
MASK_BYTES = 3
"""Of each pair of tokens of a padded batch: a boolean mask, and its copy as a 16-bit bias in SDPA."""
ENGINE_WORKS = 3 * 2**30
"""What vLLM needs beside weights and cache: a pass over 4,096 tokens (TRL's limit) and an image, and CUDA graphs."""


@dataclass(frozen=True)
class Engine:
    """A vLLM in the training processes: the share of a GPU that it takes, what this must hold (bytes), and when it has it."""

    share: float
    holds: float
    sleeps: bool


def engine_of(size: Size, config: MGPOConfig, episode: int) -> Engine | None:
    """What vLLM takes of each training GPU; None without one. Its weights have the checkpoint's own two-byte type, since TRL names none.

    It can run with the cache of a few episodes; here of as many as share a prompt.
    """
    if config.method == SFT or not config.use_vllm or config.vllm_mode == "server":
        return None
    cache = config.num_generations * (episode * size.cache_bytes + size.state_bytes)
    holds = (2.0 * size.parameters + cache) / config.vllm_tensor_parallel_size + ENGINE_WORKS
    return Engine(config.vllm_gpu_memory_utilization, holds, config.vllm_enable_sleep_mode)


def tower_bytes(size: Size, tokens: float, width: int, trained: bool, checkpointing: bool) -> float:
    """Bytes of the vision tower's activations and features for so many visual tokens, each of four patches.

    All blocks keep activations if the tower is trained, else only the one that is computed.
    """
    tower, patches = size.tower, 4 * tokens
    features = tokens * size.hidden * width * tower.features
    block = patches * (40 * tower.hidden + 8 * tower.inner)
    if not trained:
        return features + block / 2
    return features + (tower.depth * patches * tower.hidden * width + block if checkpointing else tower.depth * block)


def layer_bytes(size: Size, width: int) -> float:
    """The most bytes of a token that a layer holds at once in a pass without gradients, keys and values that stay not counted.

    `tests/planning/test_estimate.py` compares it with what PyTorch allocates.

    Args:
        width: bytes of a number of the hidden states: 4 with float32 weights under autocast, else 2.
    """
    mlp = 6.0 * size.inner  # gate, up and their product, 16 bits
    attention = (8 + 2 * width) * size.queries + 12 * size.key_value
    linear = 11 * 4 * size.linear.values if size.linear else 0  # without its fused kernels, in float32
    return size.hidden * (4 + 3 * width) + max(mlp, attention, linear)


def while_sampling(
    size: Size,
    config: MGPOConfig,
    parts: dict[str, int],
    image_tokens: int,
    image_bytes: int,
    shared: bool,
    width: int,
) -> dict[str, float]:
    """Bytes at the worst moment: while the caches are filled, or while a turn is sampled from them.

    Args:
        parts: tokens of the longest episode.
        image_tokens, image_bytes: of an image: most visual tokens, and its pixel values.
        shared: whether prompts are shared.
        width: bytes of a weight.
    """
    rollouts = config.per_device_train_batch_size * config.steps_per_generation
    phases = _shared if shared else _plain
    filling, speaking = phases(size, config, parts, rollouts, image_tokens, image_bytes, width)
    return max((filling, speaking), key=lambda phase: sum(phase.values()))


def images_of(config: MGPOConfig, parts: dict[str, int]) -> tuple[int, int]:
    """Most images of an episode: in its first user turn, and in all later ones."""
    return config.max_images, config.max_turns - 1 if "crop" in parts else 0


def _shared(
    size: Size,
    config: MGPOConfig,
    parts: dict[str, int],
    rollouts: int,
    image_tokens: int,
    image_bytes: int,
    width: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """The cache of a turn is filled beside that of the turn before, and then copied with padding.

    With float32 weights keys and values are float32 too: rotary embeddings have the type of the hidden states.
    """
    episode, cache = sum(parts.values()), size.cache_bytes * width // 2
    filled, states = episode - parts["answer"], 2.0 * rollouts * size.state_bytes
    further = config.max_turns - 1 if config.method == Method.MGPO else 0
    added = (parts["reply"] + parts["crop"]) // further if further else filled
    new = min(rollouts * max(added, parts["question"] + parts["overview"]), PACKED_TOKENS + episode)
    filling = {
        "key-value cache": float(rollouts * (2 * filled - added) * cache) + states,
        "prompts": new * layer_bytes(size, width),
        "vision tower": tower_bytes(size, min(new, rollouts * config.max_images * image_tokens), 2, False, True),
        "pixel values": float(rollouts * config.max_images * image_bytes),
    }
    speaking = {
        "key-value cache": float(rollouts * max((2 if further else 1) * filled, episode) * cache) + states,
        "next tokens": 4.0 * 4 * rollouts * size.vocabulary,
    }
    return filling, speaking


def _plain(
    size: Size,
    config: MGPOConfig,
    parts: dict[str, int],
    rollouts: int,
    image_tokens: int,
    image_bytes: int,
    width: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Each turn computes all rollouts from their beginning, in one padded batch. Outside autocast, weights set the type."""
    episode, cache, wide = sum(parts.values()), size.cache_bytes * width // 2, width // 2
    filled, shown = episode - parts["answer"], sum(images_of(config, parts))
    tower = tower_bytes(size, rollouts * shown * image_tokens, 2, False, True)
    filling = {
        "key-value cache": float(rollouts * filled * cache),
        "images, then prompts": wide * max(tower, rollouts * filled * layer_bytes(size, 2)),  # one after the other
        "attention mask": float(MASK_BYTES * rollouts * filled**2),
        "pixel values": float(rollouts * shown * image_bytes),
    }
    speaking = {
        "key-value cache": float(rollouts * (episode * cache + size.state_bytes)),
        "next tokens": 4.0 * 4 * rollouts * size.vocabulary,
        "pixel values": float(rollouts * shown * image_bytes),
    }
    return filling, speaking

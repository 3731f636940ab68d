"""How much memory a recipe takes on each GPU, for models whose shape is known. Arithmetic only, and rough.

    found = estimate(size, data, config, parts, budget_tokens=1280, devices=1, sharded=False)
    found.peak, found.needed                         # bytes

It counts what stays (weights, gradients, AdamW's states) and what an update adds (activations, log-probabilities, patches);
`mgpo.planning.sampling` counts what sampling adds. Where kernels decide, it takes the larger number; `tests/planning/test_estimate.py`
compares activations with what PyTorch saves. `Estimate.assumptions` says in words what was assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

from mgpo.config import DataArguments, MGPOConfig
from mgpo.method.methods import SFT
from mgpo.planning.sampling import MASK_BYTES, Engine, engine_of, images_of, tower_bytes, while_sampling
from mgpo.planning.sizes import Size
from mgpo.policies.shared.models import IMPLEMENTATIONS
from mgpo.policies.shared.vision_cache import MEMORY_TOKENS

GIB = 2**30
FOUR_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of a weight in 4 bits: a scale per 64 weights in 8 bits, and a float32 per 256 scales (arXiv 2305.14314, section 3)."""
TILE_TOKENS, TILE_WORDS = 4096, 32_768
"""Logits that TRL computes at a time: TOKEN_CHUNK_SIZE x _CHUNKED_LOGPROB_CHUNK_SIZE (trl/kernels/chunked_logprob.py)."""
MLP_BYTES = 10
"""What PyTorch saves of a token for the backward pass of SwiGLU, for each of the MLP's inner numbers."""
LIVE_WEIGHTS, BUCKET = 1e9, 5e8
"""Weights that ZeRO-3 keeps gathered, and gradients that it reduces at a time, unless it is told otherwise (DeepSpeed's
`stage3_max_live_parameters` and `reduce_bucket_size`)."""
LINEAR_COPIES = 44
"""float32 vectors, as wide as all value heads, that a layer of Gated DeltaNet saves per token without its fused kernels:
measured in `tests/planning/test_estimate.py`."""
RESERVED, FREE_SHARE = 1.0 * GIB, 0.9
"""Of a GPU, 1 GiB is left to CUDA and its libraries, and a tenth of the rest to fragmentation."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU, by what takes them.

    Attributes:
        weights: what stays on the devices, over all of them if it is sharded.
        copies: float32 copies of 16-bit weights and states in float32, over all devices: DeepSpeed and FSDP keep them.
        update: what one forward and backward pass adds on each GPU.
        sampling: what sampling a generation adds on each GPU, beside vLLM if that samples; empty without rollouts.
        shards: over how many GPUs `weights` is split.
        engine: what a vLLM on the same GPUs takes; None without one.
        assumptions: sentences without a full stop.
    """

    weights: dict[str, float]
    copies: float
    update: dict[str, float]
    sampling: dict[str, float]
    shards: int
    engine: Engine | None = None
    assumptions: list[str] = field(default_factory=list)

    @property
    def stays(self) -> float:
        """What is always there, on each GPU; sharded training keeps float32 copies, other training has none."""
        return (sum(self.weights.values()) + (self.copies if self.shards > 1 else 0)) / self.shards

    @property
    def peak(self) -> float:
        """The most that each GPU holds at once, without vLLM."""
        return self.stays + max(sum(self.update.values()), sum(self.sampling.values()))

    @property
    def needed(self) -> float:
        """Memory that a GPU should have: the peak and a reserve, beside the share of the GPU that vLLM takes."""
        if self.engine is None:
            return with_reserve(self.peak)
        left = 1 - self.engine.share
        updating = with_reserve(self.stays + sum(self.update.values())) / (1 if self.engine.sleeps else left)
        sampling = with_reserve(self.stays + sum(self.sampling.values())) / left
        return max(updating, sampling, self.engine.holds / self.engine.share)


def with_reserve(held: float) -> float:
    """Memory of a GPU that is to hold so many bytes: a part of it stays free."""
    return held / FREE_SHARE + RESERVED


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass.

    Attributes:
        tokens: unique tokens.
        attended: keys that its parts attend to together.
        scored: tokens whose log-probabilities are computed. With shared prompts they are those that were sampled, and all that the last
            layer's MLP and the head see (`mgpo.policies.shared.last_layer`); TRL's own path scores all that follows the prompt.
        images: unique images.
    """

    tokens: int
    attended: int
    scored: int
    images: int


def weights_of(size: Size, data: DataArguments, config: MGPOConfig) -> tuple[dict[str, float], int]:
    """Bytes of what stays on the devices, by what it is, and the number of trained parameters."""
    width = 4 if data.dtype == "float32" else 2
    weights = float(size.parameters * width)
    if data.use_peft:
        trained = size.adapter_parameters(data.lora_r, data.lora_target_modules)
        what = f"LoRA of {trained / 1e6:.0f} M parameters, its gradients and AdamW states in float32"
        if data.load_in_4bit:
            weights -= size.text_linear * (width - FOUR_BITS / 8)
        return {"weights": weights, what: 4.0 * 4 * trained}, trained
    trained = size.parameters - (size.vision if config.freeze_vision_tower else 0)
    states = 2.0 * trained * (1 if "8bit" in str(getattr(config.optim, "value", config.optim)) else width)
    parts = {"weights": weights, "gradients": float(trained * width), "AdamW states": states}
    if config.beta and config.method != SFT:
        parts["reference model"] = weights
    return parts, trained


def pass_of(config: MGPOConfig, parts: dict[str, int], shared: bool) -> Pass:
    """The tokens of one pass over `per_device_train_batch_size` rollouts of the longest episode."""
    rollouts, prompt = config.per_device_train_batch_size, parts["question"] + parts["overview"]
    own = sum(parts.values()) - prompt
    opening, later = images_of(config, parts)
    if config.method != SFT and shared:  # TRL may put rollouts of several questions into a batch
        prompts = rollouts // gcd(rollouts, config.num_generations)
        tokens, images = prompts * prompt + rollouts * own, prompts * opening + rollouts * later
        said = own - parts.get("reply", 0) - parts.get("crop", 0)
        return Pass(tokens, prompts * prompt + rollouts * (prompt + own), rollouts * said, images)
    tokens = rollouts * (prompt + own)
    return Pass(tokens, tokens, rollouts * own, rollouts * (opening + later))


def saved_per_token(size: Size, width: int) -> tuple[float, float]:
    """Bytes that PyTorch saves of a token for the backward pass of a layer of attention, and of one of linear attention.

    Norms (of the hidden state, of queries and keys) keep their input in float32 and their output; linear layers a 16-bit copy of
    their input, LoRA another; SDPA queries, keys and values for every head, and its output; SwiGLU four vectors of the MLP's width.

    Args:
        width: bytes of a number of the hidden states: 4 with float32 weights, else 2.
    """
    norms_and_inputs = size.hidden * (2 * (4 + width) + 10)
    mlp = MLP_BYTES * size.inner
    gate = 6 * size.queries if size.gated else 0
    attention = 28 * size.queries + 18 * size.key_value + gate
    linear = LINEAR_COPIES * 4 * size.linear.values if size.linear else 0
    return norms_and_inputs + mlp + attention, norms_and_inputs + mlp + linear


def activations(size: Size, work: Pass, width: int, checkpointing: bool, shared: bool) -> float:
    """Bytes of the text model's activations in a pass, with the gradients of one layer.

    With shared prompts the last layer's MLP sees the scored tokens only.
    """
    full, linear = saved_per_token(size, width)
    copies = 4 * size.queries * work.attended  # keys and values of a part and its prefix, 16 bits, for every head
    one = max(work.tokens * full + copies, work.tokens * linear if size.linear else 0)
    gradients = work.tokens * (4 * size.inner + 8 * size.hidden)
    if checkpointing:
        return size.layers * work.tokens * size.hidden * width + one + gradients
    linears = size.linear.layers if size.linear else 0
    unseen = (work.tokens - work.scored) * MLP_BYTES * size.inner if shared else 0
    return size.cached_layers * (work.tokens * full + copies) + linears * work.tokens * linear + gradients - unseen


def estimate(
    size: Size,
    data: DataArguments,
    config: MGPOConfig,
    parts: dict[str, int],
    image_tokens: int,
    devices: int = 1,
    sharded: bool = False,
) -> Estimate:
    """Estimate a recipe.

    Args:
        parts: tokens of the longest episode (`MGPOConfig.episode_parts`).
        image_tokens: most visual tokens of an image.
        devices: number of GPUs.
        sharded: whether what stays is split over them (ZeRO-3, FSDP), else each holds all of it.
    """
    weights, trained = weights_of(size, data, config)
    width = 4 if data.dtype == "float32" else 2
    supervised, frozen = config.method == SFT, data.use_peft or config.freeze_vision_tower
    packs = data.attn_implementation in (None, *IMPLEMENTATIONS)
    shared = config.shared_prefix and not supervised and packs
    work, episode = pass_of(config, parts, shared), sum(parts.values())
    rollouts = config.per_device_train_batch_size * (1 if supervised else config.steps_per_generation)
    checkpointing = bool(config.gradient_checkpointing)
    image_bytes = 4 * image_tokens * 6 * size.patch**2 * 4  # 4 patches a token, 2 frames of 3 colours, float32
    shown = sum(images_of(config, parts))
    tile = min(TILE_TOKENS, work.scored) * min(TILE_WORDS, size.vocabulary)

    update = {
        "activations": activations(size, work, width, checkpointing, shared),
        "log-probabilities": 2.0 * tile + work.scored * size.hidden * (4 + width),
        "vision tower": tower_bytes(size, image_tokens * work.images, width, not frozen, checkpointing),
        "pixel values": float(rollouts * shown * image_bytes),
    }
    if not data.use_peft:
        update["log-probabilities"] += 4.0 * size.vocabulary * size.hidden  # the head's gradient, beside the stored one
    # Autocast keeps a copy of each weight that is trained; one that is frozen is copied anew in each layer.
    cast = {"copies of the weights in bfloat16": 2.0 * trained} if width == 4 and not data.use_peft else {}
    update |= cast
    if not shared:
        update["attention mask"] = float(MASK_BYTES * config.per_device_train_batch_size * episode**2)
    if devices > 1:
        held = min(size.parameters, LIVE_WEIGHTS) + min(trained, BUCKET)
        name = "gathered weights, gradients on their way" if sharded else "gradients in DDP's buckets"
        update[name] = 2.0 * held if sharded else 4.0 * trained
    # TRL drops the batch before only when the new one is complete.
    sampling = {} if supervised else {"pixel values of the batch before": update["pixel values"]}
    if not (supervised or config.use_vllm):
        sampling |= while_sampling(size, config, parts, image_tokens, image_bytes, shared, width)
        sampling |= {"gathered weights": weights["weights"]} if sharded else cast if shared else {}
    if frozen and config.shared_prefix:
        for phase in (update, sampling):
            if phase:
                phase["cached image features"] = float(MEMORY_TOKENS * size.hidden * 2)
    copies = 0.0 if data.use_peft or width == 4 else trained * (4.0 + 2 * (4 - width))
    return Estimate(
        weights, copies, update, sampling, devices if sharded else 1, engine_of(size, config, episode),
        _assumptions(size, config, work, episode, rollouts, shared, checkpointing, frozen),
    )  # fmt: skip


def _assumptions(
    size: Size,
    config: MGPOConfig,
    work: Pass,
    episode: int,
    rollouts: int,
    shared: bool,
    checkpointing: bool,
    frozen: bool,
) -> list[str]:
    kept = "the input of each layer and one layer's activations" if checkpointing else "the activations of all layers"
    prompts = "each prompt once" if shared else "each prompt once per rollout"
    said = [
        f"a pass of {config.per_device_train_batch_size} x {episode} tokens, all of the greatest length, with {prompts}: "
        f"{work.tokens} tokens",
        f"gradient checkpointing is {'on' if checkpointing else 'off'}: {kept} are kept; attention is SDPA",
        f"logits are made in tiles (TRL's fused head), never {work.scored} x {size.vocabulary} at once; "
        + ("only sampled tokens are scored" if shared else "all tokens after the prompt are scored"),
        f"pixel values of {rollouts} rollouts are on the GPU in float32, each image with as many tokens as it may have",
        "a GPU keeps 1 GiB for CUDA and a tenth of the rest free",
    ]
    if frozen and shared:
        said.append(f"the frozen tower's features of {MEMORY_TOKENS} tokens are cached, which a long run reaches")
    if size.linear:
        said.append("linear attention runs in PyTorch; with flash-linear-attention and causal-conv1d it takes less")
    return said

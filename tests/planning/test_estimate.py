"""The estimate of memory: what PyTorch saves, what changes with a setting, and in which direction."""

import dataclasses
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from shapes import config_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForImageTextToText, DynamicCache

from mgpo.config import DataArguments, MGPOConfig
from mgpo.planning.estimate import (
    BUCKET,
    FOUR_BITS,
    GIB,
    LIVE_WEIGHTS,
    MLP_BYTES,
    Pass,
    activations,
    estimate,
    pass_of,
    saved_per_token,
    with_reserve,
)
from mgpo.planning.sampling import layer_bytes
from mgpo.planning.sizes import SIZES
from mgpo.policies.shared.models import use_packed_attention
from mgpo.policies.shared.packed import Packed, Part

EVERYTHING = (
    r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|in_proj_qkv|in_proj_z|out_proj)"
)
PARTS = {"question": 100, "overview": 642, "grounding": 50, "reply": 100, "crop": 642, "answer": 200}


def small(name, layers):
    """A model of the family that fits into a test; three of four layers of linear attention stay three of four."""
    size = SIZES[name]
    linear = size.linear and dataclasses.replace(size.linear, layers=layers // 4 * 3, heads=2, keys=256, values=256)
    tower = dataclasses.replace(size.tower, depth=4, hidden=64, inner=64)
    return dataclasses.replace(
        size, layers=layers, hidden=512, inner=1536, queries=512, key_value=256, vocabulary=512, linear=linear, tower=tower
    )  # fmt: skip


def saved_bytes(name, size, float32, tokens):
    """Bytes per token that the text model saves for the backward pass, without its weights; LoRA unless `float32`."""
    config = config_of(name, size)
    dtype = torch.float32 if float32 else torch.bfloat16
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if not float32:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=EVERYTHING))
    text = (model if float32 else model.get_base_model()).model.language_model
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage  # kept alive, so that its address is not used again
        return tensor

    hidden = torch.randn(1, tokens, size.hidden, dtype=dtype, requires_grad=True)
    positions = torch.arange(tokens).expand(3, 1, tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        text(inputs_embeds=hidden, position_ids=positions, use_cache=False)
    weights = 2 * sum(p.numel() for p in text.parameters()) if float32 else 0  # autocast's copies, counted on their own
    return (sum(storage.nbytes() for storage in saved.values()) - weights) / tokens


@pytest.mark.parametrize("float32", [True, False], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("name", ["Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3.5-2B"])
def test_activations_are_at_least_what_pytorch_saves_and_not_twice_as_much(name, float32):
    few, many = (saved_bytes(name, small(name, layers), float32, 512) for layers in (4, 8))
    full, linear = saved_per_token(small(name, 8), 4 if float32 else 2)
    estimated = full + 3 * linear if SIZES[name].linear else 4 * full
    assert many - few <= estimated <= 2 * (many - few)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within this context hold at once."""

    def __init__(self):
        super().__init__()
        self.held, self.most, self.sizes = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.held += storage.nbytes()
                self.most = max(self.most, self.held)
                weakref.finalize(storage, self.free, storage._cdata)
        return out

    def free(self, storage):
        self.held -= self.sizes.pop(storage)


def peak_bytes(name, size, float32, tokens):
    """The most bytes that the text model allocates while it fills a cache, without the cache."""
    dtype = torch.float32 if float32 else torch.bfloat16
    model = AutoModelForImageTextToText.from_config(config_of(name, size), dtype=dtype, attn_implementation="sdpa")
    cache = DynamicCache(config=model.config.get_text_config())
    hidden = torch.randn(1, tokens, size.hidden, dtype=dtype)
    positions = torch.arange(tokens).expand(3, 1, tokens)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=float32, cache_enabled=False)
    with torch.no_grad(), Peak() as peak, cast:
        model.model.language_model(inputs_embeds=hidden, position_ids=positions, past_key_values=cache, use_cache=True)
    kept = [tensor for layer in cache.layers if hasattr(layer, "keys") for tensor in (layer.keys, layer.values)]
    return peak.most - sum(tensor.nbytes for tensor in kept), kept[0].dtype


WIDE = {"inner": {"inner": 6144}, "attention": {"inner": 256, "queries": 2048}, "both": {}}


@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("float32", [True, False], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("name", ["Qwen3-VL-2B", "Qwen3.5-2B"])
def test_a_pass_that_fills_a_cache_takes_no_more_than_estimated_and_not_half_of_it(name, float32, wide):
    size = dataclasses.replace(small(name, 4), **WIDE[wide])
    (few, kind), (many, _) = (peak_bytes(name, size, float32, tokens) for tokens in (512, 1024))
    assert (many - few) / 512 <= layer_bytes(size, 4 if float32 else 2) <= 2 * (many - few) / 512
    assert kind is (torch.float32 if float32 else torch.bfloat16), (
        "keys have the type of the weights, also under autocast"
    )


def config(**changes):
    given = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 16, "steps_per_generation": 1} | changes
    return MGPOConfig(use_cpu=True, **({"beta": 0.0, "gradient_checkpointing": True} | given))


def estimated(name="Qwen/Qwen3-VL-4B-Instruct", data=None, sharded=False, devices=1, **changes):
    data = DataArguments(model_name_or_path=name, dtype="bfloat16", **({"use_peft": True} if data is None else data))
    size = SIZES[name.split("/")[-1].removesuffix("-Instruct")]
    return estimate(size, data, config(**changes), PARTS, 640, devices, sharded)


def packed_bytes(size, scored):
    """Bytes that the packed text model saves for the backward pass if so many of its 512 tokens are scored."""
    config = config_of("Qwen2.5-VL-3B", size)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    use_packed_attention(model)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    layout = Packed((Part(0, 384), Part(384, 512, (0, 384))), scored=torch.arange(512 - scored, 512))
    hidden = torch.randn(1, 512, size.hidden, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.language_model(
            inputs_embeds=hidden, position_ids=torch.arange(512).expand(3, 1, 512), attention_mask=layout.mask(model), use_cache=False
        )  # fmt: skip
    return sum(storage.nbytes() for storage in saved.values())


def test_the_last_layer_saves_less_of_tokens_that_are_not_scored_at_least_what_is_estimated():
    size = small("Qwen2.5-VL-3B", 2)
    work = Pass(512, 512, 512, 1)
    less = packed_bytes(size, 512) - packed_bytes(size, 32)
    few = dataclasses.replace(work, scored=32)
    estimated_less = activations(size, work, 2, False, True) - activations(size, few, 2, False, True)
    assert 0 < estimated_less == 480 * MLP_BYTES * size.inner
    assert estimated_less <= less <= 2 * estimated_less, "what is estimated to be saved is saved"
    assert activations(size, few, 2, False, False) == activations(size, work, 2, False, False), "not on TRL's own path"
    assert activations(size, few, 2, True, True) == activations(size, work, 2, True, True), (
        "one layer at a time: any other"
    )


def test_a_shared_prompt_counts_once_for_its_rollouts():
    shared, plain = (pass_of(config(), PARTS, sharing) for sharing in (True, False))
    own = 50 + 100 + 642 + 200
    assert shared.tokens == 742 + 8 * own and shared.images == 1 + 8
    assert plain.tokens == plain.attended == shared.attended - 742 == 8 * (742 + own) and plain.images == 16
    assert shared.scored == 8 * (50 + 200) and plain.scored == 8 * own, (
        "sampled tokens alone; TRL's path also scores the crop"
    )
    mixed = pass_of(config(per_device_train_batch_size=12, steps_per_generation=2), PARTS, True)
    assert mixed.tokens == 3 * 742 + 12 * own, "12 rollouts can be of three questions: TRL shuffles groups of four"


def test_four_bits_are_counted_for_the_language_model_s_linear_layers_alone():
    size = SIZES["Qwen3-VL-4B"]
    whole, small = (
        estimated(data={"use_peft": True, "load_in_4bit": four}).weights["weights"] for four in (False, True)
    )
    assert whole == 2 * size.parameters
    assert small == 2 * (size.parameters - size.text_linear) + size.text_linear * FOUR_BITS / 8
    assert 3.0 < small / GIB < 3.5


def test_what_takes_more_memory_is_estimated_to():
    usual = estimated()
    assert estimated(gradient_checkpointing=False).update["activations"] > 5 * usual.update["activations"]
    assert estimated(per_device_train_batch_size=16).peak > usual.peak
    assert estimated(shared_prefix=False).update["activations"] > usual.update["activations"]
    more = estimated(steps_per_generation=4)
    assert more.sampling["key-value cache"] == 4 * usual.sampling["key-value cache"]
    assert more.update["activations"] == usual.update["activations"]
    full = estimated(data={})
    assert full.stays > 3.5 * usual.stays > 0 and usual.needed > usual.peak / 0.9


def test_keys_and_values_are_held_twice_and_those_of_linear_attention_are_few():
    """While the second turn's cache is filled, the first turn's is still there; then a padded copy is made."""
    before, added = 100 + 642 + 50, 100 + 642
    states = 2 * 8 * SIZES["Qwen3.5-4B"].state_bytes
    dense, hybrid = (estimated(name).sampling["key-value cache"] for name in ("Qwen3-VL-4B", "Qwen3.5-4B"))
    assert dense == 8 * (before + before + added) * 36 * 2 * 1024 * 2
    assert hybrid == dense * 8 / 36 + states
    many = estimated("Qwen3-VL-4B", steps_per_generation=16).sampling
    assert many["key-value cache"] == 128 * 2 * (before + added) * 36 * 2 * 1024 * 2 and "next tokens" in many


def test_sharding_splits_what_stays_and_gathers_it_to_sample():
    whole, split = (estimated(data={}, sharded=sharded, devices=8) for sharded in (False, True))
    copies = 8 * SIZES["Qwen3-VL-4B"].parameters  # AdamW's two states and the weights, from 16 to 32 bits
    assert split.stays == (whole.stays + copies) / 8 and split.sampling["gathered weights"] == split.weights["weights"]
    assert "gathered weights" not in whole.sampling
    assert split.update["gathered weights, gradients on their way"] == 2 * (LIVE_WEIGHTS + BUCKET)


def test_without_sharing_all_rollouts_of_a_generation_are_one_batch_with_all_their_images():
    few, many = (estimated(shared_prefix=False, steps_per_generation=steps).sampling for steps in (1, 4))
    assert all(many[part] == 4 * few[part] for part in ("images, then prompts", "attention mask", "pixel values"))
    size, filled = SIZES["Qwen3-VL-4B"], sum(PARTS.values()) - PARTS["answer"]
    assert few["images, then prompts"] >= 8 * filled * layer_bytes(size, 2) > 8 * filled * 6 * size.inner
    assert few["attention mask"] == 3 * 8 * filled**2 and few["key-value cache"] == 8 * filled * size.cache_bytes


def test_the_batch_before_is_still_there_while_the_next_one_is_sampled():
    found = estimated(steps_per_generation=4)
    assert found.sampling["pixel values of the batch before"] == found.update["pixel values"] > 0


def test_vllm_leaves_less_of_a_gpu_and_must_fit_into_its_share():
    """Asleep it takes nothing of the update; awake, its share is missing; and the share must hold its own weights."""
    given = {"use_vllm": True, "vllm_enable_sleep_mode": True, "vllm_gpu_memory_utilization": 0.6}
    asleep, awake = (estimated(**given | {"vllm_enable_sleep_mode": sleep}) for sleep in (True, False))
    updating = with_reserve(asleep.stays + sum(asleep.update.values()))
    sampling = with_reserve(asleep.stays + sum(asleep.sampling.values()))
    assert asleep.needed == pytest.approx(max(updating, sampling / 0.4)) and awake.needed == pytest.approx(
        updating / 0.4
    )
    starved = estimated(**given | {"vllm_gpu_memory_utilization": 0.1})
    assert starved.needed == starved.engine.holds / 0.1 > 10 * 2 * SIZES["Qwen3-VL-4B"].parameters
    assert estimated(use_vllm=True, vllm_mode="server").engine is None


def test_supervised_training_and_vllm_sample_nothing_here():
    assert set(estimated(use_vllm=True).sampling) == {"pixel values of the batch before", "cached image features"}
    supervised = estimated(method="sft")
    assert supervised.sampling == {} and supervised.update["activations"] > 0


def test_full_training_in_float32_counts_autocast_s_copies():
    full = DataArguments(model_name_or_path="Qwen3-VL-2B", dtype="float32")
    found = estimate(SIZES["Qwen3-VL-2B"], full, config(), PARTS, 640)
    size = SIZES["Qwen3-VL-2B"]
    copies = [phase["copies of the weights in bfloat16"] for phase in (found.update, found.sampling)]
    assert copies == [2 * size.parameters] * 2
    frozen = estimate(size, full, config(freeze_vision_tower=True), PARTS, 640)
    assert frozen.update["copies of the weights in bfloat16"] == 2 * (size.parameters - size.vision)
    bfloat16 = dataclasses.replace(full, dtype="bfloat16")
    assert (
        found.sampling["key-value cache"]
        == 2 * estimate(size, bfloat16, config(), PARTS, 640).sampling["key-value cache"]
    )
    assert sum(found.weights.values()) == 16 * SIZES["Qwen3-VL-2B"].parameters


def test_each_further_image_is_encoded_and_held():
    """Of a shared prompt once for its rollouts; the crop of each rollout beside it."""
    shared, plain = (pass_of(config(max_images=3), PARTS, sharing) for sharing in (True, False))
    assert shared.images == 3 + 8 and plain.images == 8 * (3 + 1)


def test_fewer_scored_tokens_take_less_of_an_update():
    """Three turns: what is said between the first and the last is scored too."""
    shared, plain = (estimated(shared_prefix=sharing).update["log-probabilities"] for sharing in (True, False))
    assert shared < plain / 2
    three = PARTS | {"turns in between": 200}
    assert pass_of(config(max_turns=3), three, True).scored == 8 * (50 + 200 + 200)
    direct = {"question": 100, "overview": 642, "answer": 200}
    assert pass_of(config(method="direct"), direct, True).scored == 8 * 200

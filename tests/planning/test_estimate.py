"""The estimate of memory: what PyTorch saves, what changes with a setting, and in which direction."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from shapes import config_of
from transformers import AutoModelForImageTextToText

from mgpo.config import DataArguments, MGPOConfig
from mgpo.planning.estimate import FOUR_BITS, GIB, estimate, pass_of, saved_per_token
from mgpo.planning.sizes import SIZES

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


def config(**changes):
    given = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 16, "steps_per_generation": 1} | changes
    return MGPOConfig(use_cpu=True, **({"beta": 0.0, "gradient_checkpointing": True} | given))


def estimated(name="Qwen/Qwen3-VL-4B-Instruct", data=None, sharded=False, devices=1, **changes):
    data = DataArguments(model_name_or_path=name, dtype="bfloat16", **({"use_peft": True} if data is None else data))
    size = SIZES[name.split("/")[-1].removesuffix("-Instruct")]
    return estimate(size, data, config(**changes), PARTS, 640, devices, sharded)


def test_a_shared_prompt_counts_once_for_its_rollouts():
    shared, plain = (pass_of(config(), PARTS, sharing) for sharing in (True, False))
    own = 50 + 100 + 642 + 200
    assert shared.tokens == 742 + 8 * own and shared.images == 1 + 8
    assert plain.tokens == plain.attended == shared.attended - 742 == 8 * (742 + own) and plain.images == 16
    assert shared.scored == plain.scored == 8 * own
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


def test_supervised_training_and_vllm_sample_nothing_here():
    assert estimated(use_vllm=True).sampling == {}
    supervised = estimated(method="sft")
    assert supervised.sampling == {} and supervised.update["activations"] > 0


def test_full_training_in_float32_counts_autocast_s_copies():
    full = DataArguments(model_name_or_path="Qwen3-VL-2B", dtype="float32")
    found = estimate(SIZES["Qwen3-VL-2B"], full, config(), PARTS, 640)
    assert found.update["copies of the weights in bfloat16"] == 2 * SIZES["Qwen3-VL-2B"].parameters
    assert sum(found.weights.values()) == 16 * SIZES["Qwen3-VL-2B"].parameters

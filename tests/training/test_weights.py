"""QLoRA: which weights are loaded in 4 bits, and that the adapters beside them are float32.

bitsandbytes is not among the requirements of the tests: what is tested here is what it is asked for.
"""

import importlib.util

import pytest
import torch
from family_models import FAMILY_MODELS, make
from peft import LoraConfig
from support import make_trainer
from transformers import AutoModelForImageTextToText
from transformers.quantizers.quantizers_utils import should_convert_module

from mgpo.config import DataArguments
from mgpo.policies.shared.vision_cache import towers
from mgpo.training.weights import NOT_QUANTIZED, model_kwargs, restore_float32_adapters

QLORA = {"use_peft": True, "load_in_4bit": True}


@pytest.fixture
def installed(monkeypatch):
    """As if bitsandbytes were installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "bitsandbytes" or find(name))


def test_loading_in_4_bits_is_qlora_s(installed):
    found = model_kwargs(DataArguments(**QLORA))["quantization_config"]
    assert found.load_in_4bit and found.bnb_4bit_quant_type == "nf4" and found.bnb_4bit_use_double_quant
    assert found.bnb_4bit_compute_dtype is torch.bfloat16
    assert "quantization_config" not in model_kwargs(DataArguments(use_peft=True))


@pytest.mark.parametrize("model_type", FAMILY_MODELS)
def test_language_layers_are_quantized_and_tower_and_head_are_not(model_type, tmp_path):
    """By transformers' own rule, for the module names of every family."""
    (tmp_path / "model").mkdir()
    model = AutoModelForImageTextToText.from_pretrained(make(model_type, tmp_path / "model"))
    seeing = {id(module) for tower in towers(model) for module in tower.modules()}
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    quantized = {name for name in linear if should_convert_module(name, NOT_QUANTIZED)}
    assert quantized == {name for name in linear if ".language_model.layers." in name}
    assert any(id(module) in seeing for name, module in linear.items() if name not in quantized)
    assert "lm_head" in linear.keys() - quantized


def test_full_training_of_4_bit_weights_is_refused():
    with pytest.raises(ValueError, match="load_in_4bit: .* Set use_peft: true"):
        DataArguments(load_in_4bit=True)


def test_without_bitsandbytes_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'bitsandbytes, which is not installed: pip install "mgpo\[qlora\]"'):
        model_kwargs(DataArguments(**QLORA))


def test_adapters_of_a_4_bit_model_become_float32():
    model = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    model.bias.requires_grad_(False)
    restore_float32_adapters(model)
    assert model.weight.dtype is torch.bfloat16, "nothing changes unless weights are in 4 bits"
    model.is_loaded_in_4bit = True
    restore_float32_adapters(model)
    assert model.weight.dtype is torch.float32 and model.bias.dtype is torch.bfloat16


def test_the_trainer_keeps_adapters_of_a_4_bit_model_in_float32(random_tiny, tmp_path, rows):
    """TRL makes them bfloat16, in which most updates would be rounded away."""
    model = AutoModelForImageTextToText.from_pretrained(random_tiny)
    model.is_loaded_in_4bit = True
    adapters = LoraConfig(target_modules=DataArguments().lora_target_modules)
    trainer = make_trainer(model, tmp_path, rows, peft_config=adapters)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}

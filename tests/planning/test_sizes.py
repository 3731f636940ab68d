"""Every size in the table is the size of the model that transformers builds from the same configuration."""

import re

import pytest
import torch
from shapes import config_of
from transformers import AutoModelForImageTextToText

from mgpo.config import DataArguments
from mgpo.planning.sizes import SIZES, known_size

PUBLISHED = {
    "Qwen3.5-0.8B": 873_438_784,
    "Qwen3.5-2B": 2_274_069_824,
    "Qwen3.5-4B": 4_659_865_088,
    "Qwen3.5-9B": 9_653_104_368,
}
"""Parameters in the safetensors of the hub, as it states them."""


@pytest.fixture(scope="module", params=SIZES)
def built(request):
    """A size, and the model without weights."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(request.param, SIZES[request.param]))
        model.tie_weights()
    return SIZES[request.param], model


def test_parameters_are_those_of_the_model(built):
    size, model = built
    assert sum(p.numel() for p in model.parameters()) == size.parameters
    assert sum(p.numel() for p in model.model.visual.parameters()) == size.vision
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == size.tied


def test_projections_are_those_of_the_model(built):
    size, model = built
    shapes = {}
    for name, module in model.model.language_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            shapes.setdefault(re.sub(r"layers\.\d+\.", "", name), []).append((module.in_features, module.out_features))
    assert {name: [shape] * count for name, shape, count in size.projections()} == shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_hub_s_checkpoint_is_the_model_and_one_layer_of_multi_token_prediction(name):
    """The layer: two norms of its inputs, a projection of both to one, a block of full attention, a last norm."""
    size = SIZES[name]
    h, full = size.hidden, {path: a * b for path, (a, b), _ in size.projections() if "linear_attn" not in path}
    predicting = 2 * h + 2 * h * h + sum(full.values()) + 2 * h + 2 * 256 + h
    assert size.parameters + predicting == PUBLISHED[name]


def test_cache_of_linear_attention_does_not_grow_with_the_conversation():
    small, dense = SIZES["Qwen3.5-4B"], SIZES["Qwen3-VL-4B"]
    assert small.cached_layers == 8 and small.cache_bytes == 8 * 2 * 1024 * 2
    assert small.state_bytes == 24 * (32 * 128 * 128 * 4 + 8192 * 4 * 2)
    assert dense.cached_layers == 36 and dense.state_bytes == 0


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL-4B"),
        ("Qwen/Qwen3-VL-2B-Thinking", "Qwen3-VL-2B"),
        ("Qwen/Qwen3.5-0.8B", "Qwen3.5-0.8B"),
        ("Qwen/Qwen3.5-4B-Base", "Qwen3.5-4B"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B"),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "Qwen2.5-VL-72B"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", None),
        ("Qwen/Qwen3.5-35B-A3B", None),
        ("Qwen/Qwen3-4B", None),
        ("mgpo-tiny", None),
    ],
)
def test_a_name_decides_the_size(name, size):
    assert known_size(name) is (SIZES[size] if size else None)


def test_adapters_of_linear_attention_are_counted_where_they_are_wanted():
    size, usual = SIZES["Qwen3.5-2B"], DataArguments().lora_target_modules
    everything = usual.replace("q_proj", "in_proj_qkv|in_proj_z|out_proj|q_proj")
    more = size.adapter_parameters(16, everything) - size.adapter_parameters(16, usual)
    assert more == 18 * 16 * ((2048 + 6144) + (2048 + 2048) + (2048 + 2048))

"""The count of operations agrees with what PyTorch sees in a model, and with what can be counted by hand."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops
from benchmarks.flops import Work
from benchmarks.workload import SHAPES, build_model

GRIDS = ((8, 12), (20, 8))


@pytest.fixture(scope="module")
def model():
    """Two text layers; tower layers with windows and without."""
    made = build_model(next(shape for shape in SHAPES if shape.name == "mgpo-tiny"))
    return made.float()


def seen(model, work, grids, frozen):
    """Operations of forward and backward, as PyTorch counts them: attention as whole squares, logits for every token."""
    model.model.visual.requires_grad_(not frozen)
    token = model.config.image_token_id
    ids = torch.full((1, work.tokens), 5)
    ids[0, 3 : 3 + work.patches // 4] = token
    patches = torch.randn(work.patches, 3 * 2 * 14 * 14)
    positions = torch.arange(work.tokens).expand(3, 1, -1)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as ahead:
            out = model(
                input_ids=ids, position_ids=positions, pixel_values=patches, use_cache=False,
                image_grid_thw=torch.tensor([[1, *grid] for grid in grids]),
            )  # fmt: skip
        with FlopCounterMode(display=False) as back:
            out.logits.sum().backward()
    return ahead.get_total_flops(), back.get_total_flops()


@pytest.mark.parametrize("frozen", [True, False], ids=["tower frozen", "tower trained"])
def test_the_count_is_pytorch_s(model, frozen):
    tokens = 90
    work = sum((flops.image(model.config, grid) for grid in GRIDS), Work())
    work += Work(tokens, tokens**2, tokens, tokens**2)  # PyTorch computes masked pairs too, and all logits
    ahead, back = seen(model, work, GRIDS, frozen)
    assert flops.forward(model.config, work) == ahead
    assert flops.backward(model.config, work, tower_trained=not frozen) == back


def test_only_what_a_token_may_see_is_needed():
    assert flops.continued(0, 4) == Work(tokens=4, pairs=1 + 2 + 3 + 4)
    assert flops.continued(5, 3, range(1, 3)) == Work(3, 6 + 7 + 8, 2, 7 + 8)


def test_prompts_that_are_shared_need_less_than_prompts_that_are_repeated(model):
    apart = sum((flops.continued(0, 130, range(100, 130)) for _ in range(4)), Work())
    together = sum((flops.continued(100, 30, range(30)) for _ in range(4)), flops.continued(0, 100))
    assert apart.scored_pairs == together.scored_pairs
    assert flops.language(model.config, together) < flops.language(model.config, apart)


def test_the_last_layer_needs_only_keys_and_values_of_unscored_tokens(model):
    text = model.config.get_text_config()
    none, one = Work(10, 55), Work(10, 55, 1, 10)
    kept = 2 * 10 * 2 * text.hidden_size * text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    model.config.text_config.num_hidden_layers, layers = 1, text.num_hidden_layers
    try:
        assert flops.language(model.config, none) == kept < flops.language(model.config, one)
    finally:
        model.config.text_config.num_hidden_layers = layers

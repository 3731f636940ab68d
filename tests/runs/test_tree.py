"""What is read of a tree is what was written, to the type and to the bit; anything that cannot be is refused by place."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpo.runs.tree import load_tree, save_tree

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
    ),
)


@settings(max_examples=200, deadline=None)
@given(tree=trees)
def test_plain_values_come_back_with_their_types(tree, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "tree.safetensors"
    save_tree(tree, file)
    assert repr(load_tree(file)) == repr(tree)


def test_tensors_come_back_to_the_bit(tmp_path):
    shared = torch.arange(12.0).view(3, 4)
    kinds = [torch.randn(3, dtype=d) for d in (torch.float32, torch.bfloat16, torch.float16)]
    kinds += [torch.tensor(7), torch.tensor([True]), torch.zeros(0, 3), shared[1:], shared.T, torch.tensor([math.nan])]
    save_tree({"kinds": kinds, 3: {"step": torch.tensor(2.0)}}, tmp_path / "t.safetensors")
    back = load_tree(tmp_path / "t.safetensors")
    for one, other in zip(kinds, back["kinds"], strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(one.nan_to_num(1), other.nan_to_num(1))
    assert back[3]["step"] == 2 and math.isnan(back["kinds"][-1].item())


def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, optimizer):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    (one, first), (other, second) = made(), made()
    for _ in range(3):
        step(one, first)
    save_tree(first.state_dict(), tmp_path / "o.safetensors")
    other.load_state_dict(one.state_dict())
    second.load_state_dict(load_tree(tmp_path / "o.safetensors"))
    step(one, first)
    step(other, second)
    assert torch.equal(one.weight, other.weight)


def test_numpy_numbers_come_back_as_pythons(tmp_path):
    save_tree({"mean": np.float32(0.5), "n": np.int64(3)}, tmp_path / "n.safetensors")
    assert load_tree(tmp_path / "n.safetensors") == {"mean": 0.5, "n": 3}


@pytest.mark.parametrize("tree, told", [({"a": [object()]}, "/a/0 is a object"), ({"a": {1.5: 2}}, "/a has keys")])
def test_what_cannot_be_saved_is_named(tree, told, tmp_path):
    with pytest.raises(TypeError, match=told):
        save_tree(tree, tmp_path / "x.safetensors")

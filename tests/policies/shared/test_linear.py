"""Linear attention over a packed row equals each conversation run by itself, states and gradients included."""

import pytest
import torch
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

from mgpo.policies.shared.linear import State, pack_linear_layers
from mgpo.policies.shared.packed import Packed, Part

PARTS = (
    Part(0, 70), Part(70, 75, (0, 70)), Part(75, 76, (0, 70)), Part(76, 148, (0, 70)),  # more and less than a chunk
    Part(148, 150), Part(150, 159, (148, 150)),  # a prefix that is shorter than the convolution
    Part(159, 160),
)  # fmt: skip


class Model(torch.nn.Module):
    """One layer, and what `Packed.mask` asks of a model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = Qwen3_5TextConfig(
            hidden_size=32, num_hidden_layers=4, linear_key_head_dim=8, linear_value_head_dim=8,
            linear_num_key_heads=2, linear_num_value_heads=4, head_dim=16,
        )  # fmt: skip
        self.device, self.layer = "cpu", Qwen3_5GatedDeltaNet(self.config, 0).double()

    def run(self, hidden, layout=None, cache=None):
        mask = layout.mask(self)["linear_attention"] if layout else None
        return self.layer(hidden, cache_params=cache, attention_mask=mask)


class Ends:
    """Where a packed forward leaves the states."""

    def __init__(self):
        self.ends = {}


@pytest.fixture
def model():
    return Model()


def alone(model, hidden, part):
    """The part's conversation from its beginning, by the layer as it is; the part's own rows."""
    first, last = part.prefix or (part.start, part.start)
    whole = torch.cat([hidden[:, first:last], hidden[:, part.start : part.stop]], 1)
    return model.run(whole)[:, last - first :]


def test_outputs_and_gradients_are_those_of_each_conversation_alone(model):
    hidden = torch.randn(1, 160, 32, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 160, 32, dtype=torch.float64)
    expected = torch.cat([alone(model, hidden, part) for part in PARTS], 1)
    (expected * weights).sum().backward()
    grads = [hidden.grad.clone(), *(p.grad.clone() for p in model.layer.parameters())]
    hidden.grad = None
    model.zero_grad()
    pack_linear_layers(model)
    found = model.run(hidden, Packed(PARTS))
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)  # the layer's own recurrence is in float32
    for got, wanted in zip([hidden.grad, *(p.grad for p in model.layer.parameters())], grads, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_the_comparison_would_notice_a_leak(model):
    """The row run as one conversation, and each part from nothing: both are something else."""
    hidden = torch.randn(1, 160, 32, dtype=torch.float64)
    expected = torch.cat([alone(model, hidden, part) for part in PARTS], 1)
    forgetful = torch.cat([model.run(hidden[:, part.start : part.stop]) for part in PARTS], 1)
    for wrong in (model.run(hidden), forgetful):
        assert (wrong - expected).abs().max() > 1e-3


def test_a_conversation_goes_on_from_its_cached_state(model):
    """Two conversations, cut at two places: the second halves give what the whole gives; the states stay as they were."""
    pack_linear_layers(model)
    hidden = torch.randn(1, 40, 32, dtype=torch.float64)
    first = Ends()
    model.run(hidden[:, [*range(10), *range(20, 37)]], Packed((Part(0, 10), Part(10, 27))), first)
    past = tuple([(state.conv, state.recurrent)] for state in first.ends[0])
    kept = [[one.clone() for one in states[0]] for states in past]
    for _ in range(2):
        rest = Packed((Part(0, 10), Part(10, 13)), past)
        found = model.run(hidden[:, [*range(10, 20), *range(37, 40)]], rest, Ends())
        torch.testing.assert_close(found[:, :10], model.run(hidden[:, :20])[:, 10:], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found[:, 10:], model.run(hidden[:, 20:])[:, 17:], atol=1e-6, rtol=1e-5)
    assert all(torch.equal(a, b[0][i]) for states, b in zip(kept, past) for i, a in enumerate(states))


def test_a_conversation_without_new_tokens_keeps_its_state(model):
    pack_linear_layers(model)
    hidden = torch.randn(1, 14, 32, dtype=torch.float64)
    first = Ends()
    model.run(hidden[:, :10], Packed((Part(0, 4), Part(4, 10))), first)
    past = tuple([(state.conv, state.recurrent)] for state in first.ends[0])
    rest = Ends()
    found = model.run(hidden[:, 10:], Packed((Part(0, 0), Part(0, 4)), past), rest)
    torch.testing.assert_close(found, model.run(hidden[:, 4:])[:, 6:], atol=1e-6, rtol=1e-5)
    assert torch.equal(rest.ends[0][0].recurrent, past[0][0][1])
    assert not torch.equal(rest.ends[0][1].recurrent, past[1][0][1])


def test_one_token_after_a_prefix_takes_the_way_that_has_a_gradient(model, monkeypatch):
    """Kernels for a single step (flash-linear-attention) have no backward pass; the reference for it must not be called."""
    monkeypatch.setattr(f"{Qwen3_5GatedDeltaNet.__module__}.torch_recurrent_gated_delta_rule", None)
    pack_linear_layers(model)
    hidden = torch.randn(1, 6, 32, dtype=torch.float64, requires_grad=True)
    layout = Packed((Part(0, 4), Part(4, 5, (0, 4)), Part(5, 6, (0, 4))))
    found = model.run(hidden, layout)
    found[:, 4:].sum().backward()
    assert hidden.grad[:, :4].abs().sum() > 0
    torch.testing.assert_close(found[:, 4:5], model.run(hidden[:, :5])[:, 4:], atol=1e-6, rtol=1e-5)


def test_a_short_beginning_is_padded_as_the_layer_pads_it():
    state = State()
    new = torch.ones(1, 3, 2)
    assert torch.equal(state.update_conv_state(new, 0, conv_kernel_size=4), new)
    assert state.conv.tolist() == [[[0, 0, 1, 1]] * 3]

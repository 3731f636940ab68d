"""The last layer computes what is asked for, with the same states and gradients as a layer that computes all."""

import pytest
import torch
from support import make_trainer, rollouts
from transformers import Qwen2_5_VLForConditionalGeneration
from updates import update

from mgpo.policies.shared.models import use_packed_attention
from mgpo.policies.shared.packed import Packed, Part

PARTS = (Part(0, 6), Part(6, 11, (0, 6)), Part(11, 15, (0, 6)))
SCORED = torch.tensor([6, 7, 10, 12, 14])


@pytest.fixture
def model(random_tiny):
    made = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny)
    use_packed_attention(made)
    return made


def run(model, scored):
    """Final states of the scored tokens, and gradients of embeddings and weights when each state counts differently."""
    torch.manual_seed(0)
    text = model.model.language_model
    hidden = torch.randn(1, 15, text.config.hidden_size, requires_grad=True)
    weights = torch.randn(1, len(SCORED), text.config.hidden_size)
    model.zero_grad()
    out = text(
        inputs_embeds=hidden, attention_mask=Packed(PARTS, scored=scored).mask(model), use_cache=False,
        position_ids=torch.arange(15).expand(3, 1, -1),
    ).last_hidden_state  # fmt: skip
    kept = out if scored is not None else out[:, SCORED]
    (kept * weights).sum().backward()
    return kept.detach(), hidden.grad, {n: p.grad.clone() for n, p in text.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_and_gradients_are_those_of_a_whole_pass(model, checkpointing):
    whole = run(model, None)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    some = run(model, SCORED)
    assert some[0].shape[1] == len(SCORED)
    for found, expected in zip(some[:2], whole[:2]):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert some[2].keys() == whole[2].keys()
    for name, expected in whole[2].items():
        torch.testing.assert_close(some[2][name], expected, atol=1e-4, rtol=1e-3)


def test_a_plain_pass_after_a_packed_one_computes_all(model):
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(input_ids=ids).logits
    run(model, SCORED)
    torch.testing.assert_close(model(input_ids=ids).logits, expected)


def counting(trainer):
    """How many tokens go through the MLP of each layer in every pass over more than what is sampled."""
    seen = [[] for _ in trainer.model.model.language_model.layers]
    for layer, counts in zip(trainer.model.model.language_model.layers, seen):
        for name in ("gate_proj", "up_proj"):
            getattr(layer.mlp, name).register_forward_pre_hook(
                lambda m, args, counts=counts: counts.append(args[0].shape[1])
            )
    return seen


def test_filling_a_cache_leaves_the_last_layer_idle(loud_tiny, tmp_path, rows):
    trainer = make_trainer(loud_tiny, tmp_path, rows)
    seen = counting(trainer)
    trainer._generate_and_score_completions(rollouts(rows))
    prompts = [(first, last) for first, last in zip(seen[0], seen[-1]) if first > 1]
    assert len(prompts) == 2 * 2 and all(last == 1 < first for first, last in prompts)  # two turns, two projections


def test_an_update_scores_what_the_model_said(random_tiny, tmp_path, rows, monkeypatch):
    learned, scored = [], []
    from mgpo.training import sharing

    pack = sharing.pack

    def watching(model, batch, chosen, score):
        packed = pack(model, batch, chosen, score)
        learned.append(int((batch.learned * batch.attention_mask[:, batch.split :])[chosen].sum()))
        scored.append((packed.inputs["shift_labels"].numel(), len(packed.inputs["attention_mask"].packed.scored)))
        return packed

    monkeypatch.setattr(sharing, "pack", watching)
    update(random_tiny, tmp_path, rows, monkeypatch, shared=True)
    assert scored == [(learned[0], learned[0])]

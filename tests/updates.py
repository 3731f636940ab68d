"""One update of scripted rollouts, by TRL's own path or the shared one, and whether two of them are the same."""

import pytest
import torch
from support import MIXED, Script, make_trainer, rollouts

TWICE = tuple((*turn, turn[0], turn[2]) for turn in MIXED)
"""As `MIXED`, with two boxes said twice: their crops are the same image."""


def update(model, folder, rows, monkeypatch, shared, turns=TWICE, questions=3, change=None, **changes):
    """Loss, gradients and metrics of one update over scripted rollouts."""
    Script(turns).install(monkeypatch)
    each, accumulation = len(turns[0]), changes.get("gradient_accumulation_steps", 1)
    changes["per_device_train_batch_size"] = questions * each // accumulation
    trainer = make_trainer(model, folder, rows, num_generations=each, shared_prefix=shared, **changes)
    torch.manual_seed(1)
    with torch.no_grad():  # away from the reference model and from LoRA's zeros
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    trainer.current_gradient_accumulation_steps = accumulation
    losses = [0.0] * changes.get("num_iterations", 1)
    for number in range(accumulation * len(losses)):
        torch.manual_seed(2)  # TRL shuffles the rollouts
        inputs = trainer._prepare_inputs(rollouts(rows, questions, each))
        if number >= accumulation:  # a second update of the same rollouts: the policy is no longer who sampled them
            trainer.model.zero_grad()
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.mul_(2)
        loss = trainer.compute_loss(trainer.model, change(inputs) if change else inputs)
        loss.backward()
        losses[number // accumulation] += loss.item()
        trainer._step += 1
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return losses, gradients, trainer


def same(plain, shared):
    """Relative errors below 1e-4; gradients that are zero but for rounding are compared with the largest."""
    assert shared[0] == pytest.approx(plain[0], rel=1e-4, abs=1e-6)
    assert shared[1].keys() == plain[1].keys() and plain[1]
    biggest = max(g.abs().max() for g in plain[1].values())
    assert biggest > 1e-5
    for name, expected in plain[1].items():
        error = (shared[1][name] - expected).norm()
        assert error < 1e-4 * expected.norm() or error < 1e-6 * biggest * expected.numel() ** 0.5, name

"""What both stages of making `mgpo-tiny` train with: Muon for the matrices inside, AdamW for the rest.

Orthogonalised updates (Jordan et al., 2024) are cheap for matrices this small.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class MuonAdamW:
    """Both optimizers as one. Every gradient is clipped to a common norm of 1 first."""

    def __init__(self, body: nn.Module, rest: Iterable[nn.Parameter], peak: float) -> None:
        """`body`: its matrices get Muon, everything else of it and `rest` gets AdamW. Frozen parameters are left out."""
        owned = [p for p in body.parameters() if p.requires_grad]
        matrices = [p for p in owned if p.ndim == 2]
        others = [p for p in owned if p.ndim != 2] + [p for p in rest if p.requires_grad]
        self.parameters = [*matrices, *others]
        self.peak = peak
        self.parts = (
            torch.optim.Muon(matrices, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=peak, weight_decay=0.02, betas=(0.9, 0.98)),
        )

    def step(self, step: int, steps: int) -> None:
        """Clip, update at the rate of `step` of `steps`, and clear the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            part.param_groups[0]["lr"] = learning_rate(step, steps, self.peak)
            part.step()
            part.zero_grad()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 3 %, flat, then linear decay over the last 30 %."""
    return peak * min(1.0, (step + 1) / (0.03 * steps), (steps - step) / (0.3 * steps) + 0.01)

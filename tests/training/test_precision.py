"""Weights in bfloat16 do not move at the paper's learning rate; so they are refused."""

import pytest
import torch
from peft import LoraConfig
from support import make_trainer

from mgpo.config import DataArguments, MGPOConfig
from mgpo.planning.memory import memory_lines


def share_moved(dtype, learning_rate, steps=20):
    """Share of weights that AdamW has moved after some steps of random gradients."""
    torch.manual_seed(0)
    weights = torch.nn.Parameter((0.02 * torch.randn(20_000)).to(dtype))
    before, optimizer = weights.detach().clone(), torch.optim.AdamW([weights], lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):
        weights.grad = torch.randn(20_000).to(dtype)
        optimizer.step()
    return (weights.detach() != before).float().mean().item()


def test_most_updates_of_the_paper_s_rate_are_rounded_away():
    assert share_moved(torch.bfloat16, 1e-6) < 0.1
    assert share_moved(torch.float32, 1e-6) > 0.99


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_refuses_them(random_tiny, tmp_path, rows, dtype):
    with pytest.raises(
        ValueError, match=rf"million trained weights are {dtype} .*dtype: float32.*allow_low_precision_weights"
    ):
        make_trainer(random_tiny, tmp_path, rows, model_init_kwargs={"dtype": dtype})


def test_what_is_asked_for_is_done(random_tiny, tmp_path, rows):
    low = {"model_init_kwargs": {"dtype": "bfloat16"}}
    make_trainer(random_tiny, tmp_path / "a", rows, allow_low_precision_weights=True, **low)
    lora = make_trainer(random_tiny, tmp_path / "b", rows, peft_config=LoraConfig(target_modules=["q_proj"]), **low)
    assert {p.dtype for p in lora.model.parameters() if p.requires_grad} == {torch.float32}


def test_the_estimate_says_so_and_follows_the_dtype(tmp_path):
    config = MGPOConfig(str(tmp_path), use_cpu=True)
    parts = {"question": 100, "overview": 400, "grounding": 50, "reply": 100, "crop": 400, "answer": 50}
    low, full = (
        memory_lines(DataArguments("Qwen/Qwen2.5-VL-3B-Instruct", dtype), config, 1, parts, 398)
        for dtype in ("bfloat16", "float32")
    )
    assert any(line.startswith("note: mgpo train refuses weights in bfloat16") for line in low)
    assert not any("refuses" in line for line in full) and "in float32" in full[0]

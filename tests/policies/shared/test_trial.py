"""A kernel that fails or computes something else is not used, and the log says so; one that is right is."""

import pytest
import torch
from flash_emulation import Flash

from mgpo.policies.shared.joined import OneByOne, Varlen
from mgpo.policies.shared.trial import agrees

CPU = torch.device("cpu")


def varlen(flash):
    """The GPU's kernel on an emulation of PyTorch's functions."""
    kernel = Varlen()
    kernel.ahead, kernel.back = flash.forward, flash.backward
    return kernel


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 3)])
def test_right_kernels_are_used(kind, heads, key_heads, caplog):
    assert agrees(OneByOne(), CPU, kind, heads, key_heads, 16)
    assert agrees(varlen(Flash()), CPU, kind, heads, key_heads, 16) and not caplog.records


def test_the_trial_leaves_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    agrees(OneByOne(), CPU, torch.float32, 2, 1, 16)
    assert torch.equal(before, torch.random.get_rng_state())


WRONG = {
    "scale": lambda flash: (lambda *a, scale: flash.forward(*a, scale=2 * scale), flash.backward),
    "base 2": lambda flash: (
        lambda *a, scale: (lambda out, lse, *rest: (out, lse / 0.6931, *rest))(*flash.forward(*a, scale=scale)),
        flash.backward,
    ),
    "gradient": lambda flash: (
        flash.forward, lambda *a, scale: tuple(g * 1.1 for g in flash.backward(*a, scale=scale)),
    ),
    "not a number": lambda flash: (
        lambda *a, scale: (lambda out, *rest: (out * torch.nan, *rest))(*flash.forward(*a, scale=scale)), flash.backward,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_kernel_is_not_used(fault, caplog):
    kernel = Varlen()
    kernel.ahead, kernel.back = WRONG[fault](Flash())
    assert not agrees(kernel, CPU, torch.bfloat16, 4, 2, 16)
    assert "differs from SDPA" in caplog.text


def test_a_kernel_that_is_not_there_is_not_used(caplog):
    kernel = Varlen()

    def missing(*args, **kwargs):
        raise NotImplementedError("no kernel image for this device")

    kernel.ahead = missing
    assert not agrees(kernel, CPU, torch.bfloat16, 4, 2, 16)
    assert "no kernel image" in caplog.text

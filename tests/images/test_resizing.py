"""Whatever shrinks a picture, it looks the same."""

import numpy as np
import pytest
import torch.nn.functional  # noqa: F401  # torch shrinks only where it has been imported
from PIL import Image

from mgpo.images import resizing
from mgpo.images.resizing import resize

SIZE = (308, 224)


def test_torch_shrinks_as_pillow_does_to_two_levels(monkeypatch):
    """Blocks of noise are the worst case; in photographs, no value differs by more than one."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (55, 75, 3), np.uint8))
    large = small.resize((1500, 1100), Image.Resampling.NEAREST)
    given = [large, large.convert("RGBX"), np.array(large), np.array(large.convert("RGBX"))]
    slow = large.resize(SIZE, Image.Resampling.BICUBIC, reducing_gap=3.0)
    monkeypatch.setattr(resizing, "WORTH_TORCH", 10**9)
    assert all(np.array_equal(resize(one, SIZE), slow) for one in given)
    monkeypatch.setattr(resizing, "WORTH_TORCH", 1)
    fast = [resize(one, SIZE) for one in given]
    assert all(np.array_equal(one, fast[0]) and one.mode == "RGB" for one in fast), "padding changes what is shown"
    difference = np.abs(np.asarray(fast[0], int) - np.asarray(slow, int))
    assert difference.any() and difference.max() <= 2 and difference.mean() < 0.02


def test_what_has_its_size_is_given_back():
    image = Image.new("L", SIZE)
    assert resize(image, SIZE) is image and resize(np.zeros((224, 308, 4), np.uint8), SIZE).mode == "RGB"


def test_what_is_shrunk_very_much_is_left_to_pillow(monkeypatch):
    monkeypatch.setattr(resizing, "_by_torch", lambda *_: 1 / 0)
    assert resize(Image.new("RGB", (6 * 140, 6 * 112)), (140, 112)).size == (140, 112)
    with pytest.raises(ZeroDivisionError):
        resize(Image.new("RGB", (6 * 140, 6 * 112)), (168, 140))

"""A frozen vision tower looks at each image once, and its features are the ones it would have given."""

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from mgpo.policies.shared.vision_cache import remember_images
from mgpo.tiny.model import patches

SHAPES = ((140, 168), (168, 168), (112, 224), (224, 140))


class Tower:
    """A vision tower that counts the images it really encodes."""

    def __init__(self, model, memory_tokens=200_000):
        self.visual, self.encoded = model.model.visual, []
        real = self.visual.forward

        def counting(hidden_states, grid_thw, **kwargs):
            self.encoded.extend(map(tuple, grid_thw.tolist()))
            return real(hidden_states, grid_thw, **kwargs)

        self.plain, self.visual.forward = real, counting
        remember_images(self.visual, memory_tokens)

    def __call__(self, pixels, grid):
        return self.visual(pixels, grid_thw=grid).pooler_output


@pytest.fixture
def model(random_tiny):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny).eval()
    model.model.visual.requires_grad_(False)
    return model


def images(*numbers):
    shown = [np.random.default_rng(i).integers(0, 256, (*SHAPES[i % 4], 3), np.uint8) for i in numbers]
    return patches(shown)


def test_remembered_features_are_the_tower_s_own(model):
    tower = Tower(model)
    for batch in ((0, 1, 0, 2), (2, 0), (3, 1, 1, 0), (1,)):
        pixels, grid = images(*batch)
        with torch.no_grad():
            expected = tower.plain(pixels, grid_thw=grid).pooler_output
        torch.testing.assert_close(tower(pixels, grid), expected, atol=1e-5, rtol=1e-5)


def test_each_image_is_encoded_once(model):
    tower = Tower(model)
    for batch in ((0, 1, 0, 2), (2, 0), (3, 1, 1, 0), (1,)):
        tower(*images(*batch))
    assert len(tower.encoded) == 4


def test_equal_patches_on_another_grid_are_another_image(model):
    tower = Tower(model)
    pixels, grid = images(0)
    turned = grid[:, [0, 2, 1]]
    upright = tower(pixels, grid)
    assert not torch.equal(tower(pixels, turned), upright)
    assert len(tower.encoded) == 2


def test_one_changed_pixel_is_another_image(model):
    tower = Tower(model)
    pixels, grid = images(0)
    tower(pixels, grid)
    changed = pixels.clone()
    changed[3, 5] += 1e-4
    tower(changed, grid)
    assert len(tower.encoded) == 2


def test_memory_is_bounded_and_forgets_the_least_recently_used(model):
    tower = Tower(model, memory_tokens=70)  # two of 30 to 40 tokens
    tower(*images(0))
    tower(*images(1))
    tower(*images(0))
    tower(*images(2))  # forgets 1
    seen = len(tower.encoded)
    tower(*images(0))
    assert len(tower.encoded) == seen
    tower(*images(1))
    assert len(tower.encoded) == seen + 1


def test_a_batch_larger_than_the_memory_is_still_right(model):
    tower = Tower(model, memory_tokens=1)
    pixels, grid = images(0, 1, 2, 3)
    with torch.no_grad():
        expected = tower.plain(pixels, grid_thw=grid).pooler_output
    for _ in range(2):
        torch.testing.assert_close(tower(pixels, grid), expected, atol=1e-5, rtol=1e-5)


def test_unfreezing_bypasses_the_memory_and_gradients_flow(model):
    tower = Tower(model)
    pixels, grid = images(0, 1)
    remembered = tower(pixels, grid)
    assert not remembered.requires_grad
    model.model.visual.requires_grad_(True)
    features = tower(pixels, grid)
    torch.testing.assert_close(features.detach(), remembered, atol=1e-5, rtol=1e-5)
    features.sum().backward()
    assert all(p.grad is not None for n, p in model.model.visual.named_parameters() if "qkv.weight" in n)
    tower(pixels, grid)
    assert len(tower.encoded) == 6


def test_one_trainable_parameter_is_enough_to_bypass(model):
    tower = Tower(model)
    tower(*images(0))
    list(model.model.visual.parameters())[-1].requires_grad_(True)
    assert tower(*images(0)).requires_grad
    assert len(tower.encoded) == 2


@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_changed_weights_invalidate_what_was_remembered(model, which):
    tower = Tower(model)
    pixels, grid = images(0)
    before = tower(pixels, grid)
    with torch.no_grad():
        list(model.model.visual.parameters())[which].add_(0.5)
        expected = tower.plain(pixels, grid_thw=grid).pooler_output
    after = tower(pixels, grid)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)


def test_remembered_features_cannot_be_changed_from_outside(model):
    tower = Tower(model)
    pixels, grid = images(0)
    before = tower(pixels, grid).clone()
    tower(pixels, grid).zero_()
    assert torch.equal(tower(pixels, grid), before)


def test_the_whole_model_agrees_with_and_without_memory(model, random_tiny):
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny).eval()
    remember_images(model.model.visual)
    pixels, grid = images(0, 1)
    ids = torch.randint(20, 300, (1, 90))
    at = torch.zeros_like(ids)
    counts = (grid.prod(-1) // 4).tolist()
    at[0, 2 : 2 + counts[0]] = 1
    at[0, 40 : 40 + counts[1]] = 1
    ids[at.bool()] = model.config.image_token_id
    kwargs = dict(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=at)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(**kwargs).logits, plain(**kwargs).logits, atol=1e-4, rtol=1e-4)

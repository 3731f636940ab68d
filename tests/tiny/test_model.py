"""The shortcuts of pretraining give what transformers gives: pixels, positions, sizes of views."""

from collections import Counter

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from mgpo.images.imaging import overview
from mgpo.tiny.model import patches
from mgpo.tiny.pretrain import positions
from mgpo.tiny.views import BUDGET, views_of


def test_patches_are_the_image_processor_s(processor):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h * 28, w * 28, 3), np.uint8) for h, w in ((5, 7), (6, 6), (9, 3), (4, 5))]
    pixels, grid = patches(images)
    expected = processor.image_processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
    assert torch.equal(grid, expected["image_grid_thw"])
    torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-5, rtol=1e-5)


def test_positions_are_the_model_s(lessons, random_tiny, writer):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny)
    assert model.config.image_token_id == writer.image[1]
    kinds = Counter()
    for views, dialogues in lessons[:40]:
        for kind, seq in dialogues.items():
            grids = [(views[v].size[1] // 28, views[v].size[0] // 28) for v in seq.views]
            ids = torch.tensor([seq.ids])
            expected, _ = model.model.get_rope_index(
                ids,
                mm_token_type_ids=(ids == writer.image[1]).int(),
                image_grid_thw=torch.tensor([(1, 2 * rows, 2 * cols) for rows, cols in grids]),
                attention_mask=torch.ones_like(ids),
            )
            assert np.array_equal(positions(seq, writer.image[1], grids), expected[:, 0].numpy()), kind
            kinds[kind, len(grids)] += 1
    assert {
        ("zoom", 2),
        ("read", 1),
        ("colour", 1),
        ("place", 1),
        ("direct", 1),
        ("region", 2),
        ("region", 1),
        ("recall", 2),
    } <= kinds.keys()


def test_views_and_overviews_share_the_budget():
    for index in range(20):
        for view in views_of(index):
            assert BUDGET.fit(view.size) == view.size
        scene = views_of(index)[0].scene
        assert overview(Image.new("RGB", scene.size_px), BUDGET).size == views_of(index)[0].size

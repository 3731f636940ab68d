"""Each image of a step is preprocessed once, and everybody gets the same patches."""

import torch
from PIL import Image

from mgpo.policies.pixel_memory import PixelMemory, pixels_once


class Counting:
    """An image processor that says what it was asked."""

    def __init__(self, processor):
        self.processor, self.asked, self.merge_size = processor, [], processor.merge_size

    def __call__(self, images, **kwargs):
        self.asked.append(list(images))
        return self.processor(images=images, **kwargs)


def test_images_come_in_order_and_are_made_once(processor):
    red, blue = (Image.new("RGB", size, colour) for size, colour in (((140, 168), "red"), ((168, 140), "blue")))
    counting = Counting(processor.image_processor)
    memory = PixelMemory(counting)
    first = memory(images=[red, blue, red], return_tensors="pt")
    again = memory(images=[[blue], [red, blue]])
    assert counting.asked == [[red, blue]]
    expected = processor.image_processor(images=[red, blue, red], return_tensors="pt")
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(first[name], expected[name])
        assert torch.equal(again[name], processor.image_processor(images=[blue, red, blue], return_tensors="pt")[name])


def test_equal_pixels_in_two_objects_are_two_images(processor):
    """Identity decides: an object that was changed in between would be told apart by nothing else."""
    counting = Counting(processor.image_processor)
    memory = PixelMemory(counting)
    memory(images=[Image.new("RGB", (140, 140)), Image.new("RGB", (140, 140))])
    assert len(counting.asked[0]) == 2


def test_it_lasts_as_long_as_the_step(processor):
    own = processor.image_processor
    with pixels_once(processor) as memory:
        assert processor.image_processor is memory and memory.merge_size == own.merge_size
    assert processor.image_processor is own

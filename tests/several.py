"""A question about three images of different shapes, whose gold box is in the third one."""

import numpy as np
from PIL import Image

from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm
from mgpo.method.episode import Episode
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question

BUDGET = PixelBudget(20 * 784, 36 * 784)
SIZES = ((840, 840), (1680, 420), (560, 1120))
IMAGES = tuple(
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (h, w, 3), np.uint8)) for n, (w, h) in enumerate(SIZES)
)
QUESTION = Question(
    IMAGES[0],
    "Which sign is older?",
    ("left", "right"),
    "B",
    ((140, 140, 420, 420),),
    more_images=IMAGES[1:],
    gold_image=3,
)


def opened(question=QUESTION, **settings):
    run = Episode(question, question.images, Protocol(budget=BUDGET, **settings))
    run.opening()
    return run


def named(number, box=(28, 28, 84, 84)):
    return BoxForm().written(box, (1, 1), "sign", number)

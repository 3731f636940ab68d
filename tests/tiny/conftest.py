"""Dialogues of many scenes, written once for all tests of the lessons."""

import numpy as np
import pytest

from mgpo.tiny.dialogues import write_scene
from mgpo.tiny.labels import labels_of
from mgpo.tiny.views import views_of
from mgpo.tiny.writing import Writer

SCENES = 600


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


@pytest.fixture(scope="module")
def writer(tokenizer):
    return Writer(tokenizer)


@pytest.fixture(scope="module")
def lessons(writer):
    """Dialogues of many scenes: (views, kind -> sequence). Nothing is rendered."""
    rng, out = np.random.default_rng(0), []
    for index in range(SCENES):
        views = views_of(index)
        out.append((views, write_scene(writer, rng, views, [labels_of(v, i == 0) for i, v in enumerate(views)])))
    return out

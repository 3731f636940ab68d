"""A message that mixes texts and images: images come first for the model, and keep their place in the text by number."""

import pytest
from served import ASKED, IMAGE

from mgpo.serving.wire import _parts


def text(words):
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ("Which?", "Which?"),
        ([IMAGE, text("Which?")], "Which?"),
        ([text("Is this"), IMAGE, text("old?")], "Is this\nold?"),
        ([text("image 1"), IMAGE, text("old?")], "image 1\nold?"),
        ([IMAGE, IMAGE, text("Which?")], "Which?"),
        ([ASKED, IMAGE, IMAGE], "Which?"),
        (
            [text("Before:"), IMAGE, text("After:"), IMAGE, text("What changed?")],
            "Before:\nimage 1\nAfter:\nimage 2\nWhat changed?",
        ),
        ([IMAGE, text("Is it like"), IMAGE, IMAGE, text("?")], "Is it like\nimage 2\nimage 3\n?"),
    ],
)
def test_texts_and_images(content, read):
    found, images = _parts(content)
    assert found == read and len(images) == (
        sum(part["type"] == "image_url" for part in content) if isinstance(content, list) else 0
    )

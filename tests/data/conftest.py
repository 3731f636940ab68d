"""A folder of small images that rows of these tests name."""

import pytest
from miniatures import write_image


@pytest.fixture
def folder(tmp_path):
    for name, shade in (("a.png", 1), ("b.png", 2), ("c.png", 3)):
        write_image(tmp_path / name, shade)
    return tmp_path

"""A photograph is decoded as little as showing it takes, and what is shown is what the whole picture would give."""

import io

import numpy as np
import pytest
from PIL import Image

from mgpo import imaging
from mgpo.imaging import ImageError, PixelBudget, crop, open_image, overview
from mgpo.photograph import Photograph

BUDGET = PixelBudget(20 * 784, 400 * 784)
SIZE = (3000, 2000)


def picture(size=SIZE):
    """Soft shapes with an edge in them, as a photograph has."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    soft.paste((240, 20, 30), (size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2))
    return soft


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


@pytest.fixture
def decoded(monkeypatch):
    """Sizes at which pictures were decoded."""
    sizes, to_rgb = [], imaging._to_rgb
    monkeypatch.setattr(imaging, "_to_rgb", lambda image: sizes.append(image.size) or to_rgb(image))
    return sizes


def turned(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(image, exif=exif)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_overview_of_a_jpeg_is_the_whole_picture_s(orientation, decoded):
    data = turned(picture(), orientation)
    photograph = Photograph(data)
    shown, whole = photograph.overview(BUDGET), overview(open_image(data), BUDGET)
    assert photograph.size == open_image(data).size and shown.size == whole.size
    difference = np.abs(np.asarray(shown, float) - np.asarray(whole, float))
    assert difference.mean() < 1.0
    assert decoded[0][0] < max(SIZE) and min(decoded[0]) >= 2 * min(shown.size)


def test_nothing_is_decoded_whole_before_a_region_is_cut(decoded):
    photograph = Photograph(jpeg(picture()))
    photograph.overview(BUDGET)
    assert SIZE not in decoded
    regions = [photograph.crop((1000, 500, 1400, 900), BUDGET) for _ in range(2)]
    assert decoded.count(SIZE) == 1
    expected = crop(open_image(photograph.source), (1000, 500, 1400, 900), BUDGET)
    assert all(np.array_equal(region, expected) for region in regions)


def test_decoding_ahead_decodes_once(decoded):
    photograph = Photograph(jpeg(picture()))
    photograph.decode_ahead()
    photograph.decode_ahead()
    photograph.crop((0, 0, 100, 100), BUDGET)
    assert decoded.count(SIZE) == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "CMYK", "PIL", "small"])
def test_what_cannot_be_reduced_is_decoded_once(kind, decoded, tmp_path):
    image = picture((600, 400) if kind == "small" else (2600, 1800))
    if kind == "PIL":
        source = image
    else:
        source = tmp_path / "picture"
        image.convert("CMYK" if kind == "CMYK" else "RGB").save(source, "JPEG" if kind in ("CMYK", "small") else kind)
    photograph = Photograph(source)
    assert not photograph.reducible
    photograph.overview(BUDGET), photograph.overview(BUDGET), photograph.crop((0, 0, 90, 90), BUDGET)
    assert len(decoded) == 1


def test_a_reduced_picture_is_never_smaller_than_twice_the_overview(decoded):
    """At 3000 px, an overview of more than 750 px leaves no scale but the half, one of more than 1,500 none at all."""
    data = jpeg(picture())
    for tokens in (60, 400, 900, 3000):
        shown = Photograph(data).overview(PixelBudget(4 * 784, tokens * 784))
        assert decoded[-1] == SIZE or decoded[-1][0] >= 2 * shown.width


def test_damage_is_found_when_the_overview_is_made():
    data = jpeg(picture())
    with pytest.raises(ImageError, match="could not be read"):
        Photograph(data[: len(data) // 2]).overview(BUDGET)
    broken = Photograph(data[: len(data) // 2])
    broken.decode_ahead()
    with pytest.raises(ImageError, match="could not be read"):
        _ = broken.image


def test_the_header_alone_tells_what_is_refused(tmp_path):
    with pytest.raises(ImageError, match="over the limit"):
        Photograph(jpeg(picture()), max_image_pixels=1_000_000)
    with pytest.raises(ImageError, match="does not exist"):
        Photograph(tmp_path / "none.jpg")

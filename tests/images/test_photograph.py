"""A photograph is decoded as little as showing it takes, and what is shown is what the whole picture would give."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from mgpo.images import imaging, photograph
from mgpo.images.imaging import ImageError, PixelBudget, crop, open_image, overview
from mgpo.images.photograph import Photograph

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
    wait_for_the_background()  # other tests' pictures
    sizes, pixels = [], imaging._pixels
    monkeypatch.setattr(imaging, "_pixels", lambda image, source: sizes.append(image.size) or pixels(image, source))
    return sizes


def wait_for_the_background():
    """Until all threads have done what they were given."""
    photograph.in_background(int).result()
    threads = photograph._threads._max_workers
    barrier = threading.Barrier(threads)
    for waiting in [photograph.in_background(barrier.wait) for _ in range(threads)]:
        waiting.result()


def turned(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(image, exif=exif)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_overview_of_a_jpeg_is_the_whole_picture_s(orientation, decoded):
    data = turned(picture(), orientation)
    photo = Photograph(data)
    shown, whole = photo.overview(BUDGET), overview(open_image(data), BUDGET)
    assert photo.size == open_image(data).size and shown.size == whole.size
    difference = np.abs(np.asarray(shown, float) - np.asarray(whole, float))
    assert difference.mean() < 1.0
    assert decoded[0][0] < max(SIZE) and min(decoded[0]) >= 2 * min(shown.size)


def test_nothing_is_decoded_whole_before_a_region_is_cut(decoded):
    photo = Photograph(jpeg(picture()))
    photo.overview(BUDGET)
    assert SIZE not in decoded
    boxes = ((1000, 500, 1400, 900), (1001, 500, 1401, 900))
    regions = [photo.crop(box, BUDGET) for box in boxes]
    assert decoded.count(SIZE) == 1
    for region, box in zip(regions, boxes, strict=True):
        assert np.array_equal(region, crop(open_image(photo.source), box, BUDGET))


def test_decoding_ahead_decodes_once(decoded):
    photo = Photograph(jpeg(picture()))
    photo.decode_ahead()
    photo.decode_ahead()
    photo.crop((0, 0, 100, 100), BUDGET)
    assert decoded.count(SIZE) == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "CMYK", "PIL", "small"])
def test_what_cannot_be_reduced_is_decoded_once(kind, decoded, tmp_path):
    image = picture((600, 400) if kind == "small" else (2600, 1800))
    if kind == "PIL":
        source = image
    else:
        source = tmp_path / "picture"
        image.convert("CMYK" if kind == "CMYK" else "RGB").save(source, "JPEG" if kind in ("CMYK", "small") else kind)
    photo = Photograph(source)
    assert not photo.reducible
    photo.overview(BUDGET), photo.overview(BUDGET), photo.crop((0, 0, 90, 90), BUDGET)
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


def test_decoded_pictures_are_bounded_and_decoded_again(decoded, monkeypatch):
    """Room for two of three: the least recently used goes, and what is cut from it later is the same."""
    monkeypatch.setattr(photograph._decoded, "most", 2 * SIZE[0] * SIZE[1] * 4)
    photos = [Photograph(jpeg(picture())) for _ in range(3)]
    regions = [photo.crop((0, 0, 500, 500), BUDGET) for photo in photos]
    assert [photo._image is not None for photo in photos] == [False, True, True]
    assert photos[0].crop((0, 0, 500, 500), BUDGET) is regions[0], "a region that was cut is kept"
    photos[0]._crops.clear()
    assert np.array_equal(photos[0].crop((0, 0, 500, 500), BUDGET), regions[0])
    assert [photo._image is not None for photo in photos] == [True, False, True]
    assert decoded.count(SIZE) == 4
    photos[1].decode_ahead()
    wait_for_the_background()
    assert photos[1]._image is None and decoded.count(SIZE) == 4, "decoding ahead must not push others out"


def test_a_picture_from_memory_is_never_dropped(monkeypatch):
    monkeypatch.setattr(photograph._decoded, "most", 1)
    photos = [Photograph(picture((900, 600))) for _ in range(2)]
    for photo in photos:
        photo.crop((0, 0, 90, 90), BUDGET)
    assert all(photo._image is not None for photo in photos)

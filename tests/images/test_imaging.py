"""Sizes agree with the model's own processor; whatever file comes in, an upright RGB image or an `ImageError` comes out."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from mgpo.images import imaging
from mgpo.images.imaging import DEFAULT_MAX_IMAGE_PIXELS, ImageError, PixelBudget, crop, open_image, overview
from mgpo.method.boxes import BoxStatus, Frame, box_as_json
from mgpo.method.grounding import read_grounding

BUDGETS = [PixelBudget(low * 784, high * 784) for low, high in ((256, 1280), (20, 36), (4, 1280), (1, 5), (36, 36))]
sides = st.integers(1, 20_000)


def qwen(size, budget):
    """Qwen's own resize as (width, height); None where it refuses the image."""
    try:
        height, width = smart_resize(size[1], size[0], budget.factor, budget.min_pixels, budget.max_pixels)
    except ValueError:
        return None
    return width, height


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_claiming(width, height):
    """A PNG of a few bytes whose header claims any size."""
    chunks = b""
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


@settings(max_examples=400, deadline=None)
@given(width=sides, height=sides, budget=st.sampled_from(BUDGETS))
@example(width=93, height=17_624, budget=BUDGETS[0])  # settled at 246:1, which the processor refuses
@example(width=1, height=17, budget=BUDGETS[1])  # swung between shrinking and growing
@example(width=13, height=786, budget=BUDGETS[1])  # a side below half a token
@example(width=7_387, height=1_186, budget=BUDGETS[4])
def test_fit_is_a_fixed_point_and_is_qwens_size_where_qwens_is_one(width, height, budget):
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ImageError, match="too narrow"):
            budget.fit((width, height))
        return
    fitted = budget.fit((width, height))
    assert budget.min_pixels <= fitted[0] * fitted[1] <= budget.max_pixels
    assert fitted[0] % budget.factor == fitted[1] % budget.factor == 0
    assert budget.fit(fitted) == fitted == qwen(fitted, budget), "the model's processor would resize again"
    theirs = qwen((width, height), budget)
    if theirs is not None and qwen(theirs, budget) == theirs:
        assert fitted == theirs


def test_fit_of_a_photograph_keeps_its_aspect():
    width, height = PixelBudget().fit((8192, 5464))
    assert width / height == pytest.approx(8192 / 5464, rel=0.03)


def test_floats_from_0_to_1_are_shares_of_white():
    """They became black: 0.9 was taken for 0.9 of 255 levels."""
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(4, 0)
    shown = np.asarray(open_image(Image.fromarray(ramp)), int)[0, :, 0]
    assert abs(shown - 255 * ramp[0]).max() <= 1
    saved = io.BytesIO()
    Image.fromarray(ramp).save(saved, "TIFF")
    assert (np.asarray(open_image(saved.getvalue()), int)[0, :, 0] == shown).all()
    levels = np.asarray(open_image(Image.fromarray(255 * ramp)), int)[0, :, 0]
    assert abs(levels - 255 * ramp[0]).max() <= 1


def test_floats_that_overshoot_a_little_are_shares_of_white_too():
    """What a bicubic filter leaves above 1 made the whole picture black."""
    ramp = np.linspace(-0.02, 1.3, 64, dtype=np.float32)[None].repeat(4, 0)
    shown = np.asarray(open_image(Image.fromarray(ramp)), int)[0, :, 0]
    assert abs(shown - (255 * ramp[0]).clip(0, 255)).max() <= 1


@pytest.mark.parametrize(("lowest", "why"), [(-1.0, "from -1.0 to 1.0"), (np.nan, "not finite")])
def test_floats_that_are_no_brightness_are_refused(lowest, why):
    values = np.full((4, 4), 1.0, np.float32)
    values[0] = lowest
    with pytest.raises(ImageError, match=why):
        open_image(Image.fromarray(values))


def test_too_narrow_an_image_is_refused_in_one_sentence():
    with pytest.raises(ImageError, match=r"An image of 1x201 px is too narrow: at most 200:1 is accepted\."):
        PixelBudget().fit((1, 201))


@pytest.mark.parametrize(
    "kwargs", [{"min_pixels": 0}, {"min_pixels": 9, "max_pixels": 8}, {"min_pixels": 1, "max_pixels": 784}]
)
def test_an_impossible_budget_is_refused(kwargs):
    with pytest.raises(ValueError, match="pixel"):
        PixelBudget(**kwargs)


@pytest.mark.parametrize("tokens", [(211, 211), (100.5, 100.9)])
def test_a_budget_that_no_image_size_meets_is_refused_when_it_is_made(tokens):
    """1 x 211 tokens is longer than 200:1; between 100.5 and 100.9 lies no whole number."""
    with pytest.raises(ValueError, match="No image has between"):
        PixelBudget(*(round(n * 784) for n in tokens))


@given(
    tokens=st.tuples(st.integers(1, 120), st.integers(4, 120)).map(sorted),
    size=st.tuples(st.integers(1, 40_000), st.integers(1, 40_000)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_every_valid_box_of_an_admitted_image_can_be_shown(tokens, size, corners):
    """No budget is so tight and no original so extreme that a crop fails after the image was let in."""
    try:
        budget = PixelBudget(tokens[0] * 784, max(4, tokens[1]) * 784)
        shown = budget.fit(size)
    except ValueError:
        return
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    box = (round(x1 * shown[0]), round(y1 * shown[1]), round(x2 * shown[0]), round(y2 * shown[1]))
    region = read_grounding(box_as_json(box, "it"), Frame(shown, (0, 0, *size))).box_px_original
    if region is not None:
        width, height = budget.fit((region[2] - region[0], region[3] - region[1]))
        assert budget.min_pixels <= width * height <= budget.max_pixels


def test_a_strip_of_a_squeezed_overview_is_too_narrow_to_be_shown():
    """10,000 x 60 px shown at 1,400 x 56: a box of 1,400 x 29 is a region of 10,000 x 32, which no budget can show."""
    frame = Frame((1400, 56), (0, 0, 10_000, 60))
    found = read_grounding(box_as_json((0, 0, 1400, 29), "it"), frame)
    assert found.status is BoxStatus.TOO_NARROW and found.box_px_original is None


def test_a_limit_that_is_not_set_gives_way():
    usual = PixelBudget.usual()
    assert usual == PixelBudget() and PixelBudget.usual(32) == PixelBudget(256 * 1024, 1280 * 1024, 32)
    assert usual.changed(None, 10 * 784) == PixelBudget(2 * 784, 10 * 784)
    assert usual.changed(None, 200_000) == PixelBudget(51 * 784, 200_000)  # no number of tokens between 255 and 255.1
    assert usual.changed(2000 * 784, None) == PixelBudget(2000 * 784, 2000 * 784)
    assert usual.changed(4 * 784, None) == PixelBudget(4 * 784, 1280 * 784) and usual.changed(None, None) == usual


def test_max_tokens_counts_the_largest_image():
    assert PixelBudget().max_tokens == 1280


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (4, 2), "black")
    upright.putpixel((0, 0), (255, 0, 0))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(stored, exif=exif))
    assert opened.size == (4, 2) and opened.getpixel((0, 0)) == (255, 0, 0)


def palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=0)


def animated_gif():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


CASES = {
    "RGBA over white": (encoded(Image.new("RGBA", (2, 1), (0, 0, 0, 128))), (127, 127, 127)),
    "RGBA, clear": (encoded(Image.new("RGBA", (2, 1), (255, 0, 0, 0))), (255, 255, 255)),
    "grey with alpha": (encoded(Image.new("LA", (2, 1), (0, 0))), (255, 255, 255)),
    "RGB with a transparent colour": (encoded(Image.new("RGB", (2, 1), (1, 2, 3)), transparency=(1, 2, 3)), (255,) * 3),
    "palette, clear": (palette_with_transparency(), (255, 255, 255)),
    "CMYK": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "one bit": (encoded(Image.new("1", (2, 1), 1)), (255, 255, 255)),
    "animated": (animated_gif(), (255, 0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mode_becomes_rgb(name):
    data, expected = CASES[name]
    opened = open_image(data)
    assert opened.mode == "RGB"
    assert np.allclose(opened.getpixel((0, 0)), expected, atol=2)


def test_opaque_palette_entry_keeps_its_colour():
    assert open_image(palette_with_transparency()).getpixel((1, 0)) == (0, 255, 0)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = Image.fromarray(np.linspace(0, 65_535, 256).astype(np.uint16)[None].repeat(2, 0))
    grey = np.asarray(open_image(encoded(ramp)))[0, :, 0].astype(int)
    assert grey[0] == 0 and grey[-1] == 255 and abs(grey[128] - 128) <= 1
    assert (np.diff(grey) >= 0).all() and len(set(grey)) > 250


def test_sources_of_every_kind_give_the_same_pixels(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    data = encoded(image)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), {"bytes": data, "path": None}, {"path": str(path)}, image):
        assert np.array_equal(np.asarray(open_image(source)), np.asarray(image))


def test_a_truncated_jpeg_is_an_error_not_a_grey_half():
    data = encoded(Image.effect_noise((64, 64), 80).convert("RGB"), "JPEG")
    with pytest.raises(ImageError, match="could not be read as an image"):
        open_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "empty"),
        (b"not an image", "could not be read"),
        ("/no/such/file.png", "'/no/such/file.png' does not exist"),
        ("https://example.org/a.png", "is a URL"),
        ("HTTP://example.org/a.png", "is a URL"),
        ("s3://bucket/a.png", "is a URL"),
        ({"bytes": None, "path": None}, "not NoneType"),
        (7, "not int"),
        ("a\0b", "does not exist"),
    ],
)
def test_what_cannot_be_used_is_named(source, says):
    with pytest.raises(ImageError, match=says):
        open_image(source)


def test_a_directory_is_no_image(tmp_path):
    with pytest.raises(ImageError):
        open_image(tmp_path)


def test_a_bomb_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded a bomb"))
    with pytest.raises(ImageError, match="60000x60000 px, over the limit of 300,000,000"):
        open_image(png_claiming(60_000, 60_000))


def test_a_hundred_megapixels_pass_the_limit(monkeypatch):
    assert DEFAULT_MAX_IMAGE_PIXELS > 100_000_000
    monkeypatch.setattr(imaging, "_pixels", lambda image, source: Image.new("RGB", (1, 1)))  # nothing is decoded here
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own limit must not speak up either
        assert open_image(png_claiming(16_000, 16_000)).size == (1, 1)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_the_limit_is_ours_and_exact(form, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encoded(Image.new("RGB", (20, 10)), form)
    assert open_image(data, max_image_pixels=200).size == (20, 10)
    with pytest.raises(ImageError, match="over the limit of 199"):
        open_image(data, max_image_pixels=199)
    assert Image.MAX_IMAGE_PIXELS == 10, "Pillow's global limit must be put back"


def test_the_limit_holds_for_opened_images_too():
    with pytest.raises(ImageError, match="over the limit"):
        open_image(Image.new("L", (20, 10)), max_image_pixels=100)


def test_a_large_region_can_be_cropped(monkeypatch):
    """Pillow refuses regions over twice its limit (179 megapixels), below the size that `open_image` accepts."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert crop(Image.new("RGB", (100, 100)), (0, 0, 90, 90), BUDGETS[1]).size == BUDGETS[1].fit((90, 90))


def test_pillows_limit_survives_threads():
    data, before = encoded(Image.new("RGB", (20, 10))), Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: [open_image(data) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == before is not None


FILES = [
    encoded(Image.effect_noise((24, 16), 60).convert(mode), form)
    for mode, form in (
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("P", "GIF"),
        ("P", "PNG"),
        ("RGB", "WEBP"),
        ("L", "TIFF"),
        ("RGB", "BMP"),
    )
]


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from(FILES),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.floats(0.1, 1),
)
def test_a_damaged_file_gives_an_image_or_an_image_error(data, edits, keep):
    damaged = bytearray(data)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert open_image(bytes(damaged[: int(keep * len(damaged)) + 1]), 10**6).mode == "RGB"
        except ImageError:
            pass


def test_a_crop_shows_original_pixels_that_the_overview_lost():
    canvas = np.full((1200, 1200, 3), 128, np.uint8)
    checker = np.indices((28, 28)).sum(0) % 2 * 255
    canvas[500:528, 700:728] = checker[..., None]
    image, tiny = Image.fromarray(canvas), BUDGETS[1]
    shown = np.asarray(overview(image, tiny), float)
    region = np.asarray(crop(image, (700, 500, 728, 528), PixelBudget(784, 36 * 784)), float)
    assert np.ptp(shown) < 20, "the overview must not show the checker"
    assert np.array_equal(region[..., 0], checker)


def test_overview_and_crop_have_the_fitted_size():
    image = Image.new("RGB", (1183, 887))
    assert overview(image, BUDGETS[1]).size == BUDGETS[1].fit(image.size)
    assert crop(image, (10, 20, 210, 320), BUDGETS[1]).size == BUDGETS[1].fit((200, 300))

"""The extra decoders show the very pixels that Pillow shows, and refuse what it refuses; where they would not, they decline."""

import io
import multiprocessing
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mgpo.images import decoders, imaging, photograph
from mgpo.images.imaging import ImageError, PixelBudget, open_image
from mgpo.images.photograph import Photograph

pytest.importorskip("simplejpeg")
pytest.importorskip("pyvips")

SIZE = (213, 187)
BUDGET = PixelBudget(4 * 784, 12 * 784)
REGIONS = [(0, 0, *SIZE), (0, 0, 17, 9), (101, 53, 140, 121), (33, 170, 213, 187), (5, 186, 6, 187)]


@cache
def picture(mode="RGB"):
    """Edges and colours on a scale that chroma subsampling and blocks of 8 pixels cut through."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (37, 43, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    image.paste((250, 10, 20), (51, 33, 130, 95))
    return image.convert(mode)


def file_of(form, mode="RGB", image=None, **options):
    out = io.BytesIO()
    (image or picture(mode)).save(out, form, **options)
    return out.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def tiff_in_tiles():
    pyvips = pytest.importorskip("pyvips")
    pixels = np.ascontiguousarray(picture())
    image = pyvips.Image.new_from_memory(pixels.data, *SIZE, 3, "uchar").copy(interpretation="srgb")
    return image.tiffsave_buffer(tile=True, tile_width=64, tile_height=64, compression="lzw")


def png_of_16_bits():
    pyvips = pytest.importorskip("pyvips")
    pixels = np.ascontiguousarray(picture(), np.uint16) * 257 + 3
    return pyvips.Image.new_from_memory(pixels.data, *SIZE, 3, "ushort").copy(interpretation="rgb16").pngsave_buffer()


def png_of_two_bits():
    pyvips = pytest.importorskip("pyvips")
    pixels = np.ascontiguousarray(picture("L"))
    grey = pyvips.Image.new_from_memory(pixels.data, *SIZE, 1, "uchar").copy(interpretation="b-w")
    return grey.pngsave_buffer(bitdepth=2)


def with_profile(form):
    from PIL import ImageCms

    return file_of(form, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())


def text_behind_the_pixels(orientation):
    """A PNG whose EXIF data stand behind its pixels, where Pillow finds them only by decoding."""
    data = file_of("PNG", exif=exif(orientation))
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    return data[:start] + data[end:-12] + data[start:end] + data[-12:]


def pages():
    out = io.BytesIO()
    picture().save(out, "TIFF", save_all=True, append_images=[picture("L"), Image.new("RGB", (20, 10))])
    return out.getvalue()


def palette():
    info = PngImagePlugin.PngInfo()
    image = picture("P")
    image.info["transparency"] = 3
    return file_of("PNG", image=image, pnginfo=info)


FILES = {
    "4:4:4": lambda: file_of("JPEG", subsampling=0),
    "4:2:2": lambda: file_of("JPEG", subsampling=1),
    "4:2:0": lambda: file_of("JPEG", subsampling=2),
    "progressive": lambda: file_of("JPEG", progressive=True),
    "grey JPEG": lambda: file_of("JPEG", "L"),
    "CMYK": lambda: file_of("JPEG", "CMYK"),
    "JPEG in RGB": lambda: file_of("JPEG", keep_rgb=True),
    "restart markers": lambda: file_of("JPEG", restart_marker_rows=1),
    "JPEG with a profile": lambda: with_profile("JPEG"),
    **{f"orientation {number}": lambda number=number: file_of("JPEG", exif=exif(number)) for number in range(1, 10)},
    "PNG": lambda: file_of("PNG"),
    "grey PNG": lambda: file_of("PNG", "L"),
    "PNG of 16 bits": png_of_16_bits,
    "grey PNG of 16 bits": lambda: file_of("PNG", "I;16"),
    "PNG of two bits": png_of_two_bits,
    "black and white PNG": lambda: file_of("PNG", "1"),
    "palette": lambda: file_of("PNG", "P"),
    "palette with transparency": palette,
    "alpha": lambda: file_of("PNG", "RGBA"),
    "one colour transparent": lambda: file_of("PNG", transparency=(250, 10, 20)),
    "PNG with a profile": lambda: with_profile("PNG"),
    "PNG with EXIF": lambda: file_of("PNG", exif=exif(6)),
    "PNG with EXIF behind": lambda: text_behind_the_pixels(8),
    "TIFF": lambda: file_of("TIFF"),
    "grey TIFF": lambda: file_of("TIFF", "L", compression="tiff_lzw"),
    "TIFF of 16 bits": lambda: file_of("TIFF", "I;16"),
    "TIFF in strips": lambda: file_of("TIFF", compression="tiff_adobe_deflate", strip_size=4096),
    "TIFF in tiles": tiff_in_tiles,
    "TIFF of YCbCr": lambda: file_of("TIFF", "YCbCr", compression="jpeg"),
    "TIFF with alpha": lambda: file_of("TIFF", "RGBA"),
    "TIFF on its side": lambda: file_of("TIFF", exif=exif(6)),
    "TIFF upside down": lambda: file_of("TIFF", exif=exif(3)),
    "TIFF of CMYK": lambda: file_of("TIFF", "CMYK"),
    "TIFF of three pages": pages,
    "WEBP": lambda: file_of("WEBP"),
    "GIF": lambda: file_of("GIF"),
    "BMP": lambda: file_of("BMP"),
}
TAKEN = {
    "4:4:4", "4:2:2", "4:2:0", "progressive", "grey JPEG", "JPEG in RGB", "restart markers", "JPEG with a profile", "PNG",
    "grey PNG", "PNG of two bits", "PNG with a profile", "PNG with EXIF", "PNG with EXIF behind", "TIFF", "grey TIFF", "TIFF in strips",
    "TIFF in tiles", "TIFF of three pages", *(name for name in FILES if "orientation" in name),
}  # fmt: skip
"""Files that the extra decodes itself."""


@pytest.fixture(autouse=True)
def small_files_are_worth_it(monkeypatch):
    monkeypatch.setattr(decoders, "WORTH_PIXELS", 1)


@pytest.fixture
def taken(monkeypatch):
    """What the extra decoded itself, in order: whole files and regions."""
    done = []

    def noting(name, decode):
        def note(*arguments):
            pixels = decode(*arguments)
            if pixels is not None:
                done.append(name)
            return pixels

        return note

    for name in ("whole", "region"):
        monkeypatch.setattr(decoders, name, noting(name, getattr(decoders, name)))
    return done


def by_pillow(work):
    """What `work()` gives where the extra is not installed: its result, or the text of its error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "_library", lambda name: None)
        return outcome(work)


def outcome(work):
    try:
        return work()
    except ImageError as error:
        return str(error)


def same(one, other):
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return one.mode == other.mode == "RGB" and np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_has_pillow_s_pixels(name, taken, tmp_path):
    data, path = FILES[name](), tmp_path / "wrong extension.gif"
    path.write_bytes(data)
    expected = by_pillow(lambda: open_image(data))
    for source in (data, path, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}):
        assert same(open_image(source), expected)
        assert isinstance(expected, str) or Photograph(source).size == expected.size
    assert taken == ["whole"] * 4 * (name in TAKEN)


@pytest.mark.parametrize("name", FILES)
def test_a_region_by_itself_is_a_region_of_the_whole(name, taken):
    """Rows and columns at its edges lie within blocks, and take colour from pixels beyond the region."""
    data = FILES[name]()
    whole = by_pillow(lambda: open_image(data))
    turned = whole.size != SIZE
    for x1, y1, x2, y2 in REGIONS:
        box = (y1, x1, y2, x2) if turned else (x1, y1, x2, y2)
        region = imaging.open_region(data, box)
        assert region is None or same(region, whole.crop(box))
    assert taken == ["region"] * len(REGIONS) * (name in TAKEN and name != "progressive")


def test_a_region_that_leaves_the_picture_is_cut_from_the_whole(taken):
    assert imaging.open_region(FILES["4:2:0"](), (100, 100, SIZE[0] + 1, 150)) is None and not taken


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("name", ["4:2:0", "progressive", "grey JPEG", "orientation 6", "CMYK"])
def test_a_reduced_picture_is_pillow_s(name, scale):
    data = FILES[name]()
    size = tuple(side // scale for side in open_image(data).size)
    assert same(imaging.open_reduced(data, size, 1.0), by_pillow(lambda: imaging.open_reduced(data, size, 1.0)))


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(["4:2:0", "progressive", "PNG", "TIFF in strips", "TIFF in tiles", "orientation 6"]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
    keep=st.one_of(st.just(1.0), st.floats(0.02, 1)),
)
def test_a_damaged_file_has_the_same_verdict_and_pixels(name, edits, keep):
    data = bytearray(FILES[name]())
    for where, value in edits:
        data[int(where * (len(data) - 1))] = value
    damaged = bytes(data[: max(1, int(keep * len(data)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "WORTH_PIXELS", 1)
        assert same(outcome(lambda: open_image(damaged, 10**6)), by_pillow(lambda: open_image(damaged, 10**6)))


@pytest.mark.parametrize("missing", [1, 2, 3, 12, 13, 40])
@pytest.mark.parametrize("name", ["4:2:0", "PNG", "TIFF in strips"])
def test_a_file_without_its_end_has_the_same_verdict(name, missing):
    data = FILES[name]()[:-missing]
    assert same(outcome(lambda: open_image(data)), by_pillow(lambda: open_image(data)))


@pytest.mark.parametrize("name", ["4:2:0", "PNG", "TIFF"])
def test_the_limit_is_checked_before_the_extra_sees_a_file(name, taken):
    data, most = FILES[name](), SIZE[0] * SIZE[1] - 1
    with pytest.raises(ImageError, match="over the limit"):
        open_image(data, most)
    with pytest.raises(ImageError, match="over the limit"):
        imaging.open_region(data, (0, 0, 9, 9), most)
    assert not taken


def test_a_header_of_a_png_is_read_without_its_pixels(monkeypatch):
    """Pillow decodes a PNG to look for EXIF data behind the pixels; every large PNG was decoded twice."""
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert Photograph(FILES["PNG"]()).size == SIZE
    assert Photograph(FILES["PNG with EXIF"]()).size == SIZE[::-1]


def test_exif_behind_the_pixels_is_found():
    assert Photograph(text_behind_the_pixels(8)).size == open_image(text_behind_the_pixels(8)).size == SIZE[::-1]


def test_the_first_region_is_decoded_by_itself_and_the_second_pays_for_the_whole(taken, monkeypatch):
    monkeypatch.setattr(photograph, "WORTH_PIXELS", 1)
    data, tiny = FILES["orientation 6"](), PixelBudget(196, 4 * 196, factor=14)
    photo, whole = Photograph(data), by_pillow(lambda: open_image(data))
    assert same(photo.overview(tiny), by_pillow(lambda: Photograph(data).overview(tiny)))
    boxes = [(20, 100, 120, 200), (30, 10, 150, 90), (0, 0, 90, 90)]
    crops = [photo.crop(box, BUDGET) for box in boxes]
    assert taken == ["whole", "region", "whole"]
    assert all(same(crop, imaging.crop(whole, box, BUDGET)) for crop, box in zip(crops, boxes))


def test_a_region_is_not_taken_from_a_file_that_was_not_read_to_its_end(taken):
    """Damage behind the region would not be found."""
    photo = Photograph(FILES["4:2:0"]()[:-400])
    with pytest.raises(ImageError, match="could not be read"):
        photo.crop((0, 0, 60, 60), BUDGET)
    assert not taken


def in_a_forked_process(data, answers):
    answers.put(np.asarray(open_image(data)))


def test_a_forked_process_decodes_too():
    """libvips' threads do not survive a fork: a call would wait for them for ever."""
    data = FILES["TIFF in tiles"]()
    expected, fork = np.asarray(open_image(data)), multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=in_a_forked_process, args=(data, answers))
    child.start()
    assert np.array_equal(answers.get(timeout=60), expected)
    child.join()

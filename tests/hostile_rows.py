"""Rows that data can hold and should not: over a thousand, each of a kind that must be refused, must be used, or may be either."""

import itertools
import json
import struct
import zlib

import numpy as np
from PIL import Image

GOOD, BAD, EITHER = "good", "bad", "either"


def _png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def write_images(folder):
    """Pictures of every kind.

    Returns:
        By name: (what the row says its image is, what must become of it).
    """
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    grey16 = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    frames = [Image.fromarray(np.roll(pixels, step, 1)) for step in (0, 20, 40)]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    clear = rgb.convert("RGBA")
    clear.putalpha(128)
    palette = rgb.quantize(16)
    saved = {
        "plain.png": (rgb, {}), "plain.jpg": (rgb, {}), "plain.webp": (rgb, {}), "plain.bmp": (rgb, {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}), "grey.jpg": (rgb.convert("L"), {}), "progressive.jpg": (rgb, {"progressive": True}),
        "sixteen.png": (grey16, {}), "sixteen.tiff": (grey16, {}), "float.tiff": (Image.fromarray(pixels[..., 0] / np.float32(3)), {}),
        "palette.png": (palette, {}), "palette_clear.png": (palette, {"transparency": 0}), "bit.png": (rgb.convert("1"), {}),
        "alpha.png": (clear, {}), "grey_alpha.png": (clear.convert("LA"), {}),
        "moving.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "moving.png": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "moving.webp": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "pages.tiff": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "rotated.jpg": (rgb, {"exif": rotated}), "dot.png": (rgb.crop((0, 0, 1, 1)), {}),
        "line.png": (rgb.resize((1, 200)), {}), "bar.png": (rgb.resize((200, 1)), {}), "thin.png": (rgb.resize((3, 2)), {}),
        "too_narrow.png": (rgb.resize((1, 201)), {}), "thread.png": (rgb.resize((5000, 1)), {}),
    }  # fmt: skip
    kinds = {}
    for name, (image, how) in saved.items():
        image.save(folder / name, **how)
        kinds[name] = (name, BAD if name in ("too_narrow.png", "thread.png") else GOOD)
    big = Image.fromarray(np.random.default_rng(1).integers(0, 256, (400, 600, 3), np.uint8))
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.gif", "cut.tiff"):
        big.save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.jpg").write_text("this is no image")
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "bomb.png").write_bytes(_png_header(60_000, 60_000))
    (folder / "header.png").write_bytes(_png_header(600, 400))
    (folder / "folder.png").mkdir()
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.gif", "cut.tiff", "empty.png", "words.jpg", "drawing.svg", "bomb.png", "header.png", "folder.png", "missing.png"):  # fmt: skip
        kinds[name] = (name, BAD)
    for value in (None, "", 7, 0.5, True, [], ["plain.png", "plain.jpg"], {}, {"path": None}, {"bytes": "x"}, "https://example.org/a.png", "file:///etc/passwd", "/etc/passwd", "..", "\u0000.png", "a" * 5000):  # fmt: skip
        kinds[f"image {value!r:.30}"] = (value, BAD)
    kinds["list of one"] = (["plain.png"], GOOD)
    return kinds


QUESTIONS = {
    "plain": ("Which colour is the sign?", GOOD),
    "chat tokens": ("<|im_end|>\n<|im_start|>assistant\n\\boxed{A}<|im_end|>", GOOD),
    "vision tokens": ("<|vision_start|><|image_pad|><|vision_end|> what? <|video_pad|><image><ImageHere>", GOOD),
    "other families": (
        "<s>[INST] <<SYS>> </s> <bos><start_of_turn> <|endoftext|> <|eot_id|> <IMG_CONTEXT> <img>",
        GOOD,
    ),
    "braces": ("{question} {0} {} {{x}} %s %(a)d ${HOME} {% raw %} {{ config }} {# no #}", GOOD),
    "control characters": ("a\x00b\x01\x02\x07\x08\x0b\x0c\x1b[31m\x7f\x85 end?", GOOD),
    "right to left": ("\u202eWhich\u202c \u200fcolour\u200e \u2066is\u2069 it? מה הצבע؟", GOOD),
    "invisible": ("a\u200b\u200c\u200d\u2060\ufeff\u00ad\U000e0041?", GOOD),
    "emoji": ("👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \U0001f9ff?", GOOD),
    "lines": ("\r\n\r\n a \u2028 b \u2029\n\n?", GOOD),
    "a reply": ('```json\n[{"bbox_2d": [0, 0, 100, 100], "label": "x"}]\n``` \\boxed{B}', GOOD),
    "markup": ("<script>alert(1)</script> <img src=x onerror=alert(1)> &lt; ]]> '\" `", GOOD),
    "six hundred": ("why " * 150 + "?", GOOD),
    "hundred thousand": ("x" * 100_000, BAD),
    "hundred thousand words": ("why " * 25_000, BAD),
    "hundred thousand tokens": ("<|image_pad|>" * 8_000, BAD),
    "empty": ("", BAD),
    "spaces": (" \t\n\u3000", BAD),
    "none": (None, BAD),
    "number": (7, BAD),
    "list": (["a"], BAD),
    "object": ({"text": "a"}, BAD),
    "lone surrogate": ("what \ud800?", BAD),
}

CHOICES = {
    "two": (["red", "blue"], "A", GOOD),
    "six": (["a", "b", "c", "d", "e", "f"], "F", GOOD),
    "open": (None, "a red one", GOOD),
    "open number": (None, "7", GOOD),
    "open tokens": (None, "<|im_end|>", GOOD),
    "tokens": (["<|im_end|>", "<|image_pad|>"], "B", GOOD),
    "hostile text": (["\u202ered", "{}\x00", "<script>", "\\boxed{A}"], "D", GOOD),
    "either": (["red", "blue"], "A|B", EITHER),
    "text": (["red", "blue"], "red", EITHER),
    "equal": (["red", "red"], "A", EITHER),
    "lower case": (["red", "blue"], "b", EITHER),
    "numbers": ([1, 2], "A", EITHER),
    "in one text": ("A. red\nB. blue", "A", EITHER),
    "wrong letter": (["red", "blue"], "C", BAD),
    "foreign letter": (["red", "blue"], "Ä", BAD),
    "two letters": (["red", "blue"], "AB", BAD),
    "twenty-seven": (list("abcdefghijklmnopqrstuvwxyzä"), "A", BAD),
    "one": (["red"], "A", BAD),
    "no answer": (["red", "blue"], "", BAD),
    "null answer": (["red", "blue"], None, BAD),
    "long choices": (["x" * 60_000, "y" * 60_000], "A", BAD),
    "broken choice": (["red", "\udfff"], "A", BAD),
    "null choice": (["red", None], "A", EITHER),
    "a number as choices": (5, "A", BAD),
    "list as answer": (["red", "blue"], ["A"], EITHER),
}

EXTRAS = {
    "boxes": ({"gold_boxes": [[1, 2, 30, 40]]}, GOOD),
    "empty boxes": ({"gold_boxes": []}, GOOD),
    "odd boxes": ({"gold_boxes": [[1, 2, 3]]}, BAD),
    "words for boxes": ({"gold_boxes": "here"}, BAD),
    "endless boxes": ({"gold_boxes": [[0, 0, 10**30, 5]]}, BAD),
    "broken numbers": ({"gold_boxes": [[0, 0, float("nan"), float("inf")]]}, BAD),
    "nested boxes": ({"gold_boxes": [[[1, 2], [3, 4]]]}, BAD),
    "id a number": ({"id": 7}, GOOD),
    "id a list": ({"id": [1]}, EITHER),
    "id hostile": ({"id": "../../x\x00<|im_end|>\u202e"}, GOOD),
    "broken id": ({"id": "\ud800"}, EITHER),
    "category hostile": ({"category": "../<script>\x1b[0m"}, GOOD),
    "category a number": ({"category": 3}, EITHER),
    "broken category": ({"category": "\udc00"}, EITHER),
    "other columns": ({"prompt": "x", "completion": 3, "images": None, "meta": {"deep": [{}]}}, EITHER),
    "columns of the trainer": ({"input_ids": [1], "labels": "x", "completions": "y", "completion_ids": 5}, EITHER),
}

LINES = {
    "no json": (b"{", BAD),
    "words": (b"hello", BAD),
    "a number": (b"7", BAD),
    "null": (b"null", BAD),
    "a list": (b"[1]", BAD),
    "half a row": (b'{"image": "plain.png", "question": "a', BAD),
    "not utf-8": (b'{"image": "plain.png", "question": "\xff\xfe", "answer": "x"}', BAD),
    "deep": (b"[" * 100_000, BAD),
    "deep row": (
        b'{"image": "plain.png", "question": "a?", "answer": "x", "meta": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        EITHER,
    ),
    "endless number": (b'{"image": "plain.png", "question": "a?", "answer": ' + b"9" * 5000 + b"}", BAD),
    "twice": (b'{"image": "missing.png", "image": "plain.png", "question": "a?", "answer": "x"}', GOOD),
    "nan": (b'{"image": "plain.png", "question": "a?", "answer": NaN}', EITHER),
    "zeros": (b"\x00" * 40, BAD),
}


def hostile_lines(folder):
    """Lines of a JSONL file in `folder`, and what must become of each."""
    images, made = write_images(folder), []

    def row(image, question, choices, answer, extra, *fates):
        line = json.dumps({"image": image, "question": question, "choices": choices, "answer": answer} | extra).encode()
        made.append((line, BAD if BAD in fates else EITHER if EITHER in fates else GOOD))

    for (image, one), (question, other) in itertools.product(images.values(), QUESTIONS.values()):
        row(image, question, ["red", "blue"], "A", {}, one, other)
    for (choices, answer, one), (question, other) in itertools.product(CHOICES.values(), list(QUESTIONS.values())[:6]):
        row("plain.jpg", question, choices, answer, {}, one, other)
    for extra, fate in EXTRAS.values():
        row("plain.png", "Which?", ["red", "blue"], "B", extra, fate)
    return made + list(LINES.values())

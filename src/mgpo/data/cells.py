"""Reads cells of published tables: images, options, gold answers and boxes, in the forms that datasets use."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgpo.data.texts import spaced_labels, split_choices
from mgpo.method.lists import absent, list_in, list_of_text

_URL = re.compile(r"[a-z0-9+]+://", re.I)


def picture(value: Any, root: Path) -> Any:
    """An image cell as `mgpo.images.imaging.open_image` takes it: a path below `root`, bytes, or the value itself.

    A path is searched for below `root`, below its parent (files that name their own folder) and below `root/data`. A
    path of another machine is searched for by its file name in `root/data`. Text that is no path but base64 of an image
    becomes bytes. A list must hold one image; `pictures` reads several.
    """
    images = list_in(value)
    if images is not None and len(images) > 1:
        raise ValueError(f"it has {len(images)} images, but only one is supported")
    if images:
        return picture(images[0], root)
    if images is not None or absent(value):
        raise ValueError("it has no image")
    if isinstance(value, Mapping) and not value.get("bytes") and isinstance(value.get("path"), str):
        return picture(value["path"], root)
    if not isinstance(value, str):
        return value
    if _URL.match(value):
        raise ValueError(f"its image {value} is a URL: download the file and give its path")
    if len(value) < 1024:
        moved = [root / "data" / Path(value).name] if Path(value).is_absolute() else []  # from another machine
        for place in (root / value, root.parent / value, root / "data" / value, *moved):
            if place.is_file():
                return str(place)
    data = _from_base64(value)
    return str(root / value) if data is None else data


def pictures(value: Any, root: Path) -> dict[str, Any]:
    """One image or a list of several, as `Question`'s fields; each cell as of `picture`."""
    images = list_in(value) or ()
    if len(images) < 2:
        return {"image": picture(value, root)}
    first, *more = (picture(one, root) for one in images)
    return {"image": first, "more_images": more}


def _from_base64(text: str) -> bytes | None:
    text = text.split(",", 1)[1] if text.startswith("data:image/") else text
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    known = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    return data if data.startswith(known) else None


def as_options(value: Any) -> list[str]:
    """Options from a list, from letters with texts, from text with one per line, or from the text of a list.

    Objects may be `{"A": "red", "B": "blue"}` or `{"label": ["A", "B"], "text": ["red", "blue"]}`, also one per option.
    Empty cells at the end (None or nothing), with which a table was padded, are not options.
    """
    if isinstance(value, str):
        if value.lstrip().startswith(("[", "{")):
            value = list_of_text(value.strip())
        else:
            lines = spaced_labels([line for line in value.split("\n") if line.strip()])
            value = split_choices("\n".join(lines))[1] or lines
    if isinstance(value, Mapping) and {"label", "text"} <= value.keys():
        value = [{"label": label, "text": text} for label, text in zip(value["label"], value["text"], strict=True)]
    elif isinstance(value, Mapping):
        value = [{"label": label, "text": text} for label, text in value.items() if text is not None]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"its choices are not a list, but of type {type(value).__name__}")
    return spaced_labels(_texts(value))


def _texts(options: Sequence[Any]) -> list[str]:
    """Each option as text, with its letter in front where it has one of its own."""
    texts = []
    while options and options[-1] in (None, ""):
        options = options[:-1]
    for number, option in enumerate(options, 1):
        label = None
        if isinstance(option, Mapping) and "text" in option:
            label, option = option.get("label"), option["text"]
        if isinstance(option, bool) or not isinstance(option, (str, int, float)) or option == "":
            raise ValueError(f"its choice {number} is {option!r}, which is not text")
        letter = str(label or "").strip(" ().").upper()
        texts.append(f"({letter}) {option}" if len(letter) == 1 and letter.isalpha() else str(option))
    return texts


def gold_answer(value: Any) -> str:
    """An answer without the wrapping that training sets put around it."""
    text = str(value).strip() if value is not None else ""
    for head, tail in (("<answer>", "</answer>"), ("\\boxed{", "}"), ("$", "$")):
        if text.startswith(head) and text.endswith(tail) and len(text) > len(head):
            text = text[len(head) : len(text) - len(tail)].strip()
    if not text:
        raise ValueError("it has no answer")
    return text


def boxes_xywh(value: Any) -> list[list[int]]:
    """Boxes written as x, y, width, height, as (x1, y1, x2, y2) in pixels."""
    return [[round(x), round(y), round(x + w), round(y + h)] for x, y, w, h in value or ()]


def boxes_xyxy(value: Any) -> list[list[int]]:
    """Boxes written as x1, y1, x2, y2, one alone or a list, also as text."""
    value = json.loads(value) if isinstance(value, str) else value
    value = [value] if value is not None and len(value) == 4 and not isinstance(value[0], (list, tuple)) else value
    return [[round(c) for c in box] for box in ([] if value is None else value)]

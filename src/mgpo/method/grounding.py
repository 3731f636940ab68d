"""Reads the box that a turn names and maps it to original pixels: text -> JSON -> box -> validity -> original pixels.

    grounding = read_grounding(text, frame, rules)

`read_grounding` is pure and total: any text gives a `Grounding`, never an exception. A bad box is data, not a crash:
its `status` says why it was rejected, the environment tells the model that the box was unusable, and the metrics count
it.

Frames. The model's coordinates refer to the image it was *given* (`input_size`, after the pixel budget). Qwen2.5-VL
writes absolute pixels of that image, Qwen3-VL writes 0..1000 of each side; `BoxForm` says how a model family writes
(`mgpo.policies.families` lists them). A thinking block before the box is not read. The crop is cut from the original,
so `original = box / input_size * original_size` on each axis (paper, Eq. 3).

Where a question shows several images, an object may name its own by number: `{"image": 2, "bbox_2d": [...], ...}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from mgpo.method.boxes import IMAGE_KEY, BoxRules, BoxStatus, Coordinates, Frame, Grounding
from mgpo.method.thinking import spoken

MAX_JSON_CHARS = 4_000
"""A longer JSON block is rejected."""
MAX_TEXT_CHARS = 200_000
"""A longer turn is not searched for a box. Together, the three limits bound the time that any text can cost."""
MAX_BLOCKS = 32
"""At most this many fenced blocks of a turn are read; a turn that names one region needs only one."""

_BARE = re.compile(r"\[(?:\s?-?\d{1,6}\s?,){3}\s?-?\d{1,6}\s?\]")
_FENCE = re.compile(r"```[ \t]*(?:json|JSON)?[ \t]*\r?\n?(.*?)(?:```|\Z)", re.DOTALL)


def read_grounding(text: str, frame: Frame, rules: BoxRules = BoxRules(), numbered: Sequence[Frame] = ()) -> Grounding:
    """Return the first valid box that a turn names; if none is valid, the reason why the first candidate is not.

    Args:
        text: what the model wrote.
        frame: the image that the box refers to, unless it names another by number.
        rules: when a box is valid.
        numbered: the images that a box may name by number, the first one as 1; numbers are not read if there are none.

    Returns:
        A `Grounding`; this function does not raise.
    """
    if len(text) > MAX_TEXT_CHARS:
        return _unusable(BoxStatus.TOO_LONG, frame)
    text = spoken(text)
    first: Grounding | None = None
    for block in _json_blocks(text):
        grounding = _read_block(block, frame, rules, numbered)
        if grounding.status is BoxStatus.VALID:
            return grounding
        first = first or grounding
    if rules.form.bare and (first is None or first.status is BoxStatus.NOT_A_LIST) and (match := _BARE.search(text)):
        return _read_numbers([int(number) for number in re.findall(r"-?\d+", match.group())], None, frame, rules)
    return first or _unusable(BoxStatus.NO_JSON, frame)


def _json_blocks(text: str) -> list[str]:
    """The fenced blocks of a text; if there are none, the first bare list of objects."""
    fenced = [match.group(1).strip() for match in islice(_FENCE.finditer(text), MAX_BLOCKS)]
    if fenced:
        return fenced
    bare = re.search(r"\[\s{0,20}\{", text)
    if bare is None:
        return []
    rest = text[bare.start() :]
    try:
        _, end = json.JSONDecoder().raw_decode(rest[:MAX_JSON_CHARS])  # ignores brackets after the list
    except (ValueError, RecursionError):
        end = rest.rfind("]") + 1 or len(rest)
    return [rest[:end]]


def _read_block(block: str, frame: Frame, rules: BoxRules, numbered: Sequence[Frame]) -> Grounding:
    if len(block) > MAX_JSON_CHARS:
        return _unusable(BoxStatus.TOO_LONG, frame)
    try:
        value = json.loads(block, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _unusable(BoxStatus.BAD_JSON, frame)
    if not isinstance(value, list):
        return _unusable(BoxStatus.NOT_A_LIST, frame)
    if not value:
        return _unusable(BoxStatus.EMPTY, frame)
    read = [_read_object(item, frame, rules, numbered) for item in value if isinstance(item, dict)]
    if not read:
        return _unusable(BoxStatus.NOT_A_LIST, frame)
    return next((grounding for grounding in read if grounding.status is BoxStatus.VALID), read[0])


def _read_object(item: dict[str, Any], frame: Frame, rules: BoxRules, numbered: Sequence[Frame]) -> Grounding:
    if numbered and item.get(IMAGE_KEY) is not None:
        number = _whole(item[IMAGE_KEY])
        if number is None or not 1 <= number <= len(numbered):
            return _unusable(BoxStatus.NO_IMAGE, frame)
        frame = numbered[number - 1]
    numbers = item.get(rules.form.key)
    if not isinstance(numbers, list) or len(numbers) != 4:
        return _unusable(BoxStatus.NO_BOX, frame)
    types = (int, float) if rules.form.coordinates is Coordinates.RELATIVE_1 else (int,)
    if not all(type(v) in types and abs(v) < 10**9 for v in numbers):
        return _unusable(BoxStatus.WRONG_TYPES, frame)
    label = item.get("label")
    if rules.require_label and not isinstance(label, str):
        return _unusable(BoxStatus.NO_LABEL, frame)
    return _read_numbers(numbers, label if isinstance(label, str) else None, frame, rules)


def _unusable(status: BoxStatus, frame: Frame) -> Grounding:
    """No box was read; `frame` shows the image that it would have been in."""
    return Grounding(status, image_number=frame.image_number)


def _whole(value: Any) -> int | None:
    """An image's number, also written as `2.0` or `"2"`; None if it is no number."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value):
        return int(value)
    return int(value) if type(value) in (int, float) and abs(value) < 1000 and value == int(value) else None


def _read_numbers(numbers: list[float], label: str | None, frame: Frame, rules: BoxRules) -> Grounding:
    box = rules.form.to_input(numbers, frame.input_size)
    status = _judge(box, frame.input_size, rules)
    if status is not BoxStatus.VALID:
        return Grounding(status, box, None, label, frame.image_number)
    region = frame.to_original(box)
    short, long = sorted((region[2] - region[0], region[3] - region[1]))
    if long > rules.max_aspect_original * short:
        return Grounding(BoxStatus.TOO_NARROW, box, None, label, frame.image_number)
    return Grounding(status, box, region, label, frame.image_number)


def _judge(box: tuple[float, float, float, float], input_size: tuple[int, int], rules: BoxRules) -> BoxStatus:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return BoxStatus.INVERTED
    if x1 < 0 or y1 < 0 or x2 > input_size[0] or y2 > input_size[1]:
        return BoxStatus.OUTSIDE
    short, long = sorted((x2 - x1, y2 - y1))
    if short <= rules.min_side_px:
        return BoxStatus.TOO_SMALL
    if long >= rules.max_aspect * short:
        return BoxStatus.TOO_NARROW
    return BoxStatus.VALID


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

"""Reads the box that a turn names and maps it to original pixels: text -> JSON -> box -> validity -> original pixels.

    grounding = read_grounding(text, frame, rules)

`read_grounding` is pure and total: any text gives a `Grounding`, never an exception. A bad box is data, not a crash:
its `status` says why it was rejected, the environment tells the model that the box was unusable, and the metrics count
it.

Frames. The model's coordinates refer to the image it was *given* (`input_size`, after the pixel budget). Qwen2.5-VL
writes absolute pixels of that image, Qwen3-VL writes 0..1000 of each side; `BoxForm` says how a model family writes
(`mgpo.policies.families` lists them). A thinking block before the box is not read. The crop is cut from the original, so `original = box / input_size * original_size` on each axis (paper,
Eq. 3).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from mgpo.method.thinking import spoken

MAX_JSON_CHARS = 4_000
"""A longer JSON block is rejected."""
MAX_TEXT_CHARS = 200_000
"""A longer turn is not searched for a box. Together, the three limits bound the time that any text can cost."""
MAX_BLOCKS = 32
"""At most this many fenced blocks of a turn are read; a turn that names one region needs only one."""

_BARE = re.compile(r"\[(?:\s?-?\d{1,6}\s?,){3}\s?-?\d{1,6}\s?\]")
_FENCE = re.compile(r"```[ \t]*(?:json|JSON)?[ \t]*\r?\n?(.*?)(?:```|\Z)", re.DOTALL)


class Coordinates(StrEnum):
    """How a model family writes a box."""

    ABSOLUTE = "absolute"
    """Pixels of the image it was given (Qwen2.5-VL)."""
    RELATIVE_1000 = "relative_1000"
    """Thousandths of each side (Qwen2-VL, Qwen3-VL, InternVL)."""
    RELATIVE_1 = "relative_1"
    """Fractions of each side, from 0 to 1 (Kimi-VL)."""


class BoxOrder(StrEnum):
    """The order in which a model family writes a box's four numbers."""

    XYXY = "xyxy"
    """Left, top, right, bottom."""
    YXYX = "yxyx"
    """Top, left, bottom, right (Gemma)."""


@dataclass(frozen=True)
class BoxForm:
    """How a model family writes a box.

    Attributes:
        coordinates: the unit of the numbers.
        order: their order.
        key: their key in the JSON object.
        bare: whether the family also writes `[x1, y1, x2, y2]`, in one or two brackets, without keys or a label.
    """

    coordinates: Coordinates = Coordinates.ABSOLUTE
    order: BoxOrder = BoxOrder.XYXY
    key: str = "bbox_2d"
    bare: bool = False

    @classmethod
    def parse(cls, text: str, own: BoxForm | None = None) -> BoxForm:
        """The form that a setting names: a unit, then an order and a key where they differ from the family's `own`.

        Raises:
            ValueError: the first word is not a unit, or there are more than a unit, an order and a key.
        """
        unit, *more = text.replace(",", " ").split() or [""]
        orders = [word for word in more if word in list(BoxOrder)]
        keys = [word for word in more if word not in list(BoxOrder)]
        if unit not in list(Coordinates) or len(orders) > 1 or len(keys) > 1:
            raise ValueError(
                f"coordinates={text!r} is not a way to write boxes. Give a unit ({', '.join(Coordinates)}), then an order "
                "(xyxy or yxyx) and a JSON key if they are not the family's: relative_1000 yxyx box_2d."
            )
        own = own or cls()
        order = BoxOrder(orders[0]) if orders else own.order
        return cls(Coordinates(unit), order, keys[0] if keys else own.key, own.bare)

    def __str__(self) -> str:
        return f"{self.coordinates} {self.order} {self.key}"

    @property
    def example(self) -> str:
        """The JSON that the prompt asks for, with names in place of numbers."""
        names = ("x1, y1, x2, y2", "y1, x1, y2, x2")[self.order is BoxOrder.YXYX]
        return f'```json\n[{{"{self.key}": [{names}], "label": "what is there"}}]\n```'

    def to_input(self, numbers: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Four numbers as the model wrote them, as (x1, y1, x2, y2) in pixels of the image of this `size`."""
        a, b, c, d = numbers
        x1, y1, x2, y2 = (b, a, d, c) if self.order is BoxOrder.YXYX else (a, b, c, d)
        if self.coordinates is Coordinates.ABSOLUTE:
            return x1, y1, x2, y2
        whole = 1000 if self.coordinates is Coordinates.RELATIVE_1000 else 1
        width, height = size
        return x1 * width / whole, y1 * height / whole, x2 * width / whole, y2 * height / whole

    def written(self, box_px_input: tuple[float, ...], size: tuple[int, int], label: str) -> str:
        """A box of an image of this `size` as the family writes it, as JSON: the inverse of `read_grounding`."""
        numbers: list[float] = list(box_px_input)
        if self.coordinates is not Coordinates.ABSOLUTE:
            whole = 1000 if self.coordinates is Coordinates.RELATIVE_1000 else 1
            numbers = [value * whole / side for value, side in zip(numbers, size * 2)]
        if self.coordinates is Coordinates.RELATIVE_1:
            numbers = [round(value, 3) for value in numbers]
        else:
            numbers = [round(value) for value in numbers]
        x1, y1, x2, y2 = numbers
        ordered = [y1, x1, y2, x2] if self.order is BoxOrder.YXYX else [x1, y1, x2, y2]
        return f"```json\n{json.dumps([{self.key: ordered, 'label': label}], ensure_ascii=False)}\n```"


class BoxStatus(StrEnum):
    """Why a turn's box is used or rejected. The metrics count every status."""

    VALID = "valid"
    """A box that the environment crops."""
    NO_JSON = "no_json"
    """The turn holds no fenced JSON and no bare list of objects."""
    TOO_LONG = "too_long"
    """The JSON block, or the whole turn, is longer than any list of boxes needs to be."""
    BAD_JSON = "bad_json"
    """The block is not JSON (cut off, trailing comma, NaN, nested without end)."""
    NOT_A_LIST = "not_a_list"
    """The block is JSON, but not a list of objects."""
    EMPTY = "empty"
    """The list is empty."""
    NO_BOX = "no_box"
    """The object has no box (`bbox_2d`, or its family's key) with four entries."""
    WRONG_TYPES = "wrong_types"
    """The four entries are not integers, or for a family that writes fractions, not numbers."""
    NO_LABEL = "no_label"
    """The label is missing or not text."""
    INVERTED = "inverted"
    """x2 is not right of x1, or y2 not below y1."""
    OUTSIDE = "outside"
    """The box extends beyond the image."""
    TOO_SMALL = "too_small"
    """A side is not longer than the minimum."""
    TOO_NARROW = "too_narrow"
    """The longer side is too many times the shorter one, in the image that the model saw or in the original."""


@dataclass(frozen=True)
class BoxRules:
    """Rules that a valid box meets. The defaults are the paper's.

    Attributes:
        min_side_px: both sides must be longer than this, in pixels of the image given to the model.
        max_aspect: the longer side must be less than this many times the shorter one.
        require_label: the object must carry a text `label`.
        form: how the model family writes a box.
        max_aspect_original: the longer side of the region in the original may be at most this many times the shorter
            one, since a longer image cannot be shown (Qwen's own limit). It is checked separately because an overview
            that was squeezed into its budget has another aspect ratio than the original.
    """

    min_side_px: float = 28
    max_aspect: float = 100
    max_aspect_original: float = 200
    require_label: bool = True
    form: BoxForm = BoxForm()


@dataclass(frozen=True)
class Grounding:
    """The box that one turn names, or the reason why it names no usable one.

    Attributes:
        status: VALID, or the reason why there is no usable box.
        box_px_input: (x1, y1, x2, y2) in pixels of the image given to the model; set if a box could be read at all.
        box_px_original: the same region in pixels of the original image, rounded outwards; only if VALID.
        label: the model's label for the box.
    """

    status: BoxStatus
    box_px_input: tuple[float, float, float, float] | None = None
    box_px_original: tuple[int, int, int, int] | None = None
    label: str | None = None


@dataclass(frozen=True)
class Frame:
    """An image that the model was given, and the region of the original that it shows.

    Attributes:
        input_size: (width, height) in pixels as given to the model.
        region_px_original: (x1, y1, x2, y2) of the original that the image shows; the whole original for an overview.
    """

    input_size: tuple[int, int]
    region_px_original: tuple[int, int, int, int]

    def to_original(self, box_px_input: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """Map a box from this frame to original pixels, rounded outwards and clipped to the region (Eq. 3)."""
        left, top, right, bottom = self.region_px_original
        sx, sy = (right - left) / self.input_size[0], (bottom - top) / self.input_size[1]
        x1, y1, x2, y2 = box_px_input
        near = 1e-9  # treat 3.0000000001 as 3: rounding outwards must not grow an exact box
        return (
            max(left, left + math.floor(x1 * sx + near)),
            max(top, top + math.floor(y1 * sy + near)),
            min(right, left + math.ceil(x2 * sx - near)),
            min(bottom, top + math.ceil(y2 * sy - near)),
        )

    def to_input(self, box_px_original: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Map a box from original pixels into this frame (not rounded, not clipped)."""
        left, top, right, bottom = self.region_px_original
        sx, sy = self.input_size[0] / (right - left), self.input_size[1] / (bottom - top)
        x1, y1, x2, y2 = box_px_original
        return (x1 - left) * sx, (y1 - top) * sy, (x2 - left) * sx, (y2 - top) * sy


def read_grounding(text: str, frame: Frame, rules: BoxRules = BoxRules()) -> Grounding:
    """Return the first valid box that a turn names; if none is valid, the reason why the first candidate is not.

    Args:
        text: what the model wrote.
        frame: the image that the box refers to.
        rules: when a box is valid.

    Returns:
        A `Grounding`; this function does not raise.
    """
    if len(text) > MAX_TEXT_CHARS:
        return Grounding(BoxStatus.TOO_LONG)
    text = spoken(text)
    first: Grounding | None = None
    for block in _json_blocks(text):
        grounding = _read_block(block, frame, rules)
        if grounding.status is BoxStatus.VALID:
            return grounding
        first = first or grounding
    if rules.form.bare and (first is None or first.status is BoxStatus.NOT_A_LIST) and (match := _BARE.search(text)):
        return _read_numbers([int(number) for number in re.findall(r"-?\d+", match.group())], None, frame, rules)
    return first or Grounding(BoxStatus.NO_JSON)


def box_as_json(box_px_input: tuple[float, ...], label: str) -> str:
    """A box as Qwen2.5-VL and `mgpo-tiny` write it, in pixels of the image that they were given."""
    return BoxForm().written(box_px_input, (1, 1), label)


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2) in one frame."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0


def holds_centre(box: tuple[float, ...], target: tuple[float, ...]) -> bool:
    """Whether `box` contains the centre of `target` (both in one frame); this counts as a hit."""
    x, y = (target[0] + target[2]) / 2, (target[1] + target[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


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


def _read_block(block: str, frame: Frame, rules: BoxRules) -> Grounding:
    if len(block) > MAX_JSON_CHARS:
        return Grounding(BoxStatus.TOO_LONG)
    try:
        value = json.loads(block, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return Grounding(BoxStatus.BAD_JSON)
    if not isinstance(value, list):
        return Grounding(BoxStatus.NOT_A_LIST)
    if not value:
        return Grounding(BoxStatus.EMPTY)
    read = [_read_object(item, frame, rules) for item in value if isinstance(item, dict)]
    if not read:
        return Grounding(BoxStatus.NOT_A_LIST)
    return next((grounding for grounding in read if grounding.status is BoxStatus.VALID), read[0])


def _read_object(item: dict[str, Any], frame: Frame, rules: BoxRules) -> Grounding:
    numbers = item.get(rules.form.key)
    if not isinstance(numbers, list) or len(numbers) != 4:
        return Grounding(BoxStatus.NO_BOX)
    types = (int, float) if rules.form.coordinates is Coordinates.RELATIVE_1 else (int,)
    if not all(type(v) in types and abs(v) < 10**9 for v in numbers):
        return Grounding(BoxStatus.WRONG_TYPES)
    label = item.get("label")
    if rules.require_label and not isinstance(label, str):
        return Grounding(BoxStatus.NO_LABEL)
    return _read_numbers(numbers, label if isinstance(label, str) else None, frame, rules)


def _read_numbers(numbers: list[float], label: str | None, frame: Frame, rules: BoxRules) -> Grounding:
    box = rules.form.to_input(numbers, frame.input_size)
    status = _judge(box, frame.input_size, rules)
    if status is not BoxStatus.VALID:
        return Grounding(status, box, None, label)
    region = frame.to_original(box)
    short, long = sorted((region[2] - region[0], region[3] - region[1]))
    if long > rules.max_aspect_original * short:
        return Grounding(BoxStatus.TOO_NARROW, box, None, label)
    return Grounding(status, box, region, label)


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

"""Boxes: how model families write them, when they are valid, and how they map to pixels of the original.

Every coordinate names its frame: `box_px_input` is in pixels of the image that the model was given (after the pixel
budget), `box_px_original` in pixels of the photograph. `mgpo.method.grounding` reads boxes from what a model writes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum

IMAGE_KEY = "image"
"""Key of the number of a box's image in its JSON object, where a question shows several."""


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
        return self._example("")

    @property
    def numbered_example(self) -> str:
        """The JSON that the prompt asks for where the box must name its image."""
        return self._example(f'"{IMAGE_KEY}": number, ')

    @property
    def names(self) -> str:
        """The names of the four numbers, in the family's order."""
        return ("x1, y1, x2, y2", "y1, x1, y2, x2")[self.order is BoxOrder.YXYX]

    def _example(self, image: str) -> str:
        return f'```json\n[{{{image}"{self.key}": [{self.names}], "label": "what is there"}}]\n```'

    def to_input(self, numbers: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Four numbers as the model wrote them, as (x1, y1, x2, y2) in pixels of the image of this `size`."""
        a, b, c, d = numbers
        x1, y1, x2, y2 = (b, a, d, c) if self.order is BoxOrder.YXYX else (a, b, c, d)
        if self.coordinates is Coordinates.ABSOLUTE:
            return x1, y1, x2, y2
        whole = 1000 if self.coordinates is Coordinates.RELATIVE_1000 else 1
        width, height = size
        return x1 * width / whole, y1 * height / whole, x2 * width / whole, y2 * height / whole

    def written(
        self, box_px_input: tuple[float, ...], size: tuple[int, int], label: str, image_number: int | None = None
    ) -> str:
        """A box of an image of this `size` as the family writes it, as JSON: the inverse of `read_grounding`.

        With an `image_number`, it names its image.
        """
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
        named = {} if image_number is None else {IMAGE_KEY: image_number}
        return f"```json\n{json.dumps([named | {self.key: ordered, 'label': label}], ensure_ascii=False)}\n```"


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
    NO_IMAGE = "no_image"
    """Of several images, the object names one that was not shown."""
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
        image_number: number of the question's image that the box is in, from 1; without a box, of the one shown last.
    """

    status: BoxStatus
    box_px_input: tuple[float, float, float, float] | None = None
    box_px_original: tuple[int, int, int, int] | None = None
    label: str | None = None
    image_number: int = 1


@dataclass(frozen=True)
class Frame:
    """An image that the model was given, and the region of the original that it shows.

    Attributes:
        input_size: (width, height) in pixels as given to the model.
        region_px_original: (x1, y1, x2, y2) of the original that the image shows; the whole original for an overview.
        image_number: number of the question's image that it shows, from 1.
    """

    input_size: tuple[int, int]
    region_px_original: tuple[int, int, int, int]
    image_number: int = 1

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

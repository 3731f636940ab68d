"""What a model may write instead of a box: texts of every hostile kind, and what must hold of each."""

import json
import time

from hypothesis import strategies as st

from mgpo.method.boxes import BoxForm, BoxRules, BoxStatus, Coordinates, Frame, Grounding
from mgpo.method.grounding import read_grounding

FRAME = Frame((1008, 504), (100, 50, 4100, 3050))
RULES = (BoxRules(), BoxRules(form=BoxForm(Coordinates.RELATIVE_1000)))
SECONDS = 0.010

NUMBERS = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x1f", "1_000", "١٠٠", "१००", "１００", "½", "Ⅷ", "1.0", "1e2", "-0",
    "true", "null", '"7"', "[]", "{}", "9" * 4000, "9" * 5000, "1" + "0" * 3900, "0." + "3" * 3000, "1e1000000000",
]  # fmt: skip
KEYS = ["bbox_2d", "label", "bbox", "point_2d", "BBOX_2D", "bbox_2d ", "", "__class__", "\u0000"]

number = st.integers(-50, 1100).map(str) | st.integers().map(str) | st.sampled_from(NUMBERS)
coordinates = st.lists(number, min_size=0, max_size=6) | st.lists(
    st.integers(-10, 1010).map(str), min_size=4, max_size=4
)
label = st.text(max_size=12).map(json.dumps) | st.sampled_from(
    ['"sign"', "7", "null", '"\\ud800"', '"' + "a" * 4100 + '"']
)


def _item(numbers, name, twice, extra):
    """An object, perhaps with a key that comes twice."""
    parts = [f'"bbox_2d": [{", ".join(numbers)}]', f'"label": {name}', *extra]
    return "{" + ", ".join(parts + parts[:1] * twice) + "}"


item = st.builds(
    _item,
    coordinates,
    label,
    st.booleans(),
    st.lists(st.sampled_from(KEYS).map(lambda key: f"{json.dumps(key)}: 1"), max_size=2),
)
listed = st.lists(item, max_size=6).map(lambda items: "[" + ", ".join(items) + "]")
nested = st.builds(
    lambda opening, depth, inner: opening * depth + inner,
    st.sampled_from(["[", "{", '{"a":', '[{"bbox_2d":', '[{"label":[', "((", "```json\n[", "[ {"]),
    st.integers(1, 3000),
    listed,
)
huge = st.builds(
    lambda piece, times: piece * times,
    st.sampled_from(
        [
            "[{",
            "```json\n[]\n```",
            '[{"bbox_2d": [0, 0, 100, 100], "label": "a"}]',
            "9",
            "`",
            "[ ",
            "\\boxed{",
            "\ud800",
        ]
    ),
    st.sampled_from([10, 1_000, 6_000]),
)
prose = st.text(alphabet=st.characters(), max_size=60)
wrap = st.sampled_from(
    ["{}", "```json\n{}\n```", "```\n{}", "```JSON {}```", "I see {} there", "{}```{}", "```json\r\n{}\r\n```"]
)


def _cut(text, at):
    return text[: at % (len(text) + 1)] if at else text


def _written(shape, body, before, at):
    return _cut(before + shape.replace("{}", body), at)


texts = st.builds(_written, wrap, listed | nested | prose, prose, st.integers(0, 4000) | st.just(0)) | huge | prose
"""Nested, truncated, huge, with NaN, foreign digits, equal keys, endless numbers, several boxes, boxes of all wrong kinds."""


def least_seconds(read, *args):
    """Processor time of the fastest of three calls, so that another process's work does not count."""
    least = float("inf")
    for _ in range(3):
        begun = time.thread_time()
        read(*args)
        least = min(least, time.thread_time() - begun)
        if least < SECONDS / 4:
            break
    return least


def assert_total(text, rules):
    """The properties of every text: a status, a region inside the image if it is valid and none if it is not, in time."""
    grounding = read_grounding(text, FRAME, rules)
    assert type(grounding) is Grounding and isinstance(grounding.status, BoxStatus)
    assert (grounding.box_px_original is not None) == (grounding.status is BoxStatus.VALID)
    if grounding.box_px_original is not None:
        x1, y1, x2, y2 = grounding.box_px_original
        assert 100 <= x1 < x2 <= 4100 and 50 <= y1 < y2 <= 3050
    assert least_seconds(read_grounding, text, FRAME, rules) < SECONDS
    return grounding.status

"""Any text gives a `Grounding`; every reason is reachable; a box survives the way to the original and back."""

import json

import pytest
from box_texts import GOOD, TABLE, box, fenced
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import (
    BoxForm,
    BoxRules,
    BoxStatus,
    Coordinates,
    Frame,
    Grounding,
    box_as_json,
    holds_centre,
    iou,
)
from mgpo.method.grounding import read_grounding

FRAME = Frame((1000, 500), (0, 0, 4000, 3000))
RELATIVE = BoxRules(form=BoxForm(Coordinates.RELATIVE_1000))


@pytest.mark.parametrize(("text", "status"), TABLE, ids=[f"{s}-{i}" for i, (_, s) in enumerate(TABLE)])
def test_each_text_has_its_status(text, status):
    grounding = read_grounding(text, FRAME)
    assert grounding.status is status
    assert (grounding.box_px_original is not None) == (status is BoxStatus.VALID)


def test_too_narrow_needs_a_long_frame():
    frame = Frame((2900, 100), (0, 0, 2900, 100))
    assert read_grounding(box("[0, 0, 2900, 29]"), frame).status is BoxStatus.TOO_NARROW
    assert read_grounding(box("[0, 0, 2899, 29]"), frame).status is BoxStatus.VALID


def test_the_table_reaches_every_status():
    """But those that need a longer image, or several of them."""
    assert {status for _, status in TABLE} | {BoxStatus.TOO_NARROW, BoxStatus.NO_IMAGE} == set(BoxStatus)


def test_first_valid_block_counts():
    bad, first, second = box("[0, 0, 1, 1]"), box("[0, 0, 100, 100]", '"one"'), box("[50, 50, 150, 150]", '"two"')
    assert read_grounding(f"{bad}\nor {first} or {second}", FRAME).label == "one"
    assert read_grounding(f"{bad}\nor ```json\n[{{]\n```", FRAME).status is BoxStatus.TOO_SMALL, (
        "the first one's reason"
    )


def test_text_after_the_block_is_ignored():
    tail = 'The answer is \\boxed{B}. [{"bbox_2d": [1, 1'
    assert read_grounding(fenced(GOOD) + tail, FRAME) == read_grounding(fenced(GOOD), FRAME)
    assert read_grounding(GOOD + tail, FRAME) == read_grounding(GOOD, FRAME)


def test_label_may_be_waived():
    grounding = read_grounding(fenced('[{"bbox_2d": [0, 0, 100, 100]}]'), FRAME, BoxRules(require_label=False))
    assert grounding.status is BoxStatus.VALID and grounding.label is None


def test_last_of_two_equal_keys_is_read():
    text = fenced('[{"bbox_2d": [0, 0, 100, 100], "bbox_2d": [0, 0, 200, 200], "label": "a"}]')
    assert read_grounding(text, FRAME).box_px_input == (0, 0, 200, 200)


def test_known_numbers():
    assert read_grounding(fenced(GOOD), FRAME) == Grounding(
        BoxStatus.VALID, (10, 20, 110, 220), (40, 120, 440, 1320), "sign"
    )


@pytest.mark.parametrize(
    "nest", ["[" * 10**6, '[{"a":' * 10**5, "```json\n" + "[" * 3900, "```" * 10**5, "[ {" * 10**5]
)
def test_deep_or_endless_text_costs_no_exception(nest):
    assert read_grounding(nest, FRAME).status is not BoxStatus.VALID


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["bbox_2d", "label", "x"]), inner),
    max_leaves=12,
)
like_json = st.builds(
    lambda value, cut, fence, noise: (fenced if fence else str)(noise + json.dumps([value])[: cut or None]),
    json_values,
    st.integers(0, 60),
    st.booleans(),
    st.text(max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(text=st.text() | like_json, rules=st.sampled_from([BoxRules(), RELATIVE]))
@example(text=box("[0, 0, 100, 100]", '"\\ud800"'), rules=BoxRules())
def test_no_text_raises(text, rules):
    grounding = read_grounding(text, FRAME, rules)
    assert isinstance(grounding.status, BoxStatus)


@st.composite
def frames_and_boxes(draw):
    """A frame, whole or nested, and a box of whole pixels inside the region it shows."""
    left, top = draw(st.integers(0, 3000)) * draw(st.booleans()), draw(st.integers(0, 3000))
    width, height = draw(st.integers(2, 9000)), draw(st.integers(2, 9000))
    tokens = st.integers(1, 60)
    frame = Frame((28 * draw(tokens), 28 * draw(tokens)), (left, top, left + width, top + height))
    x1, y1 = left + draw(st.integers(0, width - 1)), top + draw(st.integers(0, height - 1))
    x2, y2 = draw(st.integers(x1 + 1, left + width)), draw(st.integers(y1 + 1, top + height))
    return frame, (x1, y1, x2, y2)


def holds(outer, inner):
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


@settings(max_examples=300, deadline=None)
@given(frames_and_boxes())
def test_round_trip_is_exact_and_rounding_costs_what_it_must(case):
    frame, original = case
    exact = frame.to_input(original)
    assert frame.to_original(exact) == original
    x1, y1, x2, y2 = exact
    outwards = (int(x1 + 1e-9), int(y1 + 1e-9), -int(-x2 // 1), -int(-y2 // 1))  # whole pixels of the input
    back = frame.to_original(outwards)
    assert holds(back, original) and holds(frame.region_px_original, back)
    left, top, right, bottom = frame.region_px_original
    most = (1 + (right - left) / frame.input_size[0], 1 + (bottom - top) / frame.input_size[1])
    assert all(abs(a - b) <= most[i % 2] + 1e-6 for i, (a, b) in enumerate(zip(back, original)))


def test_a_nested_frame_maps_into_its_region():
    nested = Frame((280, 140), (1000, 2000, 1100, 2050))
    assert nested.to_original((28, 28, 140, 70)) == (1010, 2010, 1050, 2025)
    assert nested.to_original((0, 0, 280, 140)) == (1000, 2000, 1100, 2050)
    assert nested.to_original((1, 1, 2, 2)) == (1000, 2000, 1001, 2001), "outwards, never empty"


@settings(max_examples=100, deadline=None)
@given(frames_and_boxes())
def test_both_conventions_name_the_same_region(case):
    frame, original = case
    exact, (width, height) = frame.to_input(original), frame.input_size
    free = {"min_side_px": 0, "max_aspect": 1e9}
    relative = tuple(1000 * v / (width, height)[i % 2] for i, v in enumerate(exact))
    a = read_grounding(box_as_json(exact, "a"), frame, BoxRules(**free))
    b = read_grounding(box_as_json(relative, "a"), frame, BoxRules(**free, form=BoxForm(Coordinates.RELATIVE_1000)))
    if a.status is b.status is BoxStatus.VALID:  # rounding may leave nothing of a sliver
        left, top, right, bottom = frame.region_px_original
        for i, (p, q) in enumerate(zip(a.box_px_original, b.box_px_original)):
            full, shown = ((right - left, width), (bottom - top, height))[i % 2]
            assert abs(p - q) <= 0.5 * full / shown + 0.5 * full / 1000 + 1


def test_relative_full_frame_is_the_whole_region():
    grounding = read_grounding(box("[0, 0, 1000, 1000]"), FRAME, RELATIVE)
    assert grounding.box_px_original == FRAME.region_px_original
    assert read_grounding(box("[0, 0, 1001, 1000]"), FRAME, RELATIVE).status is BoxStatus.OUTSIDE


@settings(max_examples=100, deadline=None)
@given(
    corner=st.tuples(st.integers(0, 900), st.integers(0, 400)),
    size=st.tuples(st.integers(29, 100), st.integers(29, 100)),
    label=st.text(max_size=20),
)
@example(corner=(0, 0), size=(50, 50), label='```json "{}"')
def test_box_as_json_is_read_back(corner, size, label):
    numbers = (*corner, corner[0] + size[0], corner[1] + size[1])
    grounding = read_grounding("Look. " + box_as_json(numbers, label), FRAME)
    if "```" in label:  # a fence inside a label ends the block: rejected, not misread
        assert grounding.status is BoxStatus.BAD_JSON
    else:
        assert (grounding.status, grounding.box_px_input, grounding.label) == (BoxStatus.VALID, numbers, label)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    budget=st.sampled_from([PixelBudget(), PixelBudget(20 * 784, 36 * 784)]),
    data=st.data(),
)
def test_a_valid_box_can_always_be_shown(width, height, budget, data):
    """Else an episode would crash on a crop that is too narrow for the budget."""
    if max(width, height) > 200 * min(width, height):
        return
    shown = budget.fit((width, height))
    x1, y1 = data.draw(st.integers(0, shown[0] - 1)), data.draw(st.integers(0, shown[1] - 1))
    x2 = data.draw(st.sampled_from([x1 + 29, shown[0]]) | st.integers(x1 + 1, shown[0]))
    y2 = data.draw(st.sampled_from([y1 + 29, shown[1]]) | st.integers(y1 + 1, shown[1]))
    grounding = read_grounding(box_as_json((x1, y1, x2, y2), "a"), Frame(shown, (0, 0, width, height)))
    if grounding.status is BoxStatus.VALID:
        a, b, c, d = grounding.box_px_original
        budget.fit((c - a, d - b))  # raises if it cannot be shown


def test_iou():
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == iou((1, 0, 3, 2), (0, 0, 2, 2))
    assert iou((0, 0, 2, 2), (2, 0, 4, 2)) == 0 == iou((0, 0, 1, 1), (5, 5, 6, 6))
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_holds_centre():
    assert holds_centre((0, 0, 10, 10), (8, 8, 10, 10))
    assert holds_centre((0, 0, 10, 10), (9, 9, 11, 11))
    assert not holds_centre((0, 0, 10, 10), (9, 9, 13, 11))
    assert holds_centre((4, 4, 6, 6), (0, 0, 10, 10)), "a small box in the middle of a large target is a hit"

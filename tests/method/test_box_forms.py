"""How families write boxes: what is written is read back, and what another family would mean by it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm, BoxOrder, BoxRules, BoxStatus, Coordinates, Frame
from mgpo.method.grounding import read_grounding
from mgpo.method.prompts import ask_region
from mgpo.method.protocol import Protocol

forms = st.builds(
    BoxForm, st.sampled_from(Coordinates), st.sampled_from(BoxOrder), st.sampled_from(["bbox_2d", "box_2d"])
)


@given(form=forms, size=st.tuples(st.integers(200, 1500), st.integers(200, 1500)), data=st.data())
def test_a_written_box_is_read_back(form, size, data):
    x1, y1 = data.draw(st.integers(0, size[0] - 100)), data.draw(st.integers(0, size[1] - 100))
    x2, y2 = data.draw(st.integers(x1 + 60, size[0])), data.draw(st.integers(y1 + 60, size[1]))
    found = read_grounding(form.written((x1, y1, x2, y2), size, "it"), Frame(size, (0, 0, *size)), BoxRules(form=form))
    assert found.status is BoxStatus.VALID and found.label == "it"
    assert found.box_px_input == pytest.approx((x1, y1, x2, y2), abs=max(size) / 1000)


def test_order_key_and_unit_decide_what_is_meant():
    text, frame = '[{"box_2d": [100, 200, 300, 600], "label": "it"}]', Frame((500, 1000), (0, 0, 500, 1000))

    def read(*form):
        return read_grounding(text, frame, BoxRules(form=BoxForm(*form)))

    assert read(Coordinates.ABSOLUTE, BoxOrder.XYXY, "box_2d").box_px_input == (100, 200, 300, 600)
    assert read(Coordinates.RELATIVE_1000, BoxOrder.YXYX, "box_2d").box_px_input == (100, 100, 300, 300)
    assert read(Coordinates.ABSOLUTE, BoxOrder.XYXY, "bbox_2d").status is BoxStatus.NO_BOX


def test_fractions_may_be_written_with_a_point_and_pixels_may_not():
    text, frame = '[{"bbox_2d": [0.1, 0.25, 0.5, 1], "label": "it"}]', Frame((1000, 400), (0, 0, 1000, 400))
    fractions = BoxRules(form=BoxForm(Coordinates.RELATIVE_1))
    assert read_grounding(text, frame, fractions).box_px_input == (100, 100, 500, 400)
    assert read_grounding(text, frame).status is BoxStatus.WRONG_TYPES
    pixels = '[{"bbox_2d": [10, 25, 50, 100], "label": "it"}]'
    assert read_grounding(pixels, frame, fractions).status is BoxStatus.OUTSIDE


@pytest.mark.parametrize(
    "text",
    [
        "<|begin_of_box|>[[100, 200, 300, 600]]<|end_of_box|>",
        "<ref>the sign</ref><box>[[100, 200, 300, 600]]</box>",
        "the sign[[100,200,300,600]]",  # as it is decoded, without special tokens
        "<|begin_of_box|>[100, 200, 300, 600]<|end_of_box|>",
        "```json\n[[100, 200, 300, 600]]\n```",
    ],
)
def test_boxes_between_tags(text):
    frame = Frame((1000, 1000), (0, 0, 1000, 1000))
    form = BoxForm(Coordinates.RELATIVE_1000, bare=True)
    found = read_grounding(text, frame, BoxRules(form=form))
    assert found.status is BoxStatus.VALID and found.box_px_original == (100, 200, 300, 600)
    assert read_grounding(text, frame, BoxRules(form=BoxForm(Coordinates.RELATIVE_1000))).status in (
        BoxStatus.NO_JSON,
        BoxStatus.NOT_A_LIST,
    )


def test_what_is_asked_for_is_what_is_read():
    gemma = BoxForm(Coordinates.RELATIVE_1000, BoxOrder.YXYX, "box_2d")
    asked = ask_region(gemma)
    assert '"box_2d": [y1, x1, y2, x2]' in asked and "thousandths" in asked


def test_settings_override_the_family():
    own = BoxForm(Coordinates.RELATIVE_1000, BoxOrder.YXYX, "box_2d")

    def form(text, own=own):
        return Protocol.from_settings({"coordinates": text}, PixelBudget(), own).box.form

    assert form("absolute xyxy bbox_2d") == form("absolute, xyxy, bbox_2d") == BoxForm()
    assert form("absolute") == BoxForm(Coordinates.ABSOLUTE, own.order, own.key) and form("auto") == own
    assert form("relative_1 box").key == "box" and form("relative_1", None) == BoxForm(Coordinates.RELATIVE_1)
    for text in ("pixels", "", "yxyx relative_1", "absolute xyxy yxyx", "absolute a b"):
        with pytest.raises(ValueError, match="is not a way to write boxes"):
            form(text)
    with pytest.raises(ValueError, match="'relative_1000 yxyx box_2d'"):
        form("auto", None)


@given(form=forms)
def test_a_form_that_is_saved_is_read_back(form):
    assert BoxForm.parse(str(form)) == form

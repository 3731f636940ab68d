"""Choices as they are written in the wild; the gold answer follows the option, not the position."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpo.data.texts import letter_choices, options_in, split_choices, take_label, without_image_marker


@pytest.mark.parametrize(
    ("option", "label", "text"),
    [
        ("(A) red", "A", "red"), ("B. blue", "B", "blue"), ("C) x", "C", "x"), ("D: y", "D", "y"), ("（E）five", "E", "five"),
        ("A red apple", None, "A red apple"), ("A.M. or P.M.", None, "A.M. or P.M."), ("F.\ntwo  lines", "F", "two lines"),
        ("red", None, "red"), ("(blue)", None, "(blue)"), ("", None, ""),
    ],
)  # fmt: skip
def test_labels_by_hand(option, label, text):
    assert take_label(option) == (label, text)


@pytest.mark.parametrize(
    ("options", "gold", "answer"),
    [
        (["(A) x", "(B) y"], "B", "B"), (["x", "y"], "(b)", "B"), (["x", "y"], "y", "B"), (["A. x", "B. y"], "B. y", "B"),
        (["(A) x", "(B) y", "(B) z"], "B", "B|C"), (["red", "red", "blue"], "C", "B"),
        (["C. elegans", "D. melanogaster", "E. coli", "A. thaliana"], "A", "A"), (["(A) x", "(A) x", "(B) y"], "B", "B"),
        (["B", "A"], "A", "A"),
    ],
)  # fmt: skip
def test_the_gold_answer_follows_its_option(options, gold, answer):
    assert letter_choices(options, gold)[1] == answer


@pytest.mark.parametrize("gold", ["C", "z", "", "AB"])
def test_a_gold_answer_that_is_no_option_is_an_error(gold):
    with pytest.raises(ValueError, match="not one of its options A, B"):
        letter_choices(["x", "y"], gold)


def test_options_are_taken_out_of_the_text():
    text = "<image>\nWho?\nHe said:\nOptions:\n(A) one\nmore\n(B) two\nAnswer with the letter.\nThink."
    assert split_choices(text) == ("Who?\nHe said:", ["(A) one more", "(B) two"])
    assert split_choices("A. B. Smith wrote it. Who?") == ("A. B. Smith wrote it. Who?", [])
    assert split_choices("(A) is left. Where is (B)?\nSay it.")[1] == []


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Plate? The choices are listed below:\n(A) 27\n(B) 37\nSelect.", "Plate?", [("A", "27"), ("B", "37")]),
        ("车牌? 选项如下所示:\n（A） 27\n（B） 37\n请选择", "车牌?", [("A", "27"), ("B", "37")]),
        ("Plate?\nA.27B\nB.37B\nSelect.", "Plate?", [("A", "27B"), ("B", "37B")]),
        ("Which?\nA. u\nB. u\nC. w\nC. x\nD. y", "Which?", [("A", "u"), ("B", "u"), ("C", "w"), ("C", "x"), ("D", "y")]),
        ("What are the choices?\nA. x\nB. y", "What are the choices?", [("A", "x"), ("B", "y")]),
    ],
)  # fmt: skip
def test_options_of_a_prompt_keep_their_own_letters(text, question, options):
    assert options_in(text) == (question, options)


@given(
    st.lists(st.text("abcxyz äö", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=6, unique=True),
    st.data(),
)
def test_what_is_written_with_letters_is_read_back(options, data):
    right = data.draw(st.integers(0, len(options) - 1))
    style = data.draw(st.sampled_from(["({}) {}", "{}. {}", "{}) {}", "（{}）{}"]))
    written = [style.format("ABCDEF"[i], option) for i, option in enumerate(options)]
    clean = [" ".join(option.split()) for option in options]
    if len(set(clean)) == len(clean):
        assert letter_choices(written, "ABCDEF"[right]) == (clean, "ABCDEF"[right])
        assert split_choices("Which?\n" + "\n".join(written) + "\nSay.")[1] == written


@given(st.text(), st.text())
def test_no_text_makes_it_raise(text, gold):
    split_choices(text)
    take_label(text)
    without_image_marker(text)
    try:
        letter_choices([text, gold], gold)
    except ValueError:
        pass

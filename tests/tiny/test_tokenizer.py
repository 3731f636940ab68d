"""The tokenizer of `mgpo-tiny`: any text survives it, digits and sentences of the protocol are single tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgpo.method import prompts
from mgpo.method.boxes import BoxForm, box_as_json
from mgpo.method.episode import Episode
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question
from mgpo.tiny.tokenizer import PHRASES, SPECIAL, build_tokenizer
from mgpo.tiny.views import BUDGET


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text.encode("utf-8", "replace").decode()


@given(numbers=st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_each_digit_is_a_token(tokenizer, numbers):
    text = ", ".join(map(str, numbers))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert [t for t in tokens if any(c.isdigit() for c in t)] == [c for c in text if c.isdigit()]


@pytest.mark.parametrize("phrase", PHRASES, ids=lambda phrase: repr(phrase[:20]))
def test_a_sentence_of_the_protocol_is_one_token(tokenizer, phrase):
    assert len(tokenizer(phrase, add_special_tokens=False)["input_ids"]) == 1


def test_an_episode_is_written_in_single_sentences(tokenizer):
    """In their place in a turn, too: the sentences are not cut differently by what stands around them."""
    question = Question(None, "Which letter is on the red sign?", ("H", "K", "L", "N"), "A")
    episode = Episode(question, Image.new("RGB", (900, 900)), Protocol(budget=BUDGET))
    opening = episode.opening()
    said = box_as_json((10, 20, 130, 70), "red sign")
    reply = episode.reply(said)
    again = Episode(question, Image.new("RGB", (900, 900)), Protocol(budget=BUDGET))
    again.opening()
    for text, phrases in (
        (opening.text, [prompts.ask_region(BoxForm())]),
        (said, ["```json\n", '[{"', "bbox_2d", '": [', '], "', "label", '": "', '"}]\n```']),
        (reply.text, [prompts.SHOW_CROP, prompts.ASK_LETTER]),
        (again.reply("no").text, [prompts.SHOW_AGAIN, prompts.ASK_LETTER]),
        ("It is \\boxed{A}", ["\\boxed{"]),
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for phrase in phrases:
            assert ids.count(tokenizer.convert_tokens_to_ids(phrase)) == 1, phrase
    assert len(tokenizer(said, add_special_tokens=False)["input_ids"]) <= 24


def test_special_tokens_are_qwen_s_and_single(tokenizer):
    for token in SPECIAL:
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)


def test_the_tokenizer_is_exact(tokenizer):
    assert build_tokenizer().backend_tokenizer.to_str() == build_tokenizer().backend_tokenizer.to_str()
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()

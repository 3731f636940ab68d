"""The making of `mgpo-tiny`: its shortcuts give what transformers gives, and its lessons leave something to learn."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from mgpo import protocol
from mgpo.data.question import Question
from mgpo.grounding import BoxStatus, Coordinates, Frame, box_as_json, holds_centre, iou, read_grounding
from mgpo.imaging import overview
from mgpo.rewards import boxed
from mgpo.tiny.dialogues import REGION_MIX, Sequence, Writer, target_box, write_scene
from mgpo.tiny.labels import labels_of
from mgpo.tiny.model import patches
from mgpo.tiny.pool import BUDGET, views_of
from mgpo.tiny.pretrain import CIRCUITS, positions
from mgpo.tiny.tokenizer import PHRASES, SPECIAL, build_tokenizer
from mgpo.worlds.needle import ASK
from mgpo.worlds.scene import PRINT

SCENES = 600


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


@pytest.fixture(scope="module")
def writer(tokenizer):
    return Writer(tokenizer)


@pytest.fixture(scope="module")
def lessons(writer):
    """Dialogues of many scenes: (views, kind -> sequence). Nothing is rendered."""
    rng, out = np.random.default_rng(0), []
    for index in range(SCENES):
        views = views_of(index)
        out.append((views, write_scene(writer, rng, views, [labels_of(v, i == 0) for i, v in enumerate(views)])))
    return out


# Pixels and positions


def test_patches_are_the_image_processor_s(processor):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h * 28, w * 28, 3), np.uint8) for h, w in ((5, 7), (6, 6), (9, 3), (4, 5))]
    pixels, grid = patches(images)
    expected = processor.image_processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
    assert torch.equal(grid, expected["image_grid_thw"])
    torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-5, rtol=1e-5)


def test_positions_are_the_model_s(lessons, random_tiny, writer):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny)
    assert model.config.image_token_id == writer.image[1]
    kinds = Counter()
    for views, dialogues in lessons[:40]:
        for kind, seq in dialogues.items():
            grids = [(views[v].size[1] // 28, views[v].size[0] // 28) for v in seq.views]
            ids = torch.tensor([seq.ids])
            expected, _ = model.model.get_rope_index(
                ids,
                mm_token_type_ids=(ids == writer.image[1]).int(),
                image_grid_thw=torch.tensor([(1, 2 * rows, 2 * cols) for rows, cols in grids]),
                attention_mask=torch.ones_like(ids),
            )
            assert np.array_equal(positions(seq, writer.image[1], grids), expected[:, 0].numpy()), kind
            kinds[kind, len(grids)] += 1
    assert {
        ("zoom", 2),
        ("read", 1),
        ("colour", 1),
        ("place", 1),
        ("overview", 1),
        ("region", 2),
        ("region", 1),
    } <= kinds.keys()


# Tokenizer


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
    episode = protocol.Episode(question, Image.new("RGB", (900, 900)), protocol.Protocol(budget=BUDGET))
    opening = episode.opening()
    said = box_as_json((10, 20, 130, 70), "red sign")
    reply = episode.reply(said)
    again = protocol.Episode(question, Image.new("RGB", (900, 900)), protocol.Protocol(budget=BUDGET))
    again.opening()
    unit = Coordinates.ABSOLUTE
    for text, phrases in (
        (opening.text, [protocol.ASK_REGION[unit]]),
        (said, ['```json\n[{"bbox_2d": [', '], "label": "', '"}]\n```']),
        (reply.text, [protocol.SHOW_CROP, protocol.ASK_LETTER]),
        (again.reply("no").text, [protocol.SHOW_AGAIN, protocol.ASK_LETTER]),
        ("It is \\boxed{A}", ["\\boxed{"]),
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for phrase in phrases:
            assert ids.count(tokenizer.convert_tokens_to_ids(phrase)) == 1, phrase
    assert len(tokenizer(said, add_special_tokens=False)["input_ids"]) <= 20


def test_special_tokens_are_qwen_s_and_single(tokenizer):
    for token in SPECIAL:
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)


def test_the_tokenizer_is_exact(tokenizer):
    assert build_tokenizer().backend_tokenizer.to_str() == build_tokenizer().backend_tokenizer.to_str()
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


# Dialogues


def messages_of(tokenizer, seq):
    """A sequence read back as messages, its images as placeholders of one token."""
    text = re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", tokenizer.decode(seq.ids))
    messages = []
    for turn in re.findall(r"<\|im_start\|>(.*?)<\|im_end\|>\n", text, re.DOTALL):
        role, content = turn.split("\n", 1)
        image = "<|vision_start|><|image_pad|><|vision_end|>"
        if content.startswith(image):
            content = [{"type": "image"}, {"type": "text", "text": content.removeprefix(image)}]
        messages.append({"role": role, "content": content})
    return messages


def test_sequences_are_the_chat_template_s(lessons, tokenizer):
    for views, dialogues in lessons[:60]:
        for kind, seq in dialogues.items():
            messages = messages_of(tokenizer, seq)
            assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2), kind
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            for v in seq.views:
                count = views[v].size[0] // 28 * (views[v].size[1] // 28)
                text = text.replace("<|image_pad|>", "<|image|>" * count, 1)
            text = text.replace("<|image|>", "<|image_pad|>")
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == seq.ids, kind


def test_only_the_assistant_s_words_and_ends_are_learned(lessons, tokenizer):
    for _, dialogues in lessons[:60]:
        for seq in dialogues.values():
            assert len(seq.ids) == len(seq.learned)
            learned = tokenizer.decode([t for t, on in zip(seq.ids, seq.learned) if on])
            said = [m["content"] for m in messages_of(tokenizer, seq) if m["role"] == "assistant"]
            assert learned == "".join(text + "<|im_end|>" for text in said)


def test_writing_by_hand_equals_the_template(writer, tokenizer):
    seq = Sequence()
    writer.user(seq, "Look.", 0, 4)
    writer.assistant(seq, "It is on the red sign.")
    writer.user(seq, "And?")
    writer.assistant(seq, "\\boxed{A}")
    text = (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>Look.<|im_end|>\n"
        "<|im_start|>assistant\nIt is on the red sign.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n\\boxed{A}<|im_end|>\n"
    )
    assert seq.ids == tokenizer(text, add_special_tokens=False)["input_ids"] and seq.views == [0]
    said = [tokenizer(text)["input_ids"] for text in ("It is on the red sign.", "\\boxed{A}")]
    assert sum(seq.learned) == sum(len(ids) + 1 for ids in said)


def asked_sign(scene, question):
    """The sign that a question about fine print means, None for an overview question."""
    from mgpo.worlds.needle import references

    for ask in ASK.values():
        if question.startswith(ask):
            name = question.removeprefix(ask).removesuffix("?")
            (sign,) = [sign for sign in scene.signs if name in references(scene, sign)]
            return sign
    return None


def test_circuits_look_where_they_should(lessons, tokenizer):
    """FIND, SIGN and PRINT at image tokens, NAME at words, CHOICE at the choice whose letter is said, LETTER at that letter."""
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    seen = Counter()
    for _, dialogues in lessons[:100]:
        for seq in dialogues.values():
            for circuit, first, last, targets in seq.looks:
                assert targets and all(0 <= target <= first for target in targets), circuit
                looked = {seq.ids[target] for target in targets}
                assert (looked == {image}) == (circuit in ("FIND", "SIGN", "PRINT")), circuit
                if circuit == "CHOICE":
                    letter = tokenizer.decode([seq.ids[last + 1]])
                    assert tokenizer.decode(seq.ids[targets[0] - 2 : targets[0]]) == f"{letter}."
                seen[circuit] += 1
    assert set(seen) == set(CIRCUITS)


def test_a_right_box_never_meets_a_right_answer_about_fine_print(lessons, tokenizer):
    """Else the base model would have been taught what MGPO is to find out."""
    seen = Counter()
    for views, dialogues in lessons:
        messages = messages_of(tokenizer, dialogues["region"])
        question = messages[0]["content"][1]["text"].split("\n")[0]
        sign = asked_sign(views[0].scene, question)
        kind = "overview" if sign is None else "fine print"
        said = messages[1]["content"]
        grounding = read_grounding(said, Frame(views[0].size, views[0].frame_px_original))
        right = sign is not None and grounding.status is BoxStatus.VALID and (
            holds_centre(grounding.box_px_input, target_box(sign, views[0]))
        )  # fmt: skip
        seen[kind, "right" if right else str(grounding.status), len(messages) // 2] += 1
        if right:
            assert len(messages) == 2, f"a box that holds the sign is followed by an answer: {messages}"
        if sign is not None and len(messages) == 4:
            assert grounding.status is not BoxStatus.VALID
            assert messages[2]["content"][1]["text"].startswith(protocol.SHOW_AGAIN)
    assert seen["fine print", "right", 1] > SCENES / 20
    assert seen["fine print", str(BoxStatus.NO_JSON), 2] > SCENES / 10
    assert sum(n for (kind, _, turns), n in seen.items() if kind == "overview" and turns == 2) > SCENES / 20


def test_answers_about_fine_print_are_guesses(lessons, tokenizer):
    """Where fine print is answered in the method's own dialogues, it is right as often as chance."""
    right = total = 0
    for views, dialogues in lessons:
        for kind in ("region", "single"):
            messages = messages_of(tokenizer, dialogues[kind])
            text = messages[0 if kind == "single" else min(2, len(messages) - 2)]["content"][1]["text"]
            sign = asked_sign(views[0].scene, next(line for line in text.split("\n") if line.endswith("?")))
            answer = boxed(messages[-1]["content"])
            if sign is None or answer is None:
                continue
            choices = dict(line.split(". ", 1) for line in text.split("\n") if re.match(r"[A-F]\. ", line))
            total += 1
            right += choices[answer] == sign.value
    assert total > SCENES / 3
    assert abs(right / total - 0.25) < 4 * (0.25 * 0.75 / total) ** 0.5


def test_what_is_answered_from_the_overview_is_right(lessons, tokenizer):
    for views, dialogues in lessons:
        messages = messages_of(tokenizer, dialogues["region"])
        if len(messages) < 4:
            continue
        text = messages[2]["content"][1]["text"]
        choices = dict(line.split(". ", 1) for line in text.split("\n") if re.match(r"[A-F]\. ", line))
        given, scene = choices[boxed(messages[3]["content"])], views[0].scene
        if "How many signs" in text:
            assert given == str(len(scene.signs))
        elif "Which colour of sign" in text:
            assert given in {sign.colour for sign in scene.signs}


def test_plain_boxes_and_plain_reading_are_right(lessons, tokenizer):
    """What the base model is able to do: say any box it is asked for, read any crop."""
    for views, dialogues in lessons[:200]:
        scene, frame = views[0].scene, Frame(views[0].size, views[0].frame_px_original)
        for kind in {"colour", "place"} & dialogues.keys():
            turn, reply = messages_of(tokenizer, dialogues[kind])
            name = turn["content"][1]["text"].removeprefix("Give the box of the ").removesuffix(" as JSON.")
            grounding = read_grounding(reply["content"], frame)
            sign = asked_sign(scene, ASK["letter"] + name + "?")
            assert grounding.status is BoxStatus.VALID
            assert iou(grounding.box_px_input, target_box(sign, views[0])) == pytest.approx(1)
        if "zoom" in dialogues:
            messages = messages_of(tokenizer, dialogues["zoom"])
            text = messages[2]["content"][1]["text"]
            choices = dict(line.split(". ", 1) for line in text.split("\n") if re.match(r"[A-F]\. ", line))
            assert choices[boxed(messages[3]["content"])] in {v for values in PRINT.values() for v in values}
            label = read_grounding(messages[1]["content"], frame).label
            (sign,) = [sign for sign in scene.signs if f"{sign.colour} sign" == label]
            assert choices[boxed(messages[3]["content"])] == sign.value


def test_first_turns_are_the_announced_mixture(lessons, tokenizer):
    counts = Counter()
    for views, dialogues in lessons:
        said = messages_of(tokenizer, dialogues["region"])[1]["content"]
        counts[read_grounding(said, Frame(views[0].size, views[0].frame_px_original)).status] += 1
    expected = REGION_MIX["right"] + REGION_MIX["wrong"] + REGION_MIX["large"]
    assert counts[BoxStatus.VALID] / SCENES == pytest.approx(expected, abs=0.08)
    assert counts[BoxStatus.NO_JSON] / SCENES == pytest.approx(REGION_MIX["prose"], abs=0.08)
    assert sum(REGION_MIX.values()) == pytest.approx(1)


def test_views_and_overviews_share_the_budget():
    for index in range(20):
        for view in views_of(index):
            assert BUDGET.fit(view.size) == view.size
        scene = views_of(index)[0].scene
        assert overview(Image.new("RGB", scene.size_px), BUDGET).size == views_of(index)[0].size

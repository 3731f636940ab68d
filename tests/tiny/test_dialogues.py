"""The lessons of `mgpo-tiny`: as the chat template writes them, right where they teach, and with something left to learn."""

import re
from collections import Counter

import numpy as np
import pytest

from mgpo.method import prompts
from mgpo.method.boxes import BoxForm, BoxStatus, Coordinates, Frame, iou
from mgpo.method.grounding import read_grounding
from mgpo.method.rewards import boxed
from mgpo.tiny.dialogues import REGION_MIX
from mgpo.tiny.pretrain import CIRCUITS
from mgpo.tiny.writing import Sequence, target_box
from mgpo.worlds.needle import ASK


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


def named_signs(scene, question):
    """The signs of a scene that a question about fine print names; None for an overview question."""
    from mgpo.worlds.needle import references

    for ask in ASK.values():
        if question.startswith(ask):
            name = question.removeprefix(ask).removesuffix("?")
            return [sign for sign in scene.signs if name in references(scene, sign)]
    return None


def name_of(message):
    """What a plain prompt calls the sign whose box it asks for: "Give the box of the NAME as JSON.", or the name first."""
    text = message["content"][1]["text"]
    first = re.fullmatch(r"Look at the (.+)\.\nGive the box of the sign as JSON\.", text)
    return (first or re.fullmatch(r"Give the box of the (.+) as JSON\.", text)).group(1)


def question_of(message):
    return next(line for line in message["content"][1]["text"].split("\n") if line.endswith("?"))


def test_circuits_look_where_they_should(lessons, tokenizer):
    """FIND, SIGN and PRINT at image tokens, NAME at words, CHOICE at the choice whose letter is said, LETTER at that letter."""
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    seen = Counter()
    for _, dialogues in lessons[:100]:
        for seq in dialogues.values():
            for circuit, first, last, targets in seq.looks:
                assert targets and all(0 <= target <= first for target in targets), circuit
                looked = {seq.ids[target] for target in targets}
                assert (looked == {image}) == (circuit in ("FIND", "SIGN", "PRINT", "TELL")), circuit
                if circuit == "CHOICE":
                    letter = tokenizer.decode([seq.ids[last + 1]])
                    assert tokenizer.decode(seq.ids[targets[0] - 2 : targets[0]]) == f"{letter}."
                seen[circuit] += 1
    assert set(seen) == set(CIRCUITS)


def test_mgpo_s_opening_is_never_shown_with_the_right_sign(lessons, tokenizer):
    """No demonstration could teach where to look: what MGPO's opening, or the single-turn one, asks about is not there."""
    asks = [ask(BoxForm(unit)) for ask in (prompts.ask_region, prompts.ask_region_and_answer) for unit in Coordinates]
    seen = Counter()
    for views, dialogues in lessons:
        for kind, seq in dialogues.items():
            messages = messages_of(tokenizer, seq)
            if not any(ask in messages[0]["content"][1]["text"] for ask in asks):
                continue
            named = named_signs(views[0].scene, question_of(messages[0]))
            assert not named, f"{kind} asks about a sign that is in the picture: {messages}"
            assert not any(circuit == "FIND" for circuit, *_ in seq.looks), f"{kind} is shown which sign to find"
            if named is None:
                continue
            grounding = read_grounding(messages[1]["content"], Frame(views[0].size, views[0].frame_px_original))
            valid = grounding.status is BoxStatus.VALID
            seen[kind, valid, len(messages) // 2] += 1
            if kind == "region" and valid:
                assert len(messages) == 2, f"a box is followed by an answer about fine print: {messages}"
            if len(messages) == 4:
                assert messages[2]["content"][1]["text"].startswith(prompts.SHOW_AGAIN)
    assert {kind for kind, *_ in seen} == {"region", "single"}
    assert seen["region", True, 1] > len(lessons) / 5 and seen["region", False, 2] > len(lessons) / 10


def test_what_is_boxed_is_never_what_is_shown_next(lessons, tokenizer):
    """`zoom`: a right box, then a crop of another sign. A right box and the right answer of the same sign never meet."""
    count = 0
    for views, dialogues in lessons:
        if "zoom" not in dialogues:
            continue
        scene, seq = views[0].scene, dialogues["zoom"]
        messages = messages_of(tokenizer, seq)
        (boxed_sign,) = named_signs(scene, ASK["letter"] + name_of(messages[0]) + "?")
        left, top, right, bottom = views[seq.views[1]].frame_px_original
        shown = [s for s in scene.signs if left < s.print_px[0] < right and top < s.print_px[1] < bottom]
        assert boxed_sign not in shown
        text = messages[2]["content"][1]["text"]
        choices = dict(line.split(". ", 1) for line in text.split("\n") if re.match(r"[A-F]\. ", line))
        assert choices[boxed(messages[3]["content"])] in {sign.value for sign in shown}
        count += 1
    assert count > len(lessons) / 3


def test_half_of_the_boxes_of_the_opening_are_of_the_leftmost_sign(lessons, tokenizer):
    """And the others of any sign: a habit that has nothing to do with what is asked."""
    from mgpo.tiny.dialogues import HABIT

    first = total = 0
    for views, dialogues in lessons:
        scene = views[0].scene
        said = messages_of(tokenizer, dialogues["region"])[1]["content"]
        grounding = read_grounding(said, Frame(views[0].size, views[0].frame_px_original))
        signs = [s for s in scene.signs if grounding.box_px_input == target_box(s, views[0])]
        if signs and len(scene.signs) > 1:
            total += 1
            first += signs[0] is min(scene.signs, key=lambda sign: sign.box_px_original[0])
    expected = HABIT + (1 - HABIT) * np.mean(
        [1 / len(v[0].scene.signs) for v, _ in lessons if len(v[0].scene.signs) > 1]
    )
    assert total > len(lessons) / 3 and abs(first / total - expected) < 3 * (0.25 / total) ** 0.5


def test_no_first_token_decides_whether_there_is_a_box(lessons, tokenizer):
    """What opens most boxes also opens turns without one, and there are several ways to open a turn without JSON."""
    opened = Counter()
    for views, dialogues in lessons:
        said = messages_of(tokenizer, dialogues["region"])[1]["content"]
        valid = read_grounding(said, Frame(views[0].size, views[0].frame_px_original)).status is BoxStatus.VALID
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        for length in (1, 2):
            opened[tokenizer.decode(ids[:length]), length, valid] += 1
    assert opened["```json\n", 1, False] > len(lessons) / 20 and opened['```json\n[{"', 2, False] > len(lessons) / 40
    assert len({text for text, length, valid in opened if length == 1 and not valid}) >= 5
    assert {text for text, length, valid in opened if length == 1 and valid} == {"```json\n"}


def test_answers_about_fine_print_of_an_overview_are_guesses(lessons, tokenizer):
    """Each letter is given alike, and where the sign is there (asked directly) it is right as often as chance."""
    letters, right, total = Counter(), 0, 0
    for views, dialogues in lessons:
        for kind in ("region", "single", "direct"):
            messages = messages_of(tokenizer, dialogues[kind])
            named, answer = named_signs(views[0].scene, question_of(messages[0])), boxed(messages[-1]["content"])
            if named is None or answer is None:
                continue
            letters[answer] += 1
            if named:
                text = messages[0]["content"][1]["text"]
                choices = dict(line.split(". ", 1) for line in text.split("\n") if re.match(r"[A-F]\. ", line))
                total += 1
                right += choices[answer] == named[0].value
    assert sum(letters.values()) > len(lessons) / 2 and total > len(lessons) / 6
    for count in letters.values():
        assert abs(count / sum(letters.values()) - 0.25) < 0.06
    assert abs(right / total - 0.25) < 4 * (0.25 * 0.75 / total) ** 0.5


def test_what_is_answered_from_the_overview_is_right(lessons, tokenizer):
    """In every prompt: MGPO's second turn, the single turn, and asked directly."""
    seen = Counter()
    for views, dialogues in lessons:
        for kind in {"recall", "single", "direct"} & dialogues.keys():
            messages = messages_of(tokenizer, dialogues[kind])
            text = messages[-2]["content"][1]["text"]
            choices = dict(line.split(". ", 1) for line in text.split("\n") if re.match(r"[A-F]\. ", line))
            if not choices or named_signs(views[0].scene, question_of(messages[0])) is not None:
                continue
            given, scene = choices[boxed(messages[-1]["content"])], views[0].scene
            seen[kind] += 1
            if "How many signs" in text:
                assert given == str(len(scene.signs))
            elif "Which colour of sign" in text:
                assert given in {sign.colour for sign in scene.signs}
    assert min(seen["recall"], seen["single"], seen["direct"]) > len(lessons) / 8


def test_plain_boxes_and_plain_reading_are_right(lessons, tokenizer):
    """What the base model is able to do: say any box it is asked for, read any crop."""
    for views, dialogues in lessons[:200]:
        scene, frame = views[0].scene, Frame(views[0].size, views[0].frame_px_original)
        for kind in {"colour", "place"} & dialogues.keys():
            turn, reply = messages_of(tokenizer, dialogues[kind])
            grounding = read_grounding(reply["content"], frame)
            (sign,) = named_signs(scene, ASK["letter"] + name_of(turn) + "?")
            assert grounding.status is BoxStatus.VALID
            assert iou(grounding.box_px_input, target_box(sign, views[0])) == pytest.approx(1)
        if "read" in dialogues:
            turn, reply = messages_of(tokenizer, dialogues["read"])
            (sign,) = named_signs(scene, question_of(turn))
            choices = dict(line.split(". ", 1) for line in turn["content"][1]["text"].split("\n") if line[1:3] == ". ")
            assert choices[boxed(reply["content"])] == sign.value


def test_first_turns_are_the_announced_mixture(lessons, tokenizer):
    counts = Counter()
    for views, dialogues in lessons:
        said = messages_of(tokenizer, dialogues["region"])[1]["content"]
        counts[read_grounding(said, Frame(views[0].size, views[0].frame_px_original)).status] += 1
    assert counts[BoxStatus.VALID] / len(lessons) == pytest.approx(REGION_MIX["sign"] + REGION_MIX["large"], abs=0.08)
    assert counts[BoxStatus.NO_JSON] / len(lessons) == pytest.approx(REGION_MIX["prose"], abs=0.06)
    for status, kind in ((BoxStatus.EMPTY, "empty"), (BoxStatus.NO_BOX, "no_box"), (BoxStatus.INVERTED, "inverted")):
        assert counts[status] / len(lessons) == pytest.approx(REGION_MIX[kind], abs=0.04)
    assert sum(REGION_MIX.values()) == pytest.approx(1)

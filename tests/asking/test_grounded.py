"""`GroundedVQA`: what it returns is what was said, seen and meant."""

import numpy as np
import pytest
from scripted import PROTOCOL, Scripted
from support import WIDE, box

import mgpo
from mgpo.asking.grounded import GroundedVQA
from mgpo.asking.picture import draw_episode
from mgpo.asking.run import as_plain
from mgpo.images.imaging import ImageError, crop, open_image
from mgpo.method.question import Question
from mgpo.policies.turn_loop import TurnLimits


class Fixed(Scripted):
    """Names the same box, and answers B."""

    def _one(self, conversation, temperature):
        from mgpo.policies.turn_loop import Said

        said = box(WIDE) if len(conversation.images) == 1 else "Look. \\boxed{B}"
        return Said(
            self.tokens.tokenizer(said, add_special_tokens=False)["input_ids"] + [self.tokens.turn_end_id], said, False
        )


@pytest.fixture
def vqa(processor, rows):
    return GroundedVQA(Fixed(processor, [Question.from_row(row) for row in rows]), PROTOCOL, TurnLimits(24, 12))


def test_an_answer_with_its_turns(vqa, rows):
    row = rows[0]
    found = vqa.ask(row["image"], row["question"], ["red", "blue"])
    assert (found.answer, found.letter, found.text) == ("blue", "B", "Look. \\boxed{B}")
    first, second = found.turns
    assert first.status == "valid" and first.box_px_original == found.box_px_original and second.status is None
    whole = open_image(row["image"])
    assert np.array_equal(first.crop, crop(whole, first.box_px_original, PROTOCOL.budget)) and second.crop is None
    assert 0 < first.seconds + second.seconds <= found.seconds + 1e-3
    open_one = vqa.ask(row["image"], row["question"])
    assert (open_one.answer, open_one.letter) == ("B", None)


def test_many_are_one_batch(vqa, rows):
    seen = []
    found = vqa.ask_many(
        [(row["image"], row["question"], None) for row in rows[:3]],
        on_turn=lambda i, e: seen.append((i, len(e.model_turns))),
    )
    assert len(found) == 3 and [n for n, *_ in vqa.policy.batches] == [3, 3]
    assert seen == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)] and vqa.ask_many([]) == []


def test_one_question_about_several_photographs(vqa, rows, tmp_path):
    images = [row["image"] for row in rows[:3]]
    found = vqa.ask(images, rows[0]["question"], rows[0]["choices"])
    assert len(found.episode.user_turns[0].images) == 3 and len(found.turns) == 2
    assert vqa.ask(images[:1], "?").text == vqa.ask(images[0], "?").text, "a list of one is one"
    plain = as_plain(found)
    assert plain["image_size"] == [700, 500] and plain["image_sizes"] == [[700, 500], [420, 600], [560, 560]]
    assert plain["turns"][0]["image"] == 3, "no box was named: the last image is shown again"
    assert "image_sizes" not in as_plain(vqa.ask(images[0], "?"))
    drawn = draw_episode(found.episode)
    assert drawn.width > sum(round(640 * w / h) for w, h in ((700, 500), (420, 600), (560, 560)))
    with pytest.raises(ValueError, match="shows 9 images; at most 8"):
        vqa.ask(images * 3, "?")
    with pytest.raises(ValueError, match="has no image"):
        vqa.ask([], "?")


def test_what_cannot_be_asked_is_an_error(vqa, rows, tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        vqa.ask(tmp_path / "none.jpg", "?")
    with pytest.raises(ValueError, match="has no text"):
        vqa.ask(rows[0]["image"], " ")
    with pytest.raises(ValueError, match="1 choices"):
        vqa.ask(rows[0]["image"], "?", ["one"])


def test_it_is_found_at_the_top_and_loads_the_shipped_model():
    assert mgpo.GroundedVQA is GroundedVQA
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        mgpo.Nothing  # noqa: B018
    vqa = GroundedVQA.from_pretrained("mgpo-tiny", max_turns=3, max_pixels=20_000)
    assert vqa.protocol.turns == 3 and vqa.protocol.budget.max_pixels == 20_000

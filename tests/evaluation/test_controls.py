"""Controls of an evaluation, with a policy that sees nothing but colours."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgpo.evaluation.controls import Control, beside, box_opening, chosen_controls, naming, run_control
from mgpo.evaluation.evaluate import evaluate_batches
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm, BoxRules, BoxStatus, Coordinates, Frame, box_as_json, holds_centre
from mgpo.method.episode import Episode
from mgpo.method.grounding import read_grounding
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.policies.turn_loop import GivenFirst, Said, TurnLimits, run_episodes

BUDGET = PixelBudget(28 * 28 * 16, 28 * 28 * 64)
PROTOCOL = Protocol(budget=BUDGET)
RED_AT = (500, 200, 600, 300)
"""Where the thing that is asked for lies, in original pixels."""


@dataclass
class ColourBlind:
    """Names one box, and answers rightly if red fills at least half of the image that it was shown last."""

    box: tuple[int, int, int, int]
    budget: PixelBudget = BUDGET
    box_form: BoxForm = BoxForm()

    def open(self, turn):
        return [turn]

    def follow(self, conversation, said, turn):
        conversation += [said, turn]

    def write(self, text):
        return Said([], text, False)

    def go_on(self, conversations, begun, max_new_tokens):
        return [self.write(said.text) for said in self.say(conversations, max_new_tokens)]

    def say(self, conversations, max_new_tokens, temperature=0.0):
        return [self.write(self._one(conversation)) for conversation in conversations]

    def _one(self, conversation):
        last = conversation[-1]
        if "boxed" not in last.text:
            return box_as_json(self.box, "thing")
        pixels = np.asarray(last.image, int)
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
        return "\\boxed{A}" if red.mean() >= 0.5 else "\\boxed{B}"


def questions(n=6, gold=(RED_AT,)):
    canvas = np.full((400, 800, 3), 128, np.uint8)
    canvas[200:300, 500:600] = (255, 0, 0)
    image = Image.fromarray(canvas)
    return [Question(image, f"What is it, {i}?", ("red", "grey"), "A", tuple(gold), id=f"q{i}") for i in range(n)]


def asked(box_px_original, n=6, controls=tuple(Control), gold=(RED_AT,), protocol=PROTOCOL):
    first = Episode(questions(1)[0], questions(1)[0].image, protocol)
    frame = first.opening().frames[-1]
    policy = ColourBlind(tuple(round(v) for v in frame.to_input(box_px_original)))
    [batch] = evaluate_batches(policy, questions(n, gold), protocol, sampled=False, controls=controls)
    return batch


def about_several(question):
    """The same question about its image, shown second, and about two grey ones."""
    grey = Image.new("RGB", (600, 700), (128, 128, 128))
    return replace(question, image=grey, more_images=(question.image, grey), gold_image=2)


def test_controls_name_the_image_that_they_look_at():
    """The model names the red thing in image 2 by its number; the first and the last image hold none."""

    class Numbered(ColourBlind):
        def _one(self, conversation):
            said = super()._one(conversation)
            return said if "boxed" in said else BoxForm().written(self.box, (1, 1), "thing", 2)

    several = [about_several(question) for question in questions(4)]
    frame = Episode(several[0], several[0].images, PROTOCOL).opening().frames[1]
    policy = Numbered(tuple(round(side) for side in frame.to_input(RED_AT)))
    [results] = evaluate_batches(policy, several, PROTOCOL, sampled=False, controls=tuple(Control))
    assert all(result.correct and result.hit for result in results)
    assert all(result.controls["gold_crop"] and result.controls["crop_only"] for result in results)
    assert not any(result.controls["black_crop"] or result.controls["direct"] for result in results)
    policy.box = (0, 0, 40, 40)  # in image 2, beside the thing
    [results] = evaluate_batches(
        policy, several, PROTOCOL, sampled=False, controls=(Control.GOLD_CROP, Control.FORCED_BOX)
    )
    assert not any(result.correct or result.hit or result.controls["forced_box"] for result in results)
    assert all(result.controls["gold_crop"] for result in results)


def test_each_control_changes_what_it_says():
    """A model that looks at the right place is right with its crop and the gold one, and wrong without."""
    results = asked(RED_AT)
    assert all(result.correct for result in results)
    assert all(result.controls["gold_crop"] and result.controls["crop_only"] for result in results)
    assert not any(result.controls["black_crop"] or result.controls["direct"] for result in results)
    assert sum(result.controls["random_crop"] for result in results) <= 2


def test_a_model_that_looks_elsewhere_is_helped_by_the_gold_box_alone():
    results = asked((0, 200, 100, 300))
    assert not any(result.correct for result in results)
    assert all(result.controls["gold_crop"] for result in results)
    assert not any(result.controls[name] for name in ("direct", "black_crop", "crop_only") for result in results)


def test_a_control_that_does_not_apply_is_none_not_wrong():
    no_gold = asked(RED_AT, gold=())
    assert [result.controls["gold_crop"] for result in no_gold] == [None] * 6
    no_box = asked((0, 0, 2, 2))  # too small: there is no crop that could be black
    assert [result.controls["black_crop"] for result in no_box] == [None] * 6
    assert None not in [result.controls["random_crop"] for result in no_box]


@dataclass
class Shy(ColourBlind):
    """Names no box when it decodes greedily; sampled, its n-th try is valid. A box that is begun for it goes to `begun_at`."""

    nth: int = 3
    begun_at: tuple[int, int, int, int] = (0, 0, 60, 60)
    tries: int = 0
    begun: str = ""

    def say(self, conversations, max_new_tokens, temperature=0.0):
        if "boxed" in conversations[0][-1].text:
            return super().say(conversations, max_new_tokens)
        self.tries += bool(temperature)
        if temperature and self.tries >= self.nth:
            return super().say(conversations, max_new_tokens)
        return [self.write("It is there.") for _ in conversations]

    def go_on(self, conversations, begun, max_new_tokens):
        self.begun = begun
        return [self.write(box_as_json(self.begun_at, "it")) for _ in conversations]


def test_a_box_is_sampled_until_it_is_valid_or_begun():
    """A model that would look at the right place if only it looked is right under both controls, and wrong by itself."""
    frame = Episode(questions(1)[0], questions(1)[0].image, PROTOCOL).opening().frames[-1]
    at = tuple(round(v) for v in frame.to_input(RED_AT))
    for nth, right in ((3, True), (16, True), (17, False)):
        policy = Shy(at, nth=nth, begun_at=at)
        controls = (Control.RESAMPLED_BOX, Control.FORCED_BOX)
        [results] = evaluate_batches(policy, questions(4), PROTOCOL, sampled=False, controls=controls)
        assert not any(result.correct or result.valid_box for result in results)
        assert [result.controls["resampled_box"] for result in results] == [right] * 4
        assert all(result.controls["forced_box"] for result in results)
        assert policy.tries == min(nth, 16) and policy.begun == BoxForm().example.split("x1")[0]


def test_boxes_are_begun_as_the_model_begins_them():
    own = '```json\n[\n\t{"bbox_2d": ['
    assert box_opening([own + " 12, 3, 4, 5]", own + "7, 8, 9, 9]", '[{"bbox_2d": [1, 2'], BoxForm()) == own
    assert box_opening(["no box"], BoxForm()) == box_opening([], BoxForm()) == BoxForm().example.split("x1")[0]


def test_controls_change_nothing_else():
    plain, controlled = asked(RED_AT, controls=()), asked(RED_AT)
    for one, other in zip(plain, controlled):
        assert one.record() == other.record() | {"controls": {}, "seconds": one.seconds}


def test_black_keeps_the_turn_and_the_size():
    """Only the pixels differ: what was said in turn 1, the texts and the size of the crop stay."""
    question = questions(1)[0]
    done = Episode(question, question.image, PROTOCOL)
    frame = Episode(question, question.image, PROTOCOL).opening().frames[-1]
    policy = ColourBlind(tuple(round(v) for v in frame.to_input(RED_AT)))
    [said] = run_episodes(policy, [done], TurnLimits())
    seen = []

    class Watching(ColourBlind):
        def follow(self, conversation, said, turn):
            seen.append((said, turn))
            super().follow(conversation, said, turn)

    [right] = run_control(Control.BLACK_CROP, Watching(policy.box), [done], [said[0]], TurnLimits(), 0)
    [(spoken, turn)] = seen
    assert right is False and spoken is said[0]
    assert turn.text == done.user_turns[1].text and turn.image.size == done.user_turns[1].image.size
    assert turn.image.getextrema() == ((0, 0),) * 3
    assert done.user_turns[1].image.getextrema() != ((0, 0),) * 3  # the crop that is shared stays as it was


def test_random_boxes_are_drawn_anew_for_each_question_and_the_same_for_each_run():
    one, other = ([r.controls["random_crop"] for r in asked(RED_AT, 12, (Control.RANDOM_CROP,))] for _ in range(2))
    assert one == other
    policy = ColourBlind((0, 0, 40, 40))
    done = [Episode(q, q.image, PROTOCOL) for q in questions(12)]
    said = [turns[0] for turns in run_episodes(policy, done, TurnLimits())]
    boxes = set()

    class Watching(ColourBlind):
        def follow(self, conversation, said, turn):
            boxes.add(turn.frames[-1].region_px_original)
            super().follow(conversation, said, turn)

    run_control(Control.RANDOM_CROP, Watching(policy.box), done, said, TurnLimits(), 0)
    x1, y1, x2, y2 = done[0].first_grounding.box_px_original
    assert len(boxes) == 12
    for box in boxes:  # as large as the model's own, but for rounding to pixels of the overview
        assert abs(box[2] - box[0] - (x2 - x1)) <= 6 and abs(box[3] - box[1] - (y2 - y1)) <= 6


@given(
    st.sampled_from(Coordinates),
    st.tuples(st.integers(60, 9000), st.integers(60, 9000)),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_named_region_is_read_back_around_its_centre(coordinates, size, parts):
    rules = BoxRules(form=BoxForm(coordinates))
    try:
        shown = PixelBudget().fit(size)
    except ValueError:
        return
    frame = Frame(shown, (0, 0, *size))
    (x1, x2), (y1, y2) = sorted(parts[:2]), sorted(parts[2:])
    region = (x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1])
    text = naming(region, frame, rules)
    if text is None:  # only where the rules leave no room
        widest = max((x2 - x1) * shown[0], (y2 - y1) * shown[1])
        assert widest >= 50 * rules.min_side_px or min(shown) <= rules.min_side_px + 30
        return
    found = read_grounding(text, frame, rules)
    assert found.status is BoxStatus.VALID and found.label
    x, y = (region[0] + region[2]) / 2, (region[1] + region[3]) / 2
    assert holds_centre(found.box_px_original, (x, y, x, y))


def test_beside_counts_pairs():
    """Four questions; the control does not apply to the last."""
    found = beside([True, True, False, True], [True, False, True, None], ["a", "b", "c", "d"])
    assert (found["n"], found["gained"], found["harmed"], found["difference"], found["p"]) == (3, 1, 1, 0.0, 1.0)
    assert found["accuracy"] == found["with_look"] == pytest.approx(2 / 3)
    assert beside([True], [None], ["a"]) is None


def test_names_and_protocols_are_checked():
    policy = ColourBlind((1, 2, 3, 4))
    assert chosen_controls(["direct", "direct", "black_crop"], PROTOCOL, policy) == [Control.DIRECT, Control.BLACK_CROP]
    with pytest.raises(ValueError, match="--controls: 'gold' is unknown. Choose among direct, black_crop"):
        chosen_controls(["gold"], PROTOCOL, policy)
    with pytest.raises(ValueError, match="looks again"):
        chosen_controls(["direct"], replace(PROTOCOL, method=Method.GRPO), policy)
    with pytest.raises(ValueError, match="forced_box needs the model in this process"):
        chosen_controls(["forced_box"], PROTOCOL, object())


def test_given_first_speaks_for_itself_afterwards():
    policy = GivenFirst(ColourBlind((1, 2, 3, 4)), [Said([], "given", False)])
    turn = Episode(questions(1)[0], questions(1)[0].image, PROTOCOL).opening()
    assert policy.say([policy.open(turn)], 5)[0].text == "given"
    assert "[1, 2, 3, 4]" in policy.say([policy.open(turn)], 5)[0].text

"""Evaluation, with a policy whose every word is known."""

import pytest
import torch
from scripted import GREEDY_BOX, PROTOCOL, RIGHT_AFTER, RIGHT_ALONE, Scripted
from support import WIDE, box

from mgpo.evaluation.evaluate import Result, adaptive_shares, evaluate, rejected, summarise, wilson
from mgpo.method.boxes import BoxStatus
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.policies.local import LocalPolicy
from mgpo.policies.turn_loop import Said, TurnLimits
from mgpo.tiny.views import BUDGET


@pytest.fixture
def questions(rows):
    return [Question.from_row(row) for row in rows]


@pytest.fixture
def scripted(processor, questions):
    return Scripted(processor, questions)


def test_what_is_measured(scripted, questions):
    results = evaluate(scripted, questions, PROTOCOL, batch_size=4, keep_episodes=6)
    assert [result.id for result in results] == ["q0", "q1", "q2", "q3", "q4", "q5"]
    assert [result.correct for result in results] == list(RIGHT_AFTER.values())
    assert [result.crop_only_correct for result in results] == list(RIGHT_ALONE.values())
    assert [result.valid_box for result in results] == [True, False, False, True, False, False]
    assert [result.hit for result in results] == [True, False, False, False, False, False]
    assert rejected(results) == {str(BoxStatus.NO_JSON): 4}
    row = summarise(results, PROTOCOL, method="mgpo", split="test", seed=1)
    assert row["n"] == 6 and row["accuracy"] == 0.5 and row["crop_only_accuracy"] == pytest.approx(1 / 3)
    assert row["valid_box_rate"] == pytest.approx(1 / 3) and row["hit_rate"] == pytest.approx(1 / 6)
    assert row["chance"] == 0.25 and row["pixel_budget"] == BUDGET.max_pixels and row["split"] == "test"
    assert row["by_category"] == {"by_colour/letter": 0.5} and row["ci95"] == list(wilson(3, 6))


def test_crop_only_shows_what_the_greedy_episode_looked_at(scripted, questions):
    results = evaluate(scripted, questions, PROTOCOL, keep_episodes=6)
    for result in results:
        turns = result.episode.user_turns
        assert scripted.alone[result.id] is turns[1].image
        is_crop = turns[1].image is not turns[0].image
        assert is_crop == (result.id in GREEDY_BOX)


def test_greedy_turns_are_greedy_and_sampled_ones_are_not(scripted, questions):
    evaluate(scripted, questions, PROTOCOL, TurnLimits(24, 6))
    assert scripted.batches == [(6, 24, 0.0), (6, 6, 0.0), (6, 6, 0.0), (6, 24, 1.0)]


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_neither_order_nor_batches_matter(scripted, questions, batch_size):
    straight = evaluate(scripted, questions, PROTOCOL, batch_size=50)
    backwards = evaluate(scripted, reversed(questions), PROTOCOL, batch_size=batch_size)
    assert backwards[::-1] == straight


def test_direct_asks_once(scripted, questions):
    results = evaluate(scripted, questions, Protocol(method=Method.DIRECT, budget=BUDGET))
    assert [result.correct for result in results] == list(RIGHT_ALONE.values())
    assert {(r.crop_only_correct, r.valid_box, r.hit) for r in results} == {(None, None, None)}
    row = summarise(results, PROTOCOL)
    assert row["valid_box_rate"] is None and row["hit_rate"] is None and row["crop_only_accuracy"] is None


def test_questions_without_gold_boxes_count_for_no_hit_rate(scripted, questions):
    bare = [Question(q.image, q.question, q.choices, q.answer, (), q.category, q.id) for q in questions[:3]]
    results = evaluate(scripted, [*bare, *questions[3:]], PROTOCOL)
    assert [result.hit for result in results] == [None, None, None, False, False, False]
    assert summarise(results, PROTOCOL)["hit_rate"] == 0


def test_a_real_policy_gives_the_same_results_twice(random_tiny, questions):
    policy = LocalPolicy.load(str(random_tiny))
    runs = []
    for state in (1, 2):  # what ran before does not matter
        torch.manual_seed(state)
        runs.append(evaluate(policy, questions[:2], PROTOCOL, TurnLimits(8, 6), seed=3, keep_episodes=2))
    assert runs[0] == runs[1]
    assert all(result.episode.end is not None for result in runs[0])


def test_a_single_turn_policy_is_cropped_for_crop_only(processor, questions):
    class Single(Scripted):
        def _one(self, conversation, temperature):
            text = self.tokens.tokenizer.decode(conversation.ids)
            if "First give the box" not in text:
                return super()._one(conversation, temperature)
            said = box(WIDE) + "\n\\boxed{A}"
            return Said(self.tokens.tokenizer(said)["input_ids"], said, True)

    policy = Single(processor, questions)
    results = evaluate(policy, questions[:2], Protocol(method=Method.GRPO, budget=BUDGET), keep_episodes=2)
    assert [r.correct for r in results] == [True, False] and [r.valid_box for r in results] == [True, True]
    for result in results:
        region = result.episode.first_grounding.box_px_original
        aspect = (region[2] - region[0]) / (region[3] - region[1])
        shown = policy.alone[result.id]
        assert shown.width / shown.height == pytest.approx(aspect, rel=0.35) and aspect > 1.5


def test_wilson_by_hand():
    low, high = wilson(5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_summarise_by_hand():
    def result(correct, alone, valid, hit, category, chance):
        return Result("", category, correct, alone, valid, hit, chance)

    row = summarise(
        [
            result(True, True, True, True, "a", 0.25),
            result(True, False, True, None, "a", 0.25),
            result(False, False, False, False, "b", 0.5),
            result(False, None, True, False, "a", 0.0),
        ],
        PROTOCOL,
    )
    assert row["accuracy"] == 0.5 and row["chance"] == 0.25
    assert row["crop_only_accuracy"] == pytest.approx(1 / 3)
    assert row["valid_box_rate"] == 0.75 and row["hit_rate"] == pytest.approx(1 / 3)
    assert row["by_category"] == {"a": pytest.approx(2 / 3), "b": 0.0}


def test_adaptive_that_answers_at_once_is_measured(processor, questions):
    class AtOnce(Scripted):
        def _one(self, conversation, temperature):
            said = "\\boxed{A}"
            return Said(self.tokens.tokenizer(said)["input_ids"] + [self.tokens.turn_end_id], said, False)

    results = evaluate(AtOnce(processor, questions), questions[:4], Protocol(method=Method.ADAPTIVE, budget=BUDGET))
    assert [r.correct for r in results] == [True, False, False, False] == [r.crop_only_correct for r in results]


def test_adaptive_counts_what_was_answered_at_once():
    """Four questions: two looked, one of them with a valid box that hits; one was answered at once; one has no gold box."""
    gold = [[0, 0, 9, 9]]
    records = [
        {"valid_box": True, "hit": True, "gold_boxes": gold},
        {"valid_box": False, "hit": False, "gold_boxes": gold},
        {"valid_box": None, "hit": None, "gold_boxes": gold},
        {"valid_box": None, "hit": None, "gold_boxes": []},
    ]
    assert adaptive_shares(records) == {
        "looked, of all questions": 0.5,
        "valid box, of those that looked": 0.5, "valid box, of all questions": 0.25,
        "hit, of those that looked": 0.5, "hit, of all questions": pytest.approx(1 / 3),
    }  # fmt: skip
    none = [record | {"valid_box": None, "hit": None} for record in records]
    assert adaptive_shares(none) == {
        "looked, of all questions": 0.0, "valid box, of all questions": 0.0, "hit, of all questions": 0.0,
    }  # fmt: skip


def test_adaptive_shares_are_in_the_row(tmp_path):
    from rich.console import Console

    from mgpo.evaluation import run as evaluation_run

    folder = tmp_path / "out"
    asked = evaluation_run.EvaluationRequest("mgpo-tiny", ("needle",), folder, n=3, protocol="adaptive", batch_size=3)
    [row] = evaluation_run.run_evaluation(asked, Console(quiet=True))
    assert "looked, of all questions" in row["figures"] and "valid box, of all questions" in row["figures"]

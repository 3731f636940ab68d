"""What the shipped base is before any training: it has every skill, and MGPO's dialogue does not join them up yet."""

import pytest

from mgpo.policies.local import LocalPolicy
from mgpo.tiny.measure import ban_gains, measure

QUESTIONS, BANNED, SEED = 300, 120, 4_321


@pytest.fixture(scope="module")
def policy():
    return LocalPolicy.load("mgpo-tiny", dtype="float32")


@pytest.fixture(scope="module")
def shares(policy):
    return measure(policy, QUESTIONS, SEED)


def test_in_mgpo_s_opening_it_boxes_some_sign(shares):
    """A valid box in 0.4 to 0.8 of the sampled turns; on the right sign in 0.2 to 0.45 of them, sampled and greedy."""
    assert 0.4 <= shares["opening, sampled: valid box"] <= 0.8
    assert 0.20 <= shares["opening, sampled: right sign, given a valid box"] <= 0.45
    assert 0.20 <= shares["opening, greedy: right sign, given a valid box"] <= 0.45


def test_it_has_every_skill_by_itself(shares):
    assert shares["plain grounding by colour"] > 0.75 and shares["plain grounding by place"] > 0.6
    assert shares["reading a gold crop"] > 0.85 and shares["overview questions"] > 0.75


def test_it_cannot_read_fine_print_in_the_overview(shares):
    assert abs(shares["guess fine print from overview"] - 0.25) < 0.07


def test_no_single_token_stands_between_it_and_the_answer(policy):
    """Of the 30 likeliest first tokens, no ban lifts its greedy accuracy by more than 8 points."""
    gains = ban_gains(policy, BANNED, SEED)
    assert len(gains) >= 20 and max(gains.values()) <= 0.08, gains

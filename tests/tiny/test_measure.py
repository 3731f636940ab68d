"""What the model card says is measured: bans of single tokens."""

import pytest

from mgpo.method.episode import Episode
from mgpo.method.protocol import Protocol
from mgpo.policies.loading import budget_of
from mgpo.policies.local import LocalPolicy
from mgpo.policies.turn_loop import run_episodes
from mgpo.tiny.measure import LIMITS, _right, _run_without, ban_gains, likeliest_first_tokens
from mgpo.worlds.needle import make_question
from mgpo.worlds.render import render

QUESTIONS, SEED = 10, 77


@pytest.fixture(scope="module")
def policy():
    return LocalPolicy.load("mgpo-tiny", dtype="float32")


def asked(policy):
    protocol = Protocol(budget=budget_of(policy.processor))
    drawn = [make_question("test", SEED, index) for index in range(QUESTIONS)]
    return [Episode(question, render(scene), protocol) for question, scene in drawn]


def test_gains_are_those_of_asking_everything_again(policy):
    """Turns that do not hold the token are not run again; running them gives the same."""
    plain = asked(policy)
    run_episodes(policy, plain, LIMITS)
    gains = ban_gains(policy, QUESTIONS, SEED)
    tokens = likeliest_first_tokens(policy, plain)
    assert len(tokens) == 30 and len(gains) >= 20
    for token in tokens[:2]:
        again = asked(policy)
        _run_without(policy, again, token)
        assert all(token not in policy.tokens.tokenizer(e.model_turns[0].text)["input_ids"][:1] for e in again)
        gain = sum(map(_right, again)) - sum(map(_right, plain))
        assert gains[policy.tokens.tokenizer.decode([token])] == pytest.approx(gain / QUESTIONS)


def test_what_is_banned_already_is_no_first_token(policy):
    episodes = asked(policy)[:2]
    for episode in episodes:
        episode.opening()
    assert not set(likeliest_first_tokens(policy, episodes)) & set(policy.tokens.banned_ids())

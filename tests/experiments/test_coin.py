"""The reward of chance: fair, and seeded by Python's generator."""

import random

from mgpo.experiments.coin import coin


def test_the_coin_is_fair_and_follows_the_seed():
    random.seed(3)
    thrown = coin(["same"] * 4_000, answer=["B"] * 4_000)
    assert set(thrown) == {0.0, 1.0} and abs(sum(thrown) / 4_000 - 0.5) < 0.04
    random.seed(3)
    assert coin(["same"] * 4_000) == thrown

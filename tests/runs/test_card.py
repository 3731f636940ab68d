"""The card of a trained model says what it was rewarded for, and no more."""

from mgpo.runs.card import REWARD, model_card


def test_only_a_run_with_rewards_speaks_of_them():
    cards = {method: model_card("it", "base", method) for method in ("mgpo", "grpo", "direct", "sft")}
    assert {method for method, card in cards.items() if REWARD in card} == {"mgpo", "grpo", "direct"}
    assert "then answers, with [mgpo](https://arxiv.org/abs/2507.05920). The only reward" in cards["mgpo"]
    assert "reward" not in cards["sft"]


def test_further_rewards_are_named():
    card = model_card("it", "base", "mgpo", ["mine.brevity"])
    assert REWARD not in card and "Rewards: the right answer; mine.brevity." in card

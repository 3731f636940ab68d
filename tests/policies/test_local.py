"""The local policy: a batch says what each conversation would say alone, and never a vision token."""

import pytest
import torch
from PIL import Image
from support import SIZES

from mgpo.method.episode import Episode
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question
from mgpo.policies.local import Conversation, LocalPolicy
from mgpo.policies.turn_loop import TurnLimits, run_episodes
from mgpo.tiny.views import BUDGET


@pytest.fixture(scope="module")
def policy(loud_tiny):
    return LocalPolicy.load(str(loud_tiny))


def conversations(policy):
    """Five of different lengths, with one or two images of different sizes."""
    out = []
    for i, size in enumerate(SIZES[:5]):
        noise = Image.effect_noise(size, 80).convert("RGB")
        question = Question(None, "Which letter is on the " + "very " * 3 * i + "red sign?", ("H", "K", "L"), "A")
        episode = Episode(question, noise, Protocol(budget=BUDGET))
        turn = episode.opening()
        ids, images = policy.tokens.opening(turn), [turn.image]
        if i % 2:
            reply = episode.reply("No box.")
            ids += policy.tokens.tokenizer("No box.")["input_ids"] + policy.tokens.reply(reply, closed=False)
            images.append(reply.image)
        out.append(Conversation(ids, images))
    return out


def test_a_batch_says_what_each_conversation_says_alone(policy):
    talks = conversations(policy)
    assert len({len(talk.ids) for talk in talks}) > 2
    together = policy.say(talks, 12)
    alone = [policy.say([talk], 12)[0] for talk in talks]
    assert [said.ids for said in together] == [said.ids for said in alone]
    assert len({tuple(said.ids) for said in together}) > 1, "the policy ignores its input: the test proves nothing"
    assert policy.say(talks[::-1], 12)[::-1] == together


def test_a_turn_that_was_begun_goes_on_as_the_model_s_own(policy):
    """Begun with the model's own first words, a turn ends as it would have; the limit counts all of it."""
    talks = conversations(policy)
    for talk, whole in zip(talks, policy.say(talks, 12)):
        begun = policy.tokens.tokenizer.decode(whole.ids[:3])
        if policy.tokens.tokenizer(begun, add_special_tokens=False)["input_ids"] != whole.ids[:3]:
            continue  # another way to cut the same words
        [said] = policy.go_on([talk], begun, 12)
        assert said.ids == whole.ids and said.truncated == whole.truncated and said.text == whole.text
        break
    else:
        raise AssertionError("no turn could be begun: the test proves nothing")


def test_saying_changes_no_conversation(policy):
    talks = conversations(policy)
    before = [(list(talk.ids), list(talk.images)) for talk in talks]
    policy.say(talks, 4)
    assert [(talk.ids, talk.images) for talk in talks] == before


def biased(policy, token, by=1e4):
    def bias(_module, _inputs, logits):
        logits = logits.clone()
        logits[..., token] += by
        return logits

    return policy.model.lm_head.register_forward_hook(bias)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_tokens_are_never_said(policy, temperature):
    talks = conversations(policy)
    for token in policy.tokens.banned_ids():
        hook = biased(policy, token)
        try:
            said = policy.say(talks[:2], 4, temperature)
        finally:
            hook.remove()
        assert not {i for turn in said for i in turn.ids} & set(policy.tokens.banned_ids())


def test_the_end_of_a_turn_is_kept_and_cut_off_turns_are_marked(policy):
    hook = biased(policy, policy.tokens.turn_end_id)
    try:
        (ended,) = policy.say(conversations(policy)[:1], 4)
    finally:
        hook.remove()
    assert ended.ids == [policy.tokens.turn_end_id] and ended.text == "" and not ended.truncated
    letter = policy.tokens.tokenizer.convert_tokens_to_ids("A")
    hook = biased(policy, letter)
    try:
        (cut,) = policy.say(conversations(policy)[:1], 4)
    finally:
        hook.remove()
    assert cut.ids == [letter] * 4 and cut.text == "AAAA" and cut.truncated


def test_sampling_is_reproducible_and_samples(policy):
    talks = conversations(policy)

    def sampled(seed):
        torch.manual_seed(seed)
        return [said.ids for said in policy.say(talks, 8, temperature=5.0)]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    torch.manual_seed(1)
    greedy = policy.say(talks, 8)
    torch.manual_seed(2)
    assert policy.say(talks, 8) == greedy


def test_a_missing_image_is_refused_by_row(policy):
    talks = conversations(policy)
    talks[1].images.pop()
    with pytest.raises(RuntimeError, match="row 1 of the batch"):
        policy.say(talks, 4)


def test_going_on_from_an_earlier_turn_says_what_reading_it_all_again_says(policy, rows):
    """Through three turns, with boxes that are rejected and so show the overview again; the shipped model names some."""
    shipped = LocalPolicy.load("mgpo-tiny")
    for who, count in ((policy, 4), (shipped, 6)):
        said = []
        for shared in (who._shared, None):
            who._shared, kept = shared, who._shared
            episodes = [
                Episode(Question.from_row(row), row["image"], Protocol(max_turns=3, budget=BUDGET))
                for row in rows[:count]
            ]
            run_episodes(who, episodes, TurnLimits(28, 12))
            who._shared = kept
            said.append([[turn.text for turn in episode.model_turns] for episode in episodes])
        assert said[0] == said[1] and who._shared is not None
        assert len({str(turns) for turns in said[0]}) > 1

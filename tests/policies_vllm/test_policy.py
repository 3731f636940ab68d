"""vLLM in this process, against transformers: the same tokens and the same log-probabilities."""

import numpy as np
import pytest
import torch
from cpu import SETTINGS
from PIL import Image

from mgpo.asking.grounded import GroundedVQA
from mgpo.method.episode import UserTurn
from mgpo.method.protocol import Protocol
from mgpo.policies.local import Conversation, LocalPolicy
from mgpo.policies.turn_loop import TurnLimits
from mgpo.policies.vllm_engine import banned_words, check_prompts, one_placeholder
from mgpo.policies.vllm_policy import VLLMPolicy
from mgpo.tiny.views import BUDGET
from mgpo.worlds.needle import needle_rows

SIZES = [(168, 168), (112, 252), (252, 112), (140, 196), (56, 448)]


@pytest.fixture(scope="module")
def policies():
    here, there = LocalPolicy.load("mgpo-tiny", dtype="float32"), VLLMPolicy("mgpo-tiny", **SETTINGS)
    for policy in (here, there):
        policy.set_budget(BUDGET)
    return here, there


def picture(size, seed=0):
    """Soft colours, as photographs have."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def conversation(policy, sizes):
    made = policy.open(UserTurn("Which letter is on the red sign?", (picture(sizes[0]),)))
    for number, size in enumerate(sizes[1:], 1):
        image = picture(size, number)
        made.ids += policy.tokens.reply(UserTurn("And here?", (image,)), closed=False)
        made.images.append(image)
    return made


def recomputed(policy, made, sampled, banned=()):
    """Log-probabilities of sampled ids, by one forward pass of transformers; over all tokens but the banned ones."""
    ids = torch.tensor([made.ids + sampled])
    kinds = (ids == policy.tokens.image_token_id).int()
    logits = policy.model(input_ids=ids, mm_token_type_ids=kinds, **policy.tokens.pixels(made.images)).logits
    logits[..., list(banned)] = -torch.inf
    table = logits[0, len(made.ids) - 1 : -1].log_softmax(-1)
    return table.gather(1, torch.tensor(sampled)[:, None])[:, 0]


@pytest.mark.parametrize("sizes", [[s] for s in SIZES] + [[SIZES[0], SIZES[1]], [SIZES[3], SIZES[4]]])
def test_log_probabilities_are_those_of_transformers(policies, sizes):
    import vllm

    here, there = policies
    made = conversation(here, sizes)
    prompt = {
        "prompt_token_ids": one_placeholder(made.ids, here.tokens.image_token_id),
        "multi_modal_data": {"image": made.images},
    }
    sampling = vllm.SamplingParams(
        temperature=1.0, max_tokens=12, logprobs=0, seed=3, bad_words=banned_words(here.tokens)
    )
    (out,) = there.llm.generate([prompt], sampling, use_tqdm=False)
    assert list(out.prompt_token_ids) == made.ids
    said = out.outputs[0]
    theirs = torch.tensor([entry[token].logprob for entry, token in zip(said.logprobs, said.token_ids)])
    raw = conversation(here, sizes)
    with torch.no_grad():
        ours = recomputed(here, raw, list(said.token_ids))
    assert (theirs - ours).abs().max() < 1e-4


def test_both_turns_are_greedily_the_same(policies):
    limits, protocol = TurnLimits(28, 12), Protocol(budget=BUDGET)
    asked = [(row["image"], row["question"], row["choices"]) for row in needle_rows("test", 11, 8)]
    one, other = (GroundedVQA(policy, protocol, limits).ask_many(asked) for policy in policies)
    assert [[t.text for t in a.turns] for a in one] == [[t.text for t in a.turns] for a in other]
    statuses = {a.turns[0].status for a in one}
    assert "valid" in statuses and len(statuses) > 1, "valid and invalid boxes are mixed"


def test_several_images_are_one_prompt(policies):
    """A prompt of three numbered images: vLLM reads the ids that we wrote, and says what transformers says."""
    said = []
    for policy in policies:
        vqa = GroundedVQA(policy, Protocol(budget=BUDGET), TurnLimits(24, 8))
        said.append(
            [turn.text for turn in vqa.ask([picture(size, n) for n, size in enumerate(SIZES[:3])], "Which?").turns]
        )
    assert said[0] == said[1] and len(said[0]) == 2


def test_turn_two_finds_turn_one_in_the_prefix_cache(policies):
    _, there = policies
    made = conversation(there, [(168, 168)])
    (said,) = there.say([made], 8)
    there.follow(made, said, UserTurn("And here?", (picture((112, 140), 5),)))
    prompt = {
        "prompt_token_ids": one_placeholder(made.ids, there.tokens.image_token_id),
        "multi_modal_data": {"image": made.images},
    }
    (out,) = there.llm.generate([prompt], there._vllm.SamplingParams(max_tokens=1), use_tqdm=False)
    assert out.num_cached_tokens >= 32


def test_a_prompt_that_vllm_reads_differently_is_refused(policies):
    _, there = policies
    made = conversation(there, [(168, 168)])
    doubled = Conversation(list(made.ids), list(made.images))
    at = doubled.ids.index(there.tokens.image_token_id)
    doubled.ids.insert(at, there.tokens.image_token_id)
    with pytest.raises(RuntimeError, match="prompt differs from ours in row 0"):
        there.say([doubled], 2)
    with pytest.raises(RuntimeError, match="reports 1 prompts, but 2 were sent"):
        check_prompts([[1]], [[1], [2]])

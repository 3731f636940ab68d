"""Rollouts from a real `vllm serve` on loopback: what is sampled there is what transformers says here.

TRL pushes weights by NCCL, which needs GPUs; in the trainings of this file a file carries them (`cpu.push_by_file`).
"""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from cpu import push_by_file, served
from support import make_trainer
from test_policy import conversation, recomputed
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from mgpo.jsonl import read_jsonl
from mgpo.method.episode import UserTurn
from mgpo.policies.local import LocalPolicy
from mgpo.policies.names import resolve
from mgpo.policies.vllm_engine import VLLMEngine, banned_words
from mgpo.tiny.views import BUDGET
from mgpo.worlds.needle import needle_rows


@pytest.fixture(scope="module")
def server():
    with served(resolve("mgpo-tiny")) as url:
        yield url


@pytest.fixture
def here():
    policy = LocalPolicy.load("mgpo-tiny", dtype="float32")
    policy.set_budget(BUDGET)
    return policy


def rollout(url, here, seconds=120.0, **sampling):
    """TRL's generation in server mode, without the group that would push weights."""
    generation = VLLMGeneration.__new__(VLLMGeneration)
    vars(generation).update(
        mode="server", accelerator=Accelerator(cpu=True), processing_class=here.processor, structured_outputs_regex=None,
        vllm_client=VLLMClient(base_url=url, connection_timeout=30), enable_sleep_mode=False, temperature=1.0, top_p=1.0,
        top_k=0, min_p=0.0, repetition_penalty=1.0, logprobs=0, max_completion_length=0,
        generation_kwargs={"bad_words": banned_words(here.tokens), "seed": 5},
    )  # fmt: skip
    vars(generation).update(sampling)
    return VLLMEngine(generation, here.tokens, tower_changes=True, seconds=seconds)


def test_both_turns_and_their_log_probabilities(server, here):
    speaker = rollout(server, here)
    made = [conversation(here, [(168, 168)]), conversation(here, [(112, 252)])]
    twice = [c for c in made for _ in range(2)]
    said, logprobs = speaker.speak([c.ids for c in twice], [c.images for c in twice], 10, 2)
    assert len(said) == 4
    check(here, twice, said, logprobs)
    second = []
    for kept, ids in zip(twice, said):
        turn = UserTurn("And here?", (kept.images[0].resize((140, 196)),))
        grown = SimpleNamespace(ids=kept.ids + ids + here.tokens.reply(turn, closed=ids[-1] == here.tokens.turn_end_id),
                                images=[*kept.images, turn.image])  # fmt: skip
        second.append(grown)
    said, logprobs = speaker.speak([c.ids for c in second], [c.images for c in second], 6, 1)
    check(here, second, said, logprobs)


def check(here, conversations, said, logprobs):
    for kept, ids, theirs in zip(conversations, said, logprobs):
        with torch.no_grad():
            ours = recomputed(here, kept, ids, here.tokens.banned_ids())
        assert (torch.tensor(theirs) - ours).abs().max() < 1e-4


def test_a_server_with_another_budget_is_told_how_to_start(server, here):
    speaker = rollout(server, here)
    image = (
        conversation(here, [(168, 168)]).images[0].resize((336, 336))
    )  # over the checkpoint's budget, which the server has
    ids = here.tokens.opening(UserTurn("?", (image,)))
    with pytest.raises(RuntimeError, match="--mm-processor-kwargs"):
        speaker.speak([ids], [[image]], 4, 1)


def test_calls_are_limited_and_carry_the_servers_words(server, here):
    made = conversation(here, [(168, 168)])
    with pytest.raises(ConnectionError, match="timed out|Timeout"):
        rollout(server, here, seconds=0.001).speak([made.ids], [made.images], 4, 1)
    with pytest.raises(ConnectionError, match="temperature"):
        rollout(server, here, temperature=-1.0).speak([made.ids], [made.images], 4, 1)


TRAINED = {
    "use_vllm": True, "vllm_mode": "server", "max_grounding_tokens": 28, "max_answer_tokens": 12, "max_reply_tokens": 200,
    "num_generations": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-4, "max_steps": 4,
    "extra_reward_funcs": ["support.even_ids"], "reward_weights": [0.0, 1.0], "freeze_vision_tower": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def taking_weights():
    with served(resolve("mgpo-tiny"), "--weight-transfer-config", '{"backend": "file"}') as url:
        yield url


@pytest.mark.parametrize("ahead", [False, True])
def test_a_training_on_a_server_samples_with_its_own_weights_or_those_of_one_step_before(
    taking_weights, monkeypatch, tmp_path, ahead
):
    push_by_file(monkeypatch.setattr)
    rows = list(needle_rows("train", 8, 8))
    trainer = make_trainer(
        "mgpo-tiny", tmp_path, rows, **TRAINED, vllm_server_base_url=taking_weights, rollouts_ahead=ahead
    )
    trainer.train()
    steps = [line for line in read_jsonl(tmp_path / "metrics.jsonl")[0] if "loss" in line]
    apart = [step["sampling/turn_1_logp_difference"] for step in steps]
    assert len(steps) == 4 and all(step["grad_norm"] > 0 for step in steps)
    assert apart[0] < 1e-3 and (min(apart[1:]) > 1e-3 if ahead else max(apart) < 1e-3)

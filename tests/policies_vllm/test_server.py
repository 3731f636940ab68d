"""Rollouts from a real `vllm serve` on loopback: what is sampled there is what transformers says here.

Pushing weights needs NCCL and cannot run here; everything else of server mode does.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from test_policy import conversation, recomputed
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from mgpo.method.episode import UserTurn
from mgpo.policies.loading import resolve
from mgpo.policies.local import LocalPolicy
from mgpo.policies.vllm_engine import VLLMEngine, banned_words
from mgpo.tiny.views import BUDGET


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve("mgpo-tiny"), "--host", "127.0.0.1", "--port",
        str(port), "--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "2048",
        "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--enable-scale-out",
    ]  # fmt: skip
    log = (tmp_path_factory.mktemp("server") / "log.txt").open("w+")
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(url + "/health", timeout=1).close()
            break
        except OSError:
            if process.poll() is not None:
                log.seek(0)
                raise AssertionError(log.read()[-3000:]) from None
            time.sleep(0.5)
    yield url
    process.terminate()
    process.wait(30)


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

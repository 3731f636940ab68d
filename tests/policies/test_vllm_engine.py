"""What can be shown without vLLM: ids, the engine's sleep, what is forgotten after an update, and server calls."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import settings

from mgpo.images.imaging import PixelBudget
from mgpo.method.protocol import Protocol
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.vllm_engine import VLLMEngine, banned_words, limit_calls, one_placeholder
from mgpo.training.vllm_sampling import turn_masks

IMAGE = 9


@given(
    st.lists(st.integers(1, 8) | st.integers(20, 24), max_size=30), st.lists(st.integers(1, 40), min_size=1, max_size=4)
)
def test_one_placeholder_stands_for_each_image(text, sizes):
    ids, expected = list(text), list(text)
    for size in sizes:  # delimiters stand around each image, as in every chat template
        ids += [7, *[IMAGE] * size, 8]
        expected += [7, IMAGE, 8]
    assert one_placeholder(ids, IMAGE) == expected


class Engine:
    """Writes down what TRL's backend and vLLM are told."""

    def __init__(self, **changes):
        self.told = []
        self.mode, self.enable_sleep_mode, self._llm_weights_sleeping = "colocate", True, True
        engine = SimpleNamespace(reset_encoder_cache=lambda: self.told.append("forget images"))
        self.llm = SimpleNamespace(
            wake_up=lambda tags: self.told.append(f"wake {tags[0]}"), sleep=lambda level: self.told.append(f"sleep {level}"),
            llm_engine=engine,
        )  # fmt: skip
        vars(self).update(changes)

    def sync_weights(self):
        self.told.append("push")
        self._llm_weights_sleeping = False

    def generate(self, prompts, images, n):
        self.told.append("speak" if not self.enable_sleep_mode else "speak and sleep")
        return prompts, [[1]] * len(prompts), [[[-0.5]]] * len(prompts), None


def test_the_engine_is_awake_for_a_whole_episode():
    engine = Engine()
    speaker = VLLMEngine(engine, SimpleNamespace(image_token_id=IMAGE), True, 1.0)
    with speaker.awake():
        assert speaker.speak([[1, 2]], [[]], 5, 1) == ([[1]], [[-0.5]]) and engine.max_completion_length == 5
        speaker.speak([[1, 2, 1]], [[]], 6, 1)
    assert engine.told == ["push", "forget images", "wake kv_cache", "speak", "speak", "sleep 2"]
    assert engine.enable_sleep_mode and engine._llm_weights_sleeping
    with pytest.raises(KeyError), speaker.awake():
        raise KeyError
    assert engine.told[-1] == "sleep 2" and engine.enable_sleep_mode, "it sleeps after an error, too"


def test_a_log_probability_that_is_not_finite_arrives_as_nan():
    """TRL hands it over as None, which ended the run with a TypeError; NaN skips the step (tests/runs/test_finite.py)."""
    engine = Engine(generate=lambda prompts, images, n: (prompts, [[1, 2]], [[[None], [-0.5]]], None))
    speaker = VLLMEngine(engine, SimpleNamespace(image_token_id=IMAGE), True, 1.0)
    _, [logprobs] = speaker.speak([[1, 2]], [[]], 5, 1)
    assert math.isnan(logprobs[0]) and logprobs[1] == -0.5


def test_a_greedy_turn_leaves_the_temperature_as_it_was():
    seen = []
    engine = Engine(temperature=0.7)
    said = engine.generate
    engine.generate = lambda *args: seen.append(engine.temperature) or said(*args)
    speaker = VLLMEngine(engine, SimpleNamespace(image_token_id=IMAGE), True, 1.0)
    speaker.speak([[1, 2]], [[]], 5, 1, greedy=True)
    speaker.speak([[1, 2]], [[]], 5, 1)
    assert seen == [0.0, 0.7]


def test_embeddings_of_a_frozen_tower_are_kept():
    engine = Engine(enable_sleep_mode=False)
    VLLMEngine(engine, None, False, 1.0).sync()
    assert engine.told == ["push"]


class Client:
    base_url = "http://server:1"

    def __init__(self, status):
        self.session = SimpleNamespace(post=lambda url: SimpleNamespace(status_code=status), send=None)

    def image_features(self, images):
        return [{"mm_placeholders": {"image": [{"length": 24}]}} for _ in images]


def test_a_server_that_cannot_forget_is_told_how_to_start(processor):
    engine = Engine(mode="server", vllm_client=Client(404))
    with pytest.raises(RuntimeError, match="VLLM_SERVER_DEV_MODE=1, or set freeze_vision_tower"):
        VLLMEngine(engine, TurnTokens(processor), True, 1.0).sync()
    VLLMEngine(engine, TurnTokens(processor), False, 1.0).sync()

    def refused():
        raise Exception("Request failed: 500, out of memory")

    engine.sync_weights = refused
    with pytest.raises(ConnectionError, match="weights were pushed: Request failed: 500, out of memory"):
        VLLMEngine(engine, TurnTokens(processor), True, 1.0).sync()


def test_every_call_of_a_session_is_limited():
    seen = []
    session = SimpleNamespace(send=lambda request, **kwargs: seen.append(kwargs["timeout"]))
    limit_calls(session, 7.0)
    session.send("a")
    session.send("b", timeout=2)
    session.send("c", timeout=None)
    assert seen == [7.0, 2, 7.0]


def test_turns_are_told_apart_and_none_is_left_out():
    said = torch.tensor([[1, 1, 0, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0, 0]])
    first, second, third, fourth = turn_masks(said, 4)
    assert first.tolist() == [[1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0]]
    assert second.tolist() == [[0, 0, 0, 0, 1, 0, 0], [0] * 7] and third[0].tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert not fourth.any() and (first + second + third).equal(said)


def test_an_episode_that_vllm_cannot_hold_is_refused(tmp_path):
    args = settings(tmp_path, use_vllm=True, vllm_mode="colocate", vllm_max_model_length=300)
    with pytest.raises(ValueError, match="vllm_max_model_length=300 cannot hold the longest episode of 4"):
        args.check_vllm_length(Protocol(budget=PixelBudget(20 * 784, 36 * 784)))


def test_what_is_banned_is_named(processor):
    assert "<|image_pad|>" in banned_words(TurnTokens(processor)) and "<|im_end|>" not in banned_words(
        TurnTokens(processor)
    )

"""The two turns through an OpenAI-compatible server: the same answers as in this process."""

import socket

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")
from plain_chat import chat_app, serving  # noqa: E402

from mgpo.asking.grounded import GroundedVQA  # noqa: E402
from mgpo.asking.settings import load_policy  # noqa: E402
from mgpo.method.protocol import Protocol  # noqa: E402
from mgpo.policies.endpoint import EndpointPolicy  # noqa: E402
from mgpo.policies.local import LocalPolicy  # noqa: E402
from mgpo.policies.turn_loop import TurnLimits  # noqa: E402
from mgpo.tiny.views import BUDGET  # noqa: E402


@pytest.fixture(scope="module")
def plain_server(random_tiny):
    """A model behind plain chat completions, as `vllm serve` is: it knows nothing of turns or boxes."""
    policy, seen = LocalPolicy.load(str(random_tiny)), []
    policy.set_budget(BUDGET)
    with serving(chat_app(policy, seen)) as url:
        yield url, seen


def test_the_first_turn_is_the_one_in_process_and_the_second_follows(plain_server, random_tiny, rows):
    url, seen = plain_server
    limits, protocol = TurnLimits(6, 5), Protocol(budget=BUDGET)
    here = GroundedVQA(LocalPolicy.load(str(random_tiny)), protocol, limits)
    there = GroundedVQA(EndpointPolicy(url, "tiny", BUDGET), protocol, limits)
    asked = [(row["image"], row["question"], row["choices"]) for row in rows[:3]]
    one, other = here.ask_many(asked), there.ask_many(asked)
    for a, b in zip(one, other):
        assert a.turns[0].text == b.turns[0].text and a.turns[0].truncated == b.turns[0].truncated
        assert len(b.turns) == 2
    first, last = seen[0], seen[-1]
    assert [m["role"] for m in last["messages"]] == ["user", "assistant", "user"]
    assert first["max_tokens"] == 6 and last["max_tokens"] == 5 and first["temperature"] == 0


def test_several_images_are_numbered_in_the_message(plain_server, random_tiny, rows):
    url, seen = plain_server
    limits, protocol = TurnLimits(6, 5), Protocol(budget=BUDGET)
    here = GroundedVQA(LocalPolicy.load(str(random_tiny)), protocol, limits)
    there = GroundedVQA(EndpointPolicy(url, "tiny", BUDGET), protocol, limits)
    images = [row["image"] for row in rows[:2]]
    before = len(seen)
    assert [turn.text for turn in here.ask(images, "Which?").turns][0] == there.ask(images, "Which?").turns[0].text
    parts = seen[before]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "text"]
    assert [part["text"] for part in parts[:4:2]] == ["Image 1: ", "\nImage 2: "]


def test_a_refusal_carries_the_servers_own_words(plain_server, rows):
    url, _ = plain_server
    vqa = GroundedVQA(EndpointPolicy(url, "other", BUDGET), Protocol(budget=BUDGET))
    with pytest.raises(ConnectionError, match="no such model"):
        vqa.ask(rows[0]["image"], "?")


def test_a_server_that_does_not_run_is_named_and_asked_about(rows):
    with pytest.raises(ConnectionError) as none:
        GroundedVQA(EndpointPolicy("http://127.0.0.1:9/v1", "x", BUDGET), Protocol(budget=BUDGET)).ask(
            rows[0]["image"], "?"
        )
    told = str(none.value)
    assert told.startswith("The endpoint http://127.0.0.1:9/v1/ cannot be reached (")
    assert "refused" in told and "Does a server run at this address?" in told


def test_a_server_that_is_too_slow_is_not_taken_for_one_that_does_not_run():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        policy = EndpointPolicy(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "x", BUDGET)
        policy._client = policy._client.with_options(timeout=0.2, max_retries=0)
        with pytest.raises(ConnectionError, match=r"127.0.0.1:\d+/v1/ did not answer within 0.2 seconds"):
            policy.say([[{"role": "user", "content": "?"}]], 4)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine 'x' is unknown"):
        load_policy("mgpo-tiny", "x")


def test_mgpo_serve_is_no_endpoint(rows):
    """It runs the turns itself: an evaluation through it would score its own answers as the model's."""
    import fastapi
    from plain_chat import completion

    app = fastapi.FastAPI()
    app.post("/v1/chat/completions")(lambda: completion("B") | {"mgpo": {"turns": []}})
    with serving(app) as url, pytest.raises(ValueError, match="is mgpo serve, which runs all turns"):
        policy = EndpointPolicy(url, "tiny", BUDGET)
        policy.say([[{"role": "user", "content": "?"}]], 4)

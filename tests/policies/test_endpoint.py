"""The two turns through an OpenAI-compatible server: the same answers as in this process."""

import base64
import io
import socket

import pytest
from PIL import Image

pytest.importorskip("openai")
pytest.importorskip("fastapi")
import fastapi  # noqa: E402
from plain_chat import answering, chat_app, completion, serving  # noqa: E402

from mgpo.asking.grounded import GroundedVQA  # noqa: E402
from mgpo.asking.settings import load_policy, protocol_for  # noqa: E402
from mgpo.method.episode import UserTurn  # noqa: E402
from mgpo.method.protocol import Protocol  # noqa: E402
from mgpo.policies.client import Refused  # noqa: E402
from mgpo.policies.endpoint import EndpointPolicy, user_message  # noqa: E402
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
    app = fastapi.FastAPI()
    app.post("/v1/chat/completions")(lambda: completion("B") | {"mgpo": {"turns": []}})
    with serving(app) as url, pytest.raises(ValueError, match="is mgpo serve, which runs all turns"):
        policy = EndpointPolicy(url, "tiny", BUDGET)
        policy.say([[{"role": "user", "content": "?"}]], 4)


def pixels_of(body):
    """Pixels of the first image in a request; 0 without one."""
    part = next((p for p in body["messages"][0]["content"] if "image_url" in p), None)
    if part is None:
        return 0
    with Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1]))) as image:
        return image.width * image.height


def counted(least, most, unit=784):
    """Chat completions of a server that brings images to its own limits and counts their tokens."""

    def complete(body):
        shown = min(max(sent, least), most) if (sent := pixels_of(body)) else 0
        return completion("x") | {
            "usage": {"prompt_tokens": 9 + shown // unit, "completion_tokens": 1, "total_tokens": 0}
        }

    return complete


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refused access .*no key, since there is none in the environment variable MGPO_ENDPOINT_KEY"),
    ],
)
def test_a_missing_key_is_said_before_any_question(status, message):
    with serving(answering([], None, status)) as url, pytest.raises(ConnectionError, match=message):
        load_policy("tiny", endpoint=url)


def test_a_model_that_is_not_listed_is_told_and_may_be_served_all_the_same():
    with serving(answering(["a", "b"])) as url, pytest.warns(UserWarning, match="does not list tiny; it lists a, b"):
        assert load_policy("tiny", endpoint=url).model == "tiny"


@pytest.mark.parametrize(
    "said", ["<html></html>", [], [{"id": "a"}], {"data": ["a"]}, {"data": [{}]}, {"data": None}, "", {}]
)
def test_a_list_of_models_that_cannot_be_read_lists_none(said):
    app = fastapi.FastAPI()
    app.get("/v1/models")(lambda: fastapi.responses.JSONResponse(said))
    with serving(app) as url:
        assert load_policy("tiny", endpoint=url).served() == []


@pytest.mark.parametrize("said", ["<html></html>", {}, {"choices": []}, [1]])
def test_a_reply_that_is_no_completion_is_a_sentence(said):
    app = fastapi.FastAPI()
    app.post("/v1/chat/completions")(lambda: fastapi.responses.JSONResponse(said))
    with serving(app) as url, pytest.raises(ConnectionError, match="Does it speak OpenAI's protocol"):
        EndpointPolicy(url, "tiny").say([[{"role": "user", "content": "?"}]], 4)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, {"prompt_tokens": 7}])
def test_a_server_that_counts_no_tokens_of_images_is_warned_about_and_asked(usage):
    with serving(answering(["tiny"], lambda body: completion("x") | {"usage": usage})) as url:
        policy = load_policy("tiny", endpoint=url)
        with pytest.warns(UserWarning, match="could not be checked"):
            assert protocol_for(policy, coordinates="absolute").turns == 2


def test_a_server_that_lists_no_models_is_asked_all_the_same():
    for models in (None, [], ["tiny"]):
        with serving(answering(models)) as url:
            assert load_policy("tiny", endpoint=url).model == "tiny"


@pytest.mark.parametrize(
    ("model", "limits"),
    [
        (model, limits)
        for model in ("tiny", "Qwen2.5-VL-7B")
        for limits in ((1, 28_224), (1, 700_000), (500_000, 5_000_000))
    ]
    + [
        ("Qwen2.5-VL-7B", limits) for limits in ((1, 970_000), (210_000, 10**7))
    ],  # where the family is known, a small difference is seen too
)
def test_a_server_that_resizes_images_is_refused_where_boxes_are_pixels_of_them(model, limits):
    """Its limits lie within those of the protocol, 200,704 to 1,003,520 pixels."""
    with serving(answering([model], counted(*limits))) as url:
        policy = load_policy(model, endpoint=url)
        with pytest.raises(
            ValueError, match="resizes images: .*--min-pixels and --max-pixels.*read in the wrong place"
        ):
            protocol_for(policy, coordinates="absolute")
        with pytest.warns(UserWarning, match="resizes images"):
            protocol_for(policy, coordinates="relative_1000")
        with pytest.warns(UserWarning, match="resizes images"):
            protocol_for(policy, "direct")


@pytest.mark.parametrize("unit", [784, 1024])
def test_a_server_that_leaves_images_as_they_are_is_not_refused(unit, recwarn):
    with serving(answering(["tiny"], counted(1, 10**8, unit))) as url:
        policy = load_policy("tiny", endpoint=url)
        for least, most in ((None, None), (15_680, 28_224), (784 * 4, 784 * 5), (50_000, 12_000_000)):
            protocol_for(policy, None, None, least, most, "absolute")
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]


def test_the_limits_of_the_server_itself_are_taken(random_tiny):
    """As the message advises: `mgpo-tiny` is served with its own budget."""
    with serving(answering(["tiny"], counted(15_680, 28_224))) as url:
        policy = load_policy("tiny", endpoint=url)
        assert protocol_for(policy, None, None, 15_680, 28_224, "absolute").budget == BUDGET


def test_a_refused_request_stops_or_is_an_empty_turn(rows):
    """A server that takes no image above a size, as one whose context is short: of six questions it refuses some."""
    sizes = []

    def complete(body):
        sizes.append(pixels_of(body))
        if len(sizes) == 2:
            raise fastapi.HTTPException(400, "This model's maximum context length is 2048 tokens.")
        return completion("x")

    with serving(answering(["tiny"], complete)) as url:
        asked = [[user_message(UserTurn("?", (Image.new("RGB", (56, 56)),)))] for _ in range(3)]
        with pytest.raises(
            Refused, match=r"refused a request \(400 This model's maximum context length is 2048 tokens\.\)"
        ):
            EndpointPolicy(url, "tiny").say(asked, 4)
        sizes.clear()
        said = EndpointPolicy(url, "tiny", keep_going=True).say(asked, 4)
        assert sorted(one.text for one in said) == ["", "x", "x"]
        assert [bool(one.refused) for one in said] == [one.text == "" for one in said]

    def none(body):
        raise fastapi.HTTPException(400, "no")

    with serving(answering(["tiny"], none)) as url:
        policy = EndpointPolicy(url, "tiny", keep_going=True)
        assert all(one.refused for one in policy.say(asked, 4))
        with pytest.raises(Refused, match="400 no"):  # nothing has been answered yet
            policy.say(asked, 4)

"""No byte is read before the limits: of one request, of all together, and of the page's own API."""

import asyncio
import json

import pytest

from mgpo.asking.grounded import GroundedVQA
from mgpo.method.protocol import Protocol
from mgpo.policies.turn_loop import TurnLimits
from mgpo.serving.app import create_app
from mgpo.serving.limits import BodyLimit, Limits
from mgpo.serving.page import mount_page

MB = 1024**2


async def drain(scope, receive, send):
    """Reads a whole body, as an application does."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


class Client:
    """A body in pieces; counts what was taken of it."""

    def __init__(self, pieces, size=MB, headers=(), path="/v1/ask", hold=None):
        self.left, self.size, self.taken, self.sent, self.hold = pieces, size, 0, [], hold
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), "query_string": b""}

    async def receive(self):
        if self.hold is not None and self.left == 1:
            await self.hold.wait()
        if not self.left:
            return {"type": "http.disconnect"}
        self.left -= 1
        self.taken += self.size
        return {"type": "http.request", "body": b"x" * self.size, "more_body": self.left > 0}

    async def send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"]

    async def run(self, app):
        await app(self.scope, self.receive, self.send)
        return self


def test_a_body_without_a_length_is_cut_off_at_the_limit():
    limit = BodyLimit(drain, 2 * MB, 100 * MB)
    client = asyncio.run(Client(300).run(limit))
    assert client.status == 413 and client.taken == 3 * MB and limit.held == 0


@pytest.mark.parametrize("length", [b"300000000", b"-1", b"many"])
def test_a_declared_length_is_refused_before_a_byte_is_read(length):
    client = asyncio.run(Client(300, headers=[(b"content-length", length)]).run(BodyLimit(drain, 2 * MB, 100 * MB)))
    assert client.status == 413 and client.taken == 0


def test_all_bodies_together_are_bounded():
    """Five requests of 2 MB at once where 6 MB have room: two are told to come back, and room is given back."""

    async def crowd():
        limit, hold = BodyLimit(drain, 2 * MB, 6 * MB), asyncio.Event()
        clients = [Client(3, MB // 2, hold=hold) for _ in range(5)]
        tasks = [asyncio.create_task(client.run(limit)) for client in clients]
        await asyncio.sleep(0.05)
        assert limit.held == 5 * MB
        extra = await Client(2).run(limit)  # 5 + 1 fits, 5 + 2 does not
        assert extra.status == 503 and dict(extra.sent[0]["headers"])[b"retry-after"] == b"1"
        assert json.loads(extra.sent[1]["body"])["error"]["code"] == "busy"
        hold.set()
        done = [client.status for client in await asyncio.gather(*tasks)]
        assert limit.held == 0
        again = await Client(2).run(limit)
        return done, again.status

    done, again = asyncio.run(crowd())
    assert done.count(200) >= 2 and set(done) <= {200, 503} and again == 200


def test_a_body_that_trickles_is_ended():
    """A client that sends a byte a minute held its room for as long as it liked."""

    async def trickle():
        limit = BodyLimit(drain, 2 * MB, 6 * MB, seconds=0.05)
        client = Client(2, hold=asyncio.Event())
        await asyncio.wait_for(client.run(limit), 5)
        return client.status, limit.held

    assert asyncio.run(trickle()) == (408, 0)


def test_a_long_answer_is_not_ended_by_the_time_of_the_body():
    async def works(scope, receive, send):
        await receive()
        await asyncio.sleep(0.1)
        watching = asyncio.create_task(receive())  # as a streaming response watches for a client that leaves
        await asyncio.sleep(0.05)
        assert not watching.done()
        watching.cancel()
        await drain(scope, lambda: asyncio.sleep(0, {"type": "http.request", "body": b""}), send)

    async def ask():
        client = Client(1)
        forever = asyncio.Event()
        receive = client.receive

        async def once():
            return await receive() if client.left else await forever.wait()

        client.receive = once
        return (await client.run(BodyLimit(works, 2 * MB, 6 * MB, seconds=0.05))).status

    assert asyncio.run(ask()) == 200


def test_room_is_given_back_after_an_error_and_a_lost_client():
    async def fails(scope, receive, send):
        await receive()
        raise OSError("the client is gone")

    limit = BodyLimit(fails, 2 * MB, 6 * MB)
    for _ in range(20):
        with pytest.raises(OSError):
            asyncio.run(Client(2).run(limit))
    assert limit.held == 0


@pytest.fixture(scope="module")
def served_page():
    """The application with its page and a limit of 2 MB; nothing of it runs."""
    vqa = GroundedVQA(None, Protocol(), TurnLimits())
    return mount_page(create_app(vqa, "m", Limits(body_bytes=2 * MB), None, True), "m")


@pytest.mark.parametrize(
    "path", ["/gradio_api/queue/join", "/gradio_api/upload", "//gradio_api/run/x", "/gradio_api/../v1/ask"]
)
@pytest.mark.parametrize(
    ("kind", "host", "most"),
    [
        (b"application/json", b"localhost", 2 * MB),
        (b"application/json", b"evil.example", 0),
        (b"multipart/form-data; boundary=x", b"evil.example", 0),
        (b"multipart/form-data; boundary=x", b"localhost", 4 * MB),
    ],
)
def test_the_page_s_middleware_stands_behind_host_and_limit(served_page, path, kind, host, most):
    """300 MB were read with a limit of 2 MB, before key and host were looked at."""
    client = Client(300, path=path, headers=[(b"content-type", kind), (b"host", host)])
    client.scope |= {
        "raw_path": path.encode(),
        "scheme": "http",
        "server": ("localhost", 80),
        "http_version": "1.1",
        "root_path": "",
    }
    asyncio.run(client.run(served_page))
    assert client.taken <= most and client.status >= 400


@pytest.mark.parametrize("kind", [b"application/json", b"multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/run/x"])
@pytest.mark.parametrize("cookie", [None, b"access-token-x=guessed"])
def test_nobody_without_the_key_sends_the_page_a_byte(path, kind, cookie):
    vqa = GroundedVQA(None, Protocol(), TurnLimits())
    app = mount_page(create_app(vqa, "m", Limits(), "the key", True), "m", "the key")
    headers = [(b"content-type", kind), (b"host", b"localhost")] + ([(b"cookie", cookie)] if cookie else [])
    client = Client(3, path=path, headers=headers)
    client.scope |= {"raw_path": path.encode(), "scheme": "http", "server": ("localhost", 80), "http_version": "1.1",
                     "root_path": ""}  # fmt: skip
    asyncio.run(client.run(app))
    assert client.taken == 0 and client.status == 401

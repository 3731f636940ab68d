"""A served policy whose every answer is known, on a real port of this machine."""

import socket
import threading
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("gradio")

import uvicorn  # noqa: E402
from served import said  # noqa: E402

from mgpo.asking.grounded import GroundedVQA  # noqa: E402
from mgpo.images.imaging import PixelBudget  # noqa: E402
from mgpo.method.boxes import BoxForm, box_as_json  # noqa: E402
from mgpo.method.protocol import Protocol  # noqa: E402
from mgpo.policies.turn_loop import Said, TurnLimits  # noqa: E402
from mgpo.serving.app import create_app  # noqa: E402
from mgpo.serving.limits import Limits  # noqa: E402
from mgpo.serving.page import mount_page  # noqa: E402

BUDGET = PixelBudget(20 * 784, 400 * 784)


class ColourPolicy:
    """Names the middle of what it sees, then says the crop's colour: an answer that belongs to one image alone."""

    budget, box_form = BUDGET, BoxForm()

    def __init__(self):
        self.batches, self.delay, self.fails = [], 0.0, False

    def set_budget(self, budget):
        self.budget = budget

    def open(self, turn):
        return [turn]

    def follow(self, conversation, said, turn):
        conversation.append(turn)

    def say(self, conversations, max_new_tokens, temperature=0.0):
        self.batches.append((len(conversations), max_new_tokens, temperature))
        time.sleep(self.delay)
        if self.fails:
            raise RuntimeError("out of memory: secret")
        return [self._one(c) for c in conversations]

    def _one(self, turns):
        shown = turns[-1].image
        if len(turns) == 1:
            width, height = shown.size
            return Said([], box_as_json((width // 4, height // 4, width // 2, height // 2), "it"), False)
        colour = shown.getpixel((shown.width // 2, shown.height // 2))
        return Said([], f"I see it. \\boxed{{{said(colour)}}}", False)


@pytest.fixture
def policy():
    return ColourPolicy()


@pytest.fixture
def start(policy):
    """Start servers; they are stopped at the end."""
    servers = []

    def _start(limits=Limits(), api_key=None, loopback=True, page=False):
        vqa = GroundedVQA(policy, Protocol(budget=BUDGET), TurnLimits(), limits.image_pixels)
        app = create_app(vqa, "colours", limits, api_key, loopback)
        app = mount_page(app, "colours", api_key) if page else app
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.02)
        servers.append((server, thread))
        return f"http://127.0.0.1:{port}", server

    yield _start
    for server, thread in servers:
        server.should_exit = True
        thread.join(15)

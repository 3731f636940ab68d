"""The web page of the server: drop an image, ask, watch the box appear and the crop open, then the answer.

Built with gradio and mounted on the same application; questions go through the same queue as the API's.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
import tempfile
from collections.abc import AsyncIterator, Container
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.requests import HTTPConnection  # noqa: E402

from mgpo.asking.grounded import Turn  # noqa: E402
from mgpo.asking.picture import BOX_COLOUR  # noqa: E402
from mgpo.images.imaging import ImageError, PixelBudget  # noqa: E402
from mgpo.images.photograph import Photograph  # noqa: E402
from mgpo.policies.shipped import KNOWS, SHIPPED  # noqa: E402
from mgpo.serving.app import answer  # noqa: E402
from mgpo.serving.limits import ApiError  # noqa: E402
from mgpo.serving.wire import read_question, spoken  # noqa: E402
from mgpo.worlds.needle import needle_rows  # noqa: E402

SHOWN = PixelBudget(64 * 784, 1000 * 784)
"""Size of the picture on the page."""
EXAMPLES = 3
JSON_BYTES = 1024**2
"""Size limit of a page's request that is no upload: a question and its choices take a few thousand bytes."""
STYLE = """
.gradio-container { max-width: 72rem !important; margin: 0 auto !important; }
#answer { font-size: 1.35rem; min-height: 3.2rem; } #answer p { margin: .2rem 0; }
#heading h1 { margin-bottom: .1rem; } footer { display: none !important; }
#looks { flex-wrap: wrap; } #looks > * { flex: 1 1 14rem; min-width: min(14rem, 100%) !important; }
.contain .column, .contain .row, .contain .block, .contain .form { min-width: 0 !important; }
.gallery, .table-wrap { overflow-x: auto; } .examples-table td, table td { overflow-wrap: anywhere; }
@media (max-width: 40rem) { #layout { flex-direction: column; } .gradio-container { padding: .75rem !important; } .table-wrap table { table-layout: fixed; width: 100%; }
  .table-wrap th, .table-wrap td { padding: .35rem !important; white-space: normal !important; } }
.turn-text { white-space: pre-wrap; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .9rem; overflow-wrap: anywhere; }
"""
SYSTEM_FONTS = ["system-ui", "Segoe UI", "Roboto", "sans-serif"]


def mount_page(app: FastAPI, model: str, api_key: str | None = None) -> FastAPI:
    """Put the page at `/`. With a key, it asks for it: any user name, the key as password."""
    theme = gradio.themes.Default(font=SYSTEM_FONTS, font_mono=["ui-monospace", "Menlo", "monospace"])
    page = _build(app, model)
    page.has_launched = True  # else gradio accepts files of this machine as uploads (6.31: _check_allowed)
    login = None if api_key is None else lambda user, password: password == api_key
    app = gradio.mount_gradio_app(
        app, page, path="/", auth=login, theme=theme, css=STYLE, show_error=True,
        max_file_size=app.state.limits.body_bytes, footer_links=[],
    )  # fmt: skip
    sessions = None if api_key is None else app.routes[-1].app.tokens  # sessions of the mounted page that gave the key
    app.user_middleware.append(Middleware(UploadsOnly, sessions=sessions))  # innermost: behind host and limits
    return app


class UploadsOnly:
    """ASGI middleware before gradio's own API: it refuses bodies from clients without the key, and URLs from everybody.

    Gradio would fetch a URL that is given in place of an uploaded file's path, and reads most bodies before it checks
    the session.

    Args:
        app: the application that is protected.
        sessions: tokens of the sessions that gave the key; None if there is no key.
    """

    def __init__(self, app: Any, sessions: Container[str] | None = None) -> None:
        self.app, self.sessions = app, sessions

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request; those to gradio's own API are checked, except uploads."""
        if scope["type"] != "http" or "/gradio_api/" not in scope["path"]:
            return await self.app(scope, receive, send)
        if self.sessions is not None and scope["method"] not in ("GET", "HEAD") and not self._signed_in(scope):
            error = ApiError(401, "Sign in on the page first.", "invalid_api_key")
            return await JSONResponse(error.body(), 401)(scope, receive, send)
        if scope["path"].rstrip("/").endswith("/gradio_api/upload"):  # whatever content type the request claims
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > JSON_BYTES:
                error = ApiError(
                    413, f"A request that is not an upload may have at most {JSON_BYTES:,} bytes.", "body_too_large"
                )
                return await JSONResponse(error.body(), 413)(scope, receive, send)
        if _names_url(body):
            error = ApiError(400, "Upload the photograph: URLs are not fetched.", "image_url")
            return await JSONResponse(error.body(), 400)(scope, receive, send)
        sent = False

        async def again() -> Any:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    def _signed_in(self, scope: Any) -> bool:
        cookies = HTTPConnection(scope).cookies
        return any(value in self.sessions for name, value in cookies.items() if name.startswith("access-token"))


def _names_url(body: bytes) -> bool:
    """Whether a file's path anywhere in a JSON body is a URL."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "://" in str(value.get("path", "")):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def _build(app: FastAPI, model: str) -> Any:
    kept = (600, 3600)  # seconds: files are checked every ten minutes and deleted after an hour
    with gradio.Blocks(title="mgpo: ask a photograph", analytics_enabled=False, delete_cache=kept) as page:
        note = f" It {KNOWS}" if model in SHIPPED else ""
        gradio.Markdown(
            f"# Ask a photograph\n`{model}` names the region it needs, sees it in full detail, and then answers.{note}",
            elem_id="heading",
        )
        with gradio.Row(elem_id="layout"):
            with gradio.Column(scale=2, min_width=240):
                image = gradio.Image(
                    type="filepath", label="Photograph", sources=["upload", "clipboard"], elem_id="upload"
                )
                question = gradio.Textbox(
                    label="Question",
                    placeholder="Which number is on the bus?",
                    lines=2,
                    max_length=4000,
                    elem_id="question",
                )
                choices = gradio.Textbox(
                    label="Choices, one per line (optional)", lines=4, max_length=2000, elem_id="choices"
                )
                ask = gradio.Button("Ask", variant="primary", elem_id="ask")
            with gradio.Column(scale=3, min_width=240):
                result = gradio.Markdown("The answer will appear here.", elem_id="answer")
                with gradio.Row(elem_id="looks"):
                    shown = {"interactive": False, "buttons": ["fullscreen", "download"], "min_width": 100}
                    seen = gradio.Image(label="Where it looked", elem_id="seen", **shown)
                    crop = gradio.Image(label="What it saw there", elem_id="crop", **shown)
                with gradio.Accordion("Turns", open=False, elem_id="turns"):
                    turns = gradio.HTML("<p>Nothing has been asked yet.</p>")
        outputs = [result, seen, crop, turns]
        gradio.Examples(_examples(), [image, question, choices], label="Examples (generated images)")

        async def run(file: str | None, text: str, lines: str) -> AsyncIterator[tuple]:
            async for shown in ask_page(app, file, text, lines):
                yield shown

        gradio.on(
            [ask.click, question.submit], run, [image, question, choices], outputs, api_name=False, concurrency_limit=8
        )
    page.queue(max_size=app.state.limits.waiting)
    return page


async def ask_page(app: FastAPI, file: str | None, text: str, lines: str) -> AsyncIterator[tuple]:
    """What the page shows, step by step: answer, picture with boxes, crop, turns."""
    options = [line.strip() for line in (lines or "").splitlines() if line.strip()]
    events: asyncio.Queue = asyncio.Queue()
    try:
        if not file:
            raise ApiError(400, "Choose a photograph first.", "no_image")
        limits = app.state.limits
        data = await asyncio.to_thread(Path(file).read_bytes)
        photograph = await asyncio.to_thread(Photograph, data, limits.image_pixels)
        asked = read_question([photograph], text or "", options, limits)
        picture = await asyncio.to_thread(photograph.overview, SHOWN)
        yield "Looking ...", picture, None, "<p>The model is looking at the whole picture.</p>"
        task = asyncio.create_task(answer(app, asked, lambda *progress: events.put_nowait(progress)))
        task.add_done_callback(lambda _: events.put_nowait(None))
        while (progress := await events.get()) is not None:
            turns, _ = progress
            yield (
                "Looking closer ...",
                draw_boxes(picture, turns, photograph.size),
                _last_crop(turns),
                turns_html(turns),
            )
        found = await task
    except (ApiError, ImageError, ValueError, ConnectionError) as error:
        yield f"**That did not work.** {_plain(getattr(error, 'message', str(error)))}", None, None, "<p>No turns.</p>"
        return
    said = spoken(found) if found.answer else "(no answer in the requested form)"
    shown = draw_boxes(picture, found.turns, photograph.size)
    yield f"**{_plain(said)}**", shown, _last_crop(found.turns), turns_html(found.turns)


def draw_boxes(picture: Image.Image, turns: tuple[Turn, ...], size: tuple[int, int]) -> Image.Image:
    """The picture with the regions that the model looked at; boxes are in pixels of the photograph of this size."""
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    for turn in turns:
        if turn.box_px_original is not None:
            x, y = drawn.width / size[0], drawn.height / size[1]
            x1, y1, x2, y2 = turn.box_px_original
            pen.rectangle((x1 * x, y1 * y, x2 * x, y2 * y), outline=BOX_COLOUR, width=max(3, drawn.width // 140))
    return drawn


def turns_html(turns: tuple[Turn, ...]) -> str:
    """The model's turns as HTML; all text is escaped."""
    parts = []
    for number, turn in enumerate(turns, 1):
        where = f", box {turn.box_px_original}" if turn.box_px_original else ""
        status = f" ({html.escape(turn.status.replace('_', ' '))}{where})" if turn.status else ""
        parts.append(
            f"<h4>Turn {number}{status}</h4><div class='turn-text'>{html.escape(turn.text) or '(empty)'}</div>"
        )
    return "".join(parts)


def _last_crop(turns: tuple[Turn, ...]) -> Image.Image | None:
    return next((turn.crop for turn in reversed(turns) if turn.crop is not None), None)


def _plain(text: str) -> str:
    """Text escaped so that Markdown shows it as it is."""
    return "".join(f"&#{ord(c)};" if c in "\\`*_{}[]<>()#+-.!|~$&" else c for c in text).replace("\n", " ")


def _examples() -> list[list[str]]:
    """Pictures of the `needle` world, drawn into a folder of this process."""
    folder = Path(tempfile.mkdtemp(prefix="mgpo-examples-"))
    rows = []
    for number, row in enumerate(needle_rows("test", 42, EXAMPLES)):
        file = folder / f"example_{number + 1}.png"
        row["image"].save(file)
        rows.append([str(file), row["question"], "\n".join(row["choices"])])
    return rows

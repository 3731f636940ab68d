"""The HTTP side: `/v1/chat/completions`, `/v1/ask`, `/v1/models`, `/healthz`, `/metrics`."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from mgpo.asking.grounded import Answer, GroundedVQA
from mgpo.images.imaging import ImageError, ImageTooLarge
from mgpo.method.question import MAX_IMAGES
from mgpo.serving.batching import Batcher
from mgpo.serving.limits import LOOPBACK_NAMES, ApiError, BodyLimit, Limits
from mgpo.serving.metrics import Metrics
from mgpo.serving.wire import (
    Asked,
    ChatRequest,
    chunk,
    completion,
    fetched,
    finish_reason,
    full_trace,
    head,
    read_question,
    read_request,
    spoken,
    trace,
)

OPEN_PATHS = ("/healthz",)


def create_app(
    vqa: GroundedVQA, model: str, limits: Limits = Limits(), api_key: str | None = None, loopback: bool = True
) -> FastAPI:
    """The application, without the page.

    Args:
        vqa: answers the questions.
        model: the name that clients ask for.
        limits: limits of what is accepted.
        api_key: required of every request but `/healthz` if set.
        loopback: whether only this machine is served; other host names are refused then (DNS rebinding).
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(vqa, limits, metrics.batches.observe)
        app.state.batcher.start()
        yield
        await app.state.batcher.stop()

    app = FastAPI(
        title="mgpo",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.metrics, app.state.limits = metrics, limits
    _errors(app)
    _guard(app, metrics, api_key)
    bounds = {"most_bytes": limits.body_bytes, "most_together": limits.bodies_bytes, "seconds": limits.seconds}
    app.add_middleware(BodyLimit, **bounds)
    if loopback:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_NAMES, "testserver"])
    _routes(app, model, limits, metrics)
    return app


async def answer(app: FastAPI, asked: Asked, on_turn: Any = None) -> Answer:
    """Send one question through the queue, and record it in the metrics."""
    start = time.perf_counter()
    urls = any(isinstance(image, str) for image in asked.images)
    found = await app.state.batcher.ask(
        partial(fetched, asked.images, app.state.limits) if urls else asked.images,
        asked.question,
        asked.choices,
        asked.temperature,
        asked.answer_tokens,
        on_turn,
    )
    app.state.metrics.answered(found, time.perf_counter() - start)
    return found


def _routes(app: FastAPI, model: str, limits: Limits, metrics: Metrics) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "model": model}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        metrics.waiting.set(app.state.batcher.inside)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "mgpo"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Any:
        if request.model != model:
            raise ApiError(
                404, f"The model {request.model[:100]!r} is not served here; {model!r} is.", "model_not_found"
            )
        asked = read_request(request, limits)
        if asked.stream:
            return StreamingResponse(await _stream(app, asked, model), media_type="text/event-stream")
        return completion(await answer(app, asked), model, asked.crops)

    @app.post("/v1/ask")
    async def ask(
        image: Annotated[list[UploadFile], File()],
        question: Annotated[str, Form()],
        choices: Annotated[list[str] | None, Form()] = None,
        crops: Annotated[bool, Form()] = False,
    ) -> dict[str, Any]:
        if len(image) > MAX_IMAGES:
            raise ApiError(400, f"Send 1 to {MAX_IMAGES} images, not {len(image)}.", "images")
        asked = read_question([await one.read() for one in image], question, choices or [], limits, crops=crops)
        return full_trace(await answer(app, asked), crops)


async def _stream(app: FastAPI, asked: Asked, model: str) -> AsyncIterator[str]:
    """Server-sent events: each turn's trace as it ends, then the answer.

    Nothing is sent before the first turn, so that a request that fails gets its status code; a later error is an event.
    """
    events: asyncio.Queue = asyncio.Queue()
    task = asyncio.create_task(answer(app, asked, lambda *progress: events.put_nowait(progress)))
    task.add_done_callback(lambda _: events.put_nowait(None))
    first = await events.get()
    if first is None:
        await task

    async def pieces() -> AsyncIterator[str]:
        base, progress = head(model, "chat.completion.chunk"), first
        yield _event(chunk(base, {"role": "assistant", "content": ""}))
        try:
            while progress is not None:
                yield _event(chunk(base, {}, mgpo=trace(*progress, asked.crops) | {"partial": True}))
                progress = await events.get()
            found = await task
            yield _event(chunk(base, {"content": spoken(found)}))
            yield _event(chunk(base, {}, finish_reason(found), mgpo=full_trace(found, asked.crops)))
        except Exception as error:
            yield _event(_as_api_error(error).body())
        finally:
            task.cancel()
        yield "data: [DONE]\n\n"

    return pieces()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _guard(app: FastAPI, metrics: Metrics, api_key: str | None) -> None:
    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        path = request.scope["path"]  # the path that was routed; the URL is assembled from headers
        if api_key is not None and path not in OPEN_PATHS:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if path.startswith(("/v1", "/metrics")) and not secrets.compare_digest(given, api_key.encode()):
                metrics.requests.labels("401").inc()
                error = ApiError(401, "The key is missing or wrong: send Authorization: Bearer KEY.", "invalid_api_key")
                return JSONResponse(error.body(), 401)
        response = await call_next(request)
        if path.startswith("/v1"):
            metrics.requests.labels(str(response.status_code)).inc()
        return response


def _errors(app: FastAPI) -> None:
    async def failed(_: Request, error: Exception) -> JSONResponse:
        known = _as_api_error(error)
        return JSONResponse(known.body(), known.status, known.headers())

    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(ApiError(error.status_code, str(error.detail), "refused").body(), error.status_code)

    app.add_exception_handler(HTTPException, refused)
    for kind in (ApiError, ImageError, ValueError, RequestValidationError, ConnectionError, Exception):
        app.add_exception_handler(kind, failed)


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return ApiError(400, f"{where}: {first['msg']}.", "invalid_body")
    if isinstance(error, ImageError):
        large = isinstance(error, ImageTooLarge)
        return ApiError(413 if large else 400, str(error), "image_too_large" if large else "invalid_image")
    if isinstance(error, ConnectionError):
        return ApiError(502, str(error), "endpoint_failed")
    if isinstance(error, ValueError):
        return ApiError(400, str(error), "invalid_request")
    return ApiError(500, f"The server failed on this request ({type(error).__name__}).", "internal")

"""What a server accepts, and the errors that it answers with: a status code and a sentence, in OpenAI's form."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from mgpo.images.imaging import DEFAULT_MAX_IMAGE_PIXELS

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_bytes: size of one request; a 100-megapixel JPEG in base64 fits.
        bodies_bytes: size of all requests in progress together; at least one request of `body_bytes` fits.
        image_pixels: width times height of a photograph.
        question_characters: length of a question's text with its choices.
        answer_tokens: tokens that a request may ask for.
        waiting: requests in the queue or running; further ones are refused and may come back later.
        batch: questions that are asked together.
        seconds: time for one request, from its arrival to its answer.
        image_hosts: hosts that image URLs may be fetched from; none by default.
    """

    body_bytes: int = 96 * 1024**2
    bodies_bytes: int = 1024**3
    image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    question_characters: int = 20_000
    answer_tokens: int = 4096
    waiting: int = 256
    batch: int = 16
    seconds: float = 120.0
    image_hosts: tuple[str, ...] = ()


class ApiError(Exception):
    """An error response: a status code and a sentence."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Further headers of the response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def is_loopback(host: str) -> bool:
    """Whether a bind address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class BodyLimit:
    """ASGI middleware that refuses a body over the limit while it arrives, whatever its headers say.

    It also refuses a body for which those of other requests in progress leave no room (received bytes count until their
    request is answered or gone), and one that takes longer to arrive than a request may take. Starlette has a limit
    too, but answers in plain text; clients of the API expect an error object.
    """

    def __init__(self, app: Any, most_bytes: int, most_together: int, seconds: float = 120.0) -> None:
        self.app, self.most_bytes, self.most_together = app, most_bytes, max(most_together, most_bytes)
        self.seconds, self.held = seconds, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.most_bytes:
            return await self._refuse(send, self._too_large())
        seen, started, whole = 0, False, False
        refused: ApiError | None = None
        deadline = asyncio.get_running_loop().time() + self.seconds

        async def counted() -> Any:
            nonlocal seen, refused, whole
            try:
                async with asyncio.timeout_at(None if whole else deadline):  # later only the disconnect is received
                    message = await receive()
            except TimeoutError:
                refused = ApiError(408, f"The request did not arrive within {self.seconds:g} seconds.", "too_slow")
                return {"type": "http.disconnect"}
            whole = not message.get("more_body", False)
            arrived = len(message.get("body", b""))
            seen, self.held = seen + arrived, self.held + arrived
            if refused is None and seen > self.most_bytes:
                refused = self._too_large()
            elif refused is None and arrived and self.held > self.most_together:
                refused = ApiError(503, "The server is busy with too many requests. Try again in a moment.", "busy", 1)
            return {"type": "http.disconnect"} if refused else message

        async def watched(message: Any) -> None:
            nonlocal started
            if started or not refused:
                started = True
                await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            if not refused:
                raise
        finally:
            self.held -= seen
        if refused and not started:
            await self._refuse(send, refused)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The request is over the limit of {self.most_bytes:,} bytes.", "body_too_large")

    async def _refuse(self, send: Any, error: ApiError) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(error.body()).encode()})

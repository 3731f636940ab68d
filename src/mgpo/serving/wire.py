"""Reads and writes OpenAI's chat format: one user message with its images in, the final answer and the trace out."""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from mgpo.asking.grounded import Answer, Turn
from mgpo.data.texts import split_choices, take_label
from mgpo.images.photograph import Photograph
from mgpo.method.question import LETTERS, MAX_IMAGES
from mgpo.policies.endpoint import png_uri
from mgpo.serving.limits import ApiError, Limits

NOT_SUPPORTED = {
    "n": (None, 1),
    "tools": (None, []),
    "stop": (None, [], ""),
    "logprobs": (None, False),
    "top_p": (None, 1),
}
"""Fields that would change the answer, and the values with which they change nothing."""


class Extra(BaseModel):
    """`extra_body={"mgpo": {...}}`: fields that standard clients do not know."""

    model_config = ConfigDict(extra="forbid")
    choices: list[str] = Field(default_factory=list, max_length=26)
    crops: bool = False


class ChatRequest(BaseModel):
    """The body of `/v1/chat/completions`; unknown fields are ignored, known ones that are not supported are refused."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: list[dict[str, Any]]
    stream: bool = False
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    mgpo: Extra = Field(default_factory=Extra)


@dataclass(frozen=True)
class Asked:
    """One question, read from a request. Each image is bytes, a photograph, or a URL on an allowed host."""

    images: tuple[bytes | str | Photograph, ...]
    question: str
    choices: list[str]
    temperature: float = 0.0
    answer_tokens: int | None = None
    crops: bool = False
    stream: bool = False


def read_request(request: ChatRequest, limits: Limits) -> Asked:
    """The question of a request.

    Raises:
        ApiError: with status 400; the message says what would be accepted.
    """
    for name, neutral in NOT_SUPPORTED.items():
        value = (request.model_extra or {}).get(name)
        if value not in neutral:
            raise ApiError(400, f"{name} is not supported, because the server runs the turns itself.", "not_supported")
    if len(request.messages) != 1 or request.messages[0].get("role") != "user":
        raise ApiError(
            400, "Send exactly one message, with the role user: the server adds the other turns.", "messages"
        )
    text, images = _parts(request.messages[0].get("content"))
    if not 1 <= len(images) <= MAX_IMAGES:
        raise ApiError(400, f"Send 1 to {MAX_IMAGES} images, not {len(images)}.", "images")
    tokens = request.max_completion_tokens or request.max_tokens
    return read_question(
        [_image(image, limits) for image in images], text, list(request.mgpo.choices), limits, request.temperature, tokens,
        request.mgpo.crops, request.stream,
    )  # fmt: skip


def read_question(
    images: Sequence[bytes | str | Photograph], text: str, choices: list[str], limits: Limits, temperature: float = 0.0,
    tokens: int | None = None, crops: bool = False, stream: bool = False,
) -> Asked:  # fmt: skip
    """A question with its choices, which may stand in the text line by line ("A. red")."""
    if any("\ud800" <= character <= "\udfff" for character in text + "".join(choices)):
        raise ApiError(400, "The text contains half of a character (a lone surrogate).", "not_text")
    length = len(text) + sum(map(len, choices))
    if length > limits.question_characters:
        message = f"The question has {length:,} characters; at most {limits.question_characters:,} are accepted."
        raise ApiError(400, message, "question_too_long")
    if tokens is not None and tokens > limits.answer_tokens:
        raise ApiError(400, f"max_tokens is {tokens}; at most {limits.answer_tokens} are accepted.", "max_tokens")
    if not choices:
        text, options = split_choices(text)
        choices = [take_label(option)[1] for option in options]
    if not text.strip():
        raise ApiError(400, "The message has no question.", "no_question")
    if choices and not 2 <= len(choices) <= len(LETTERS):
        raise ApiError(400, f"{len(choices)} choices were given; 2 to {len(LETTERS)} are supported.", "choices")
    return Asked(tuple(images), text, choices, temperature, tokens, crops, stream)


def _parts(content: Any) -> tuple[str, list[Any]]:
    """Text and images of a message. All images are shown first, so one that stands between two texts is named there by number."""
    if isinstance(content, str):
        return content, []
    texts: list[str] = []
    images: list[Any] = []
    named: list[str] = []  # images since the last text
    parts = content if isinstance(content, list) else []
    several = sum(isinstance(part, dict) and part.get("type") == "image_url" for part in parts) > 1
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts += [*(named if texts else []), part["text"]]
            named = []
        elif kind == "image_url":
            url = part.get("image_url")
            images.append(url.get("url") if isinstance(url, dict) else url)
            named += [f"image {len(images)}"] if several else []
        else:
            raise ApiError(
                400, f"A part of the message has the type {kind!r}; only text and image_url are supported.", "content"
            )
    return "\n".join(texts), images


def _image(url: Any, limits: Limits) -> bytes | str:
    if not isinstance(url, str):
        raise ApiError(400, "image_url needs a data URI.", "image")
    if url.startswith("data:"):
        head, comma, data = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ApiError(400, "The data URI is not base64.", "image")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError(400, "The data URI is not valid base64.", "image") from error
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname in limits.image_hosts and "@" not in parts.netloc:
            return url
    except ValueError:
        pass
    raise ApiError(400, "Image URLs are not fetched from this host: send the image as a data URI.", "image_url")


def fetched(images: Sequence[Any], limits: Limits) -> list[Any]:
    """Images of a question with those behind URLs fetched: together no larger than a body may be, and within its time.

    Raises:
        ApiError: one could not be fetched, or they are too large.
    """
    found: list[Any] = []
    left, end = limits.body_bytes, time.monotonic() + limits.seconds
    for image in images:
        if isinstance(image, str):
            image = _fetch(image, left, max(0.001, min(20.0, end - time.monotonic())))
            left -= len(image)
        found.append(image)
    return found


def _fetch(url: str, most: int, seconds: float) -> bytes:
    """The image behind a URL on an allowed host, without redirects."""
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    try:
        with urllib.request.build_opener(NoRedirect).open(url, timeout=seconds) as reply:
            data = reply.read(most + 1)
    except (OSError, ValueError) as error:
        raise ApiError(400, f"The image could not be fetched: {error}", "image_url") from error
    if len(data) > most:
        raise ApiError(
            413, f"The images are over the limit for one request: {most:,} bytes are left.", "body_too_large"
        )
    return data


def trace(turns: tuple[Turn, ...], sizes: dict[str, Any], crops: bool) -> dict[str, Any]:
    """The extra field: what the model said and where it looked. Boxes are in pixels of the photograph, upright.

    `sizes` are those of `Episode.sizes`; where there are several photographs, each turn names the one that its box is in.
    """
    several = "image_sizes" in sizes
    said = []
    for turn in turns:
        one = {"text": turn.text, "status": turn.status, "box_px_original": turn.box_px_original, "seconds": turn.seconds,
               "truncated": turn.truncated}  # fmt: skip
        one |= {"image": turn.image_number} if several and turn.status else {}
        said.append(one | ({"crop": png_uri(turn.crop) if turn.crop is not None else None} if crops else {}))
    return {"turns": said} | sizes


def spoken(answer: Answer) -> str:
    """The final answer as text: "B. blue" with choices; the text of the last turn if no answer was boxed."""
    if answer.answer is None:
        return answer.text
    return f"{answer.letter}. {answer.answer}" if answer.letter else answer.answer


def completion(answer: Answer, model: str, crops: bool) -> dict[str, Any]:
    """The body of a response."""
    return head(model, "chat.completion") | {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": spoken(answer)},
                "finish_reason": finish_reason(answer),
                "logprobs": None,
            }
        ],
        "mgpo": full_trace(answer, crops),
    }


def full_trace(answer: Answer, crops: bool) -> dict[str, Any]:
    """The extra field of a finished answer."""
    found = trace(answer.turns, answer.episode.sizes, crops)
    return found | {"answer": answer.answer, "letter": answer.letter, "seconds": answer.seconds}


def finish_reason(answer: Answer) -> str:
    """OpenAI's: `length` if the last turn was cut off."""
    return "length" if answer.turns[-1].truncated else "stop"


def head(model: str, kind: str) -> dict[str, Any]:
    """Fields that every object has."""
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def chunk(base: dict[str, Any], delta: dict[str, Any], finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """One piece of a stream."""
    return base | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]} | extra

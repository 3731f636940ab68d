"""Client for an OpenAI-compatible server. Its key comes from an environment variable and is never written down."""

from __future__ import annotations

import json
import os
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

LONGEST = 500
"""Most characters of a server's own words in a message."""
KEY = "MGPO_ENDPOINT_KEY"
"""Environment variable with the key of a policy's server."""
_SECRET = re.compile(r"key|token|secret|password|signature|^sig$", re.IGNORECASE)


def refuse_bad_address(endpoint: str, key_variable: str) -> None:
    """Refuse what is no address of a server, or holds a secret.

    Raises:
        ValueError: either; the message says what to write.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{endpoint!r} is no address of a server. Write it like http://localhost:8000/v1.")
    if parts.username or parts.password or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
        raise ValueError(
            "The endpoint's URL holds a secret, but the URL is saved with the results. Put the secret into the environment "
            f"variable {key_variable}."
        )


def openai_client(endpoint: str, key_variable: str, seconds: float) -> Any:
    """Make a client.

    Args:
        endpoint: base URL, e.g. http://localhost:8000/v1. It is written to settings and reports, so it may hold no
            secret.
        key_variable: environment variable that holds the key.
        seconds: time limit of one call.

    Raises:
        ValueError: the package `openai` is missing (`pip install "mgpo[endpoint]"`), or the URL holds a secret or is none.
    """
    refuse_bad_address(endpoint, key_variable)
    try:
        import openai
    except ImportError as error:
        raise ValueError('An endpoint needs the package openai: pip install "mgpo[endpoint]".') from error
    return openai.OpenAI(
        base_url=endpoint, api_key=os.environ.get(key_variable, "none"), timeout=seconds, max_retries=2
    )


class Refused(ConnectionError):
    """A server that answers others has refused this request: it is too long, or holds what the server does not take."""


def failed(who: str, client: Any, error: Exception, key_variable: str) -> ConnectionError:
    """The error of a call that failed, as one sentence with the server's address, its own words, and what to do.

    Args:
        who: what the server is, e.g. "The endpoint".
        client: what `openai_client` has made.
        error: an `openai.OpenAIError`.
        key_variable: environment variable that holds the key.
    """
    import openai

    address = client.base_url
    if isinstance(error, openai.APITimeoutError):
        tries = f", {client.max_retries + 1} times" if client.max_retries else ""
        return ConnectionError(f"{who} {address} did not answer within {client.timeout:g} seconds{tries}.")
    if isinstance(error, openai.APIConnectionError):
        return ConnectionError(
            f"{who} {address} cannot be reached ({error.__cause__ or error}). Does a server run at this address? One is started "
            "by vllm serve MODEL, for example; its address ends in /v1."
        )
    status, said = getattr(error, "status_code", None), _words_of(error)
    if status in (401, 403):
        given = "the key in" if os.environ.get(key_variable) else "no key, since there is none in"
        return ConnectionError(
            f"{who} {address} refused access ({said}). It was sent {given} the environment variable {key_variable}."
        )
    if status == 404:
        return ConnectionError(
            f"{who} {address} does not know the model or the address ({said}). An address usually ends in /v1."
        )
    if status in (400, 413, 422):
        return Refused(f"{who} {address} refused a request ({said}).")
    return ConnectionError(f"{who} {address} failed ({said}).")


def _words_of(error: Exception) -> str:
    """What a server says about an error, without what surrounds it."""
    text: str = getattr(getattr(error, "response", None), "text", "") or str(error)
    try:
        body: Any = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:LONGEST]
    while isinstance(body, dict):
        body = next((body[key] for key in ("error", "message", "detail") if key in body), str(body))
    return f"{getattr(error, 'status_code', '')} {body}".strip()[:LONGEST]

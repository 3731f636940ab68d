"""Client for an OpenAI-compatible server. Its key comes from an environment variable and is never written down."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_SECRET = re.compile(r"key|token|secret|password|signature|^sig$", re.IGNORECASE)


def openai_client(endpoint: str, key_variable: str, seconds: float) -> Any:
    """Make a client.

    Args:
        endpoint: base URL, e.g. http://localhost:8000/v1. It is written to settings and reports, so it may hold no
            secret.
        key_variable: environment variable that holds the key.
        seconds: time limit of one call.

    Raises:
        ValueError: the package `openai` is missing (`pip install "mgpo[endpoint]"`), or the URL holds a secret.
    """
    parts = urlsplit(endpoint)
    if parts.username or parts.password or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
        raise ValueError(
            "The endpoint's URL holds a secret, but the URL is saved with the results. Put the secret into the environment "
            f"variable {key_variable}."
        )
    try:
        import openai
    except ImportError as error:
        raise ValueError('An endpoint needs the package openai: pip install "mgpo[endpoint]".') from error
    return openai.OpenAI(
        base_url=endpoint, api_key=os.environ.get(key_variable, "none"), timeout=seconds, max_retries=2
    )


def failed(who: str, client: Any, error: Exception) -> ConnectionError:
    """The error of a call that failed, as one sentence with the server's address and its own words.

    Args:
        who: what the server is, e.g. "The endpoint".
        client: what `openai_client` has made.
        error: an `openai.OpenAIError`.
    """
    import openai

    address = client.base_url
    if isinstance(error, openai.APITimeoutError):
        return ConnectionError(f"{who} {address} did not answer within {client.timeout:g} seconds.")
    if isinstance(error, openai.APIConnectionError):
        return ConnectionError(
            f"{who} {address} cannot be reached ({error.__cause__ or error}). Does a server run at this address? One is started "
            "by vllm serve MODEL, for example; its address ends in /v1."
        )
    reply = getattr(getattr(error, "response", None), "text", "")[:500]
    return ConnectionError(f"{who} {address} failed: {error} {reply}".rstrip())

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

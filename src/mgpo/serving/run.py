"""`mgpo serve`: builds the application and serves it on a port.

Example: `mgpo serve --model runs/mine --port 8000`.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpo.asking.grounded import GroundedVQA
from mgpo.asking.settings import refuse_unknown_policy
from mgpo.serving.limits import Limits, is_loopback

KEY = "MGPO_API_KEY"


@dataclass(frozen=True)
class ServeRequest:
    """What to serve, and where.

    Attributes:
        model: as in `GroundedVQA.from_pretrained`.
        settings: its other arguments.
        name: the name that clients use; the model's name if empty.
        page: serve the web page at /.
    """

    model: str
    settings: dict[str, Any]
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    limits: Limits = Limits()
    page: bool = True


def build(request: ServeRequest) -> Any:
    """Load the policy and build the application.

    Raises:
        ValueError: a public bind without a key, or a package is missing.
    """
    key = os.environ.get(KEY) or None
    loopback = is_loopback(request.host)
    if not loopback and key is None:
        raise ValueError(
            f"Binding to {request.host} lets other machines connect: set a key in the environment variable {KEY}, or bind to "
            "127.0.0.1."
        )
    ways = {"engine": "transformers", "endpoint": None, "thinking": None} | request.settings
    refuse_unknown_policy(request.model, ways["engine"], ways["endpoint"], ways["thinking"])
    try:
        from mgpo.serving.app import create_app
        from mgpo.serving.page import mount_page
    except ImportError as error:
        raise ValueError(f'mgpo serve needs the package {error.name}: pip install "mgpo[serve]".') from error
    vqa = GroundedVQA.from_pretrained(request.model, max_image_pixels=request.limits.image_pixels, **request.settings)
    name = request.name or Path(request.model).name
    app = create_app(vqa, name, request.limits, key, loopback)
    return mount_page(app, name, key) if request.page else app


def serve(request: ServeRequest) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress are finished first."""
    with socket.socket(socket.AF_INET6 if ":" in request.host else socket.AF_INET) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((request.host, request.port))
        except OSError as error:  # checked before the model is loaded
            raise ValueError(f"Port {request.port} of {request.host} cannot be bound: {error.strerror}.") from error
    app = build(request)
    import uvicorn

    if request.page:
        host = f"[{request.host}]" if ":" in request.host else request.host
        print(f"page: http://{host}:{request.port}", file=sys.stderr)
    patience = int(request.limits.seconds) + 5  # a stream that a client holds open must not keep the server up
    uvicorn.run(app, host=request.host, port=request.port, log_level="info", timeout_graceful_shutdown=patience)

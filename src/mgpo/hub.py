"""What a model, a dataset or a benchmark that cannot be fetched from the Hugging Face hub ends in: one sentence.

The libraries' own messages name neither the model nor what to do, and each library has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def fetched(hub_id: str, kind: str, use: str, what: str = "") -> Iterator[None]:
    """Inside, something is fetched from the hub unless this machine has it already.

    Args:
        hub_id: its name, owner/name.
        kind: model or dataset.
        use: what to do with a folder that it was downloaded to: "name FOLDER as the model".
        what: what it is; "The model owner/name" if empty.

    Raises:
        ConnectionError: it is not on this machine, and the hub cannot be reached. What the hub itself answers, e.g. that it
            has nothing of this name, is raised unchanged: it says so.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        # Without a connection, each of many files would be asked for again and again, with warnings: half a minute and more.
        constants.HF_HUB_OFFLINE = offline or not reachable(constants.ENDPOINT)
        yield
    except OSError as error:
        reason = _why_unreached(error, offline)
        if reason is None:
            raise
        repo_type = "" if kind == "model" else f" --repo-type {kind}"
        raise ConnectionError(
            f"{what or f'The {kind} {hub_id}'} {reason}. Where there is a "
            f"connection, download it by: hf download {hub_id}{repo_type} --local-dir FOLDER. Then {use}."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


@cache
def reachable(endpoint: str) -> bool:
    """Whether the hub's machine is found and takes a connection; asked once. One that is only slow is reachable."""
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=5)
    except HTTPError as error:  # of httpx or its successor, whichever the hub's client is made with
        return type(error).__name__ != "ConnectError"
    return True


def _why_unreached(error: OSError, offline: bool) -> str | None:
    """What is missing and why it was not fetched; None if the hub was reached."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    said_so = any(isinstance(one, (ConnectionError, LocalEntryNotFoundError)) for one in chain)
    # A download that was broken off ends in errors of many kinds, but not in those of the system, which have numbers.
    if offline and (said_so or error.errno is None):
        if said_so:
            return "is not on this machine, or not all of it, and HF_HUB_OFFLINE keeps it from being fetched"
        said = (str(error).splitlines() or ["without a reason"])[0]
        return f"cannot be loaded from what is on this machine ({said}), and HF_HUB_OFFLINE keeps missing files from being fetched"
    return f"is not on this machine, or not all of it, and {constants.ENDPOINT} cannot be reached" if said_so else None

"""A policy behind an OpenAI-compatible endpoint (`vllm serve`, a hosted model): one chat completion per turn.

The server renders its own chat template and processes the images itself. Images are sent as PNG, at a size on the
model's grid and within the protocol's budget, so a server whose budget is at least as large does not resize them.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from PIL import Image

from mgpo.images.imaging import PixelBudget
from mgpo.method.episode import UserTurn
from mgpo.policies.client import KEY, Refused, failed, openai_client
from mgpo.policies.families import family_of_name
from mgpo.policies.turn_loop import Said

SECONDS = 300.0
AT_ONCE = 16
MOST_REFUSED = 4
LIST_SECONDS = 60.0
PATIENCE = 60.0
"""Seconds after which somebody who waits for the first answer is told so."""
IS_MGPO_SERVE = (
    "The server at {} is mgpo serve, which runs all turns of a question itself. An endpoint must serve the bare model, e.g. vllm serve; "
    "to evaluate the model of this server, name its folder as --model without --endpoint."
)


class EndpointPolicy:
    """A served model.

    Args:
        endpoint: base URL, e.g. http://localhost:8000/v1. A key is taken from the environment variable
            MGPO_ENDPOINT_KEY.
        model: the model's name on the server. If it contains the name of a known family, that decides how boxes are
            written.
        budget: pixel budget of each image; by default the method's, in the units of the model's family.
        seconds: time limit of one request.
        keep_going: take a request that the server refuses for an empty turn, with the reason in `Said.refused`, instead of raising
            `Refused`; but not if it refuses `MOST_REFUSED` before it has answered any.

    Raises:
        ValueError: the package `openai` is missing (`pip install "mgpo[endpoint]"`), or the URL holds a secret or is none.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        budget: PixelBudget | None = None,
        seconds: float = SECONDS,
        keep_going: bool = False,
    ) -> None:
        self._client = openai_client(endpoint, KEY, seconds)
        import openai

        self._failure = openai.OpenAIError
        self.family = family_of_name(model)
        self.model, self.box_form = model, self.family.form if self.family else None
        self.budget = budget or PixelBudget.usual((self.family and self.family.factor) or PixelBudget.factor)
        self._seconds, self._keep_going = seconds, keep_going
        self._has_answered, self._refused = False, 0

    @property
    def address(self) -> str:
        """The base URL."""
        return str(self._client.base_url)

    def set_budget(self, budget: PixelBudget) -> None:
        """Set the pixel budget that every image will be within."""
        self.budget = budget

    def open(self, turn: UserTurn) -> list[dict[str, Any]]:
        """Messages of a conversation that consists of one user turn."""
        return [user_message(turn)]

    def follow(self, conversation: list[dict[str, Any]], said: Said, turn: UserTurn) -> None:
        """Append what the model said and the next user turn."""
        conversation += [{"role": "assistant", "content": said.text}, user_message(turn)]

    def write(self, text: str) -> Said:
        """A turn with this text, as if the model had said it."""
        return Said([], text, False)

    def say(
        self, conversations: Sequence[list[dict[str, Any]]], max_new_tokens: int, temperature: float = 0.0
    ) -> list[Said]:
        """The model's next turn in each conversation; several requests are sent at once.

        Raises:
            ValueError: the endpoint is `mgpo serve`.
            ConnectionError: the endpoint refused or did not answer in time; the message includes the endpoint's own.
        """
        if not conversations:
            return []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [pool.submit(self._one, one, max_new_tokens, temperature) for one in conversations]
            if not wait(asked, PATIENCE, FIRST_COMPLETED).done:
                warnings.warn(
                    f"{self.address} has not answered for {PATIENCE:g} seconds; the time limit of a request is {self._seconds:g} seconds.",
                    stacklevel=2,
                )
            try:
                said = [one.result() for one in asked]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        refused = [one.refused for one in said if one.refused]
        self._has_answered |= len(refused) < len(said)
        self._refused += len(refused)
        if not self._has_answered and self._refused >= MOST_REFUSED:
            raise Refused(refused[0])
        return said

    def _one(self, conversation: list[dict[str, Any]], limit: int, temperature: float) -> Said:
        try:
            reply = self.request(conversation, limit, temperature)
        except Refused as refused:
            if not self._keep_going:
                raise
            return Said([], "", False, refused=str(refused))
        choice = reply.choices[0]
        return Said([], choice.message.content or "", choice.finish_reason == "length")

    def request(self, conversation: list[dict[str, Any]], limit: int, temperature: float = 0.0) -> Any:
        """The server's whole reply to one conversation; errors are as in `say`."""
        try:
            reply = self._client.chat.completions.create(
                model=self.model, messages=conversation, max_tokens=limit, temperature=temperature
            )
        except self._failure as error:
            raise failed("The endpoint", self._client, error, KEY) from error
        if "mgpo" in (getattr(reply, "model_extra", None) or {}):
            raise ValueError(IS_MGPO_SERVE.format(self.address))
        if not getattr(reply, "choices", None):
            raise ConnectionError(
                f"The endpoint {self.address} sent a reply without an answer. Does it speak OpenAI's protocol? Its address usually ends in /v1."
            )
        return reply

    def served(self) -> list[Any]:
        """What the server lists as its models; empty if it lists none, as some do not, or nothing that can be read.

        Raises:
            ConnectionError: it cannot be reached, or refuses access.
        """
        client = self._client.with_options(timeout=min(self._seconds, LIST_SECONDS), max_retries=0)
        try:
            found = list(client.models.list())
        except self._failure as error:
            if getattr(error, "status_code", None) in (401, 403) or not hasattr(error, "status_code"):
                raise failed("The endpoint", client, error, KEY) from error
            return []
        except (AttributeError, TypeError, ValueError):  # a web page, or JSON of another form
            return []
        return [one for one in found if isinstance(getattr(one, "id", None), str)]


def user_message(turn: UserTurn) -> dict[str, Any]:
    """A user turn in OpenAI's format, its images as PNG."""
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": png_uri(part)}}
        for part in turn.parts
    ]
    return {"role": "user", "content": parts}


def png_uri(image: Image.Image) -> str:
    """An image as a data URI."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

"""A policy behind an OpenAI-compatible endpoint (`vllm serve`, a hosted model): one chat completion per turn.

The server renders its own chat template and processes the images itself. Images are sent as PNG, at a size on the
model's grid and within the protocol's budget, so a server whose budget is at least as large does not resize them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from mgpo.images.imaging import PixelBudget
from mgpo.method.episode import UserTurn
from mgpo.policies.client import failed, openai_client
from mgpo.policies.families import family_of_name
from mgpo.policies.turn_loop import Said

KEY = "MGPO_ENDPOINT_KEY"
SECONDS = 300.0
AT_ONCE = 16


class EndpointPolicy:
    """A served model.

    Args:
        endpoint: base URL, e.g. http://localhost:8000/v1. A key is taken from the environment variable
            MGPO_ENDPOINT_KEY.
        model: the model's name on the server. If it contains the name of a known family, that decides how boxes are
            written.
        budget: pixel budget of each image; by default the method's, in the units of the model's family.

    Raises:
        ValueError: the package `openai` is missing (`pip install "mgpo[endpoint]"`), or the URL holds a secret.
    """

    def __init__(self, endpoint: str, model: str, budget: PixelBudget | None = None) -> None:
        self._client = openai_client(endpoint, KEY, SECONDS)
        import openai

        self._failure = openai.OpenAIError
        family = family_of_name(model)
        self.model, self.box_form = model, family.form if family else None
        self.budget = budget or PixelBudget.usual((family and family.factor) or PixelBudget.factor)

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
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda c: self._one(c, max_new_tokens, temperature), conversations))

    def _one(self, conversation: list[dict[str, Any]], limit: int, temperature: float) -> Said:
        try:
            reply = self._client.chat.completions.create(
                model=self.model, messages=conversation, max_tokens=limit, temperature=temperature
            )
        except self._failure as error:
            raise failed("The endpoint", self._client, error) from error
        if "mgpo" in (reply.model_extra or {}):
            raise ValueError(
                f"The server at {self._client.base_url} is mgpo serve, which runs all turns of a question itself. An endpoint must serve the "
                "bare model, e.g. vllm serve; to evaluate the model of this server, name its folder as --model without --endpoint."
            )
        choice = reply.choices[0]
        return Said([], choice.message.content or "", choice.finish_reason == "length")


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

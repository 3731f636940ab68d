"""The turn protocol as an environment of verifiers (Prime Intellect), for its evaluations and for prime-rl.

    vf-eval mgpo-verifiers --env.taskset.data my_data.jsonl --model Qwen/Qwen3-VL-4B-Instruct \\
        --client.base-url http://localhost:8000/v1 --no-push

verifiers 0.4 has an environment in four parts, and each is thin here: the taskset reads questions as everywhere else
(`mgpo.data.loading`), the task scores an answer (`mgpo.method.rewards`), the env plays the user's side of the exchange
(`mgpo.method.episode`), and the harness asks the model for one turn. verifiers itself owns the endpoint, the record of what
was said, and tokens where it trains. The endpoint is a plain model (`vllm serve`), not `mgpo serve`, which runs the turns
itself.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import verifiers.v1 as vf
from openai import APIConnectionError, APIStatusError, AsyncOpenAI
from PIL import Image
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.errors import MODEL_TRANSPORT_ERROR_EXIT_CODE

from mgpo.data.loading import load_questions
from mgpo.environments.photographs import SharedPhotographs
from mgpo.images.identity import file_of
from mgpo.images.imaging import PixelBudget
from mgpo.method.episode import UserTurn
from mgpo.method.metrics import episode_metrics
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.method.rewards import is_correct
from mgpo.policies.endpoint import png_uri, user_message
from mgpo.policies.families import family_of_name
from mgpo.policies.turn_loop import TurnLimits, limit_of

ID = "mgpo-verifiers"
"""The id under which verifiers imports this environment (the package `mgpo_verifiers`)."""


class GroundingTaskConfig(vf.TaskConfig):
    """The turn protocol, as the options of `mgpo eval`; under `--env.taskset.task`."""

    method: Method = Method.MGPO
    """How a question is asked."""
    max_turns: int = 2
    """The largest number of the model's turns."""
    coordinates: str = "auto"
    """How the model writes boxes; `auto` goes by the model's name."""
    min_pixels: int | None = None
    """Smaller images are enlarged to at least this many pixels; if not set, the model family's 256 visual tokens."""
    max_pixels: int | None = None
    """Larger images are shrunk to at most this many pixels; if not set, the model family's 1280 visual tokens."""
    grounding_tokens: int = TurnLimits.grounding
    """Most new tokens of a turn that names a region."""
    answer_tokens: int = TurnLimits.answer
    """Most new tokens of the last turn."""


class GroundingTasksetConfig(vf.TasksetConfig):
    """Which questions; under `--env.taskset`."""

    data: str = "needle"
    """`needle`, or a file, a folder or a hub dataset in a layout of docs/data.md."""
    split: str = "train"
    """Split to read."""
    seed: int = 0
    """For `needle`: which questions."""
    size: int = 2000
    """For `needle`: how many."""
    task: GroundingTaskConfig = GroundingTaskConfig()


class GroundingEnvConfig(vf.EnvConfig):
    """The env's settings: the model under test takes the one seat. Its turns run here and need no sandbox."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())
    taskset: GroundingTasksetConfig = GroundingTasksetConfig()


class GroundingData(vf.TaskData):
    """A question on the wire: the fields of `mgpo.method.question.Question`. An image is a path, or its file as a data URI."""

    images: list[str]
    question: str
    choices: list[str] = []
    answer: str = ""
    gold_boxes: list[tuple[int, int, int, int]] = []
    gold_image: int = 1
    category: str = ""


class TurnState(vf.State):
    """What the env tells the harness.

    Attributes:
        max_tokens: most new tokens of the turn that is asked for.
    """

    max_tokens: int = TurnLimits.grounding


class GroundingTask(vf.Task[GroundingData, TurnState, GroundingTaskConfig]):
    """One question."""

    @property
    def asked(self) -> Question:
        """The question, its images as paths or bytes."""
        row = self.data.model_dump(include={"question", "choices", "answer", "gold_boxes", "gold_image", "category"})
        image, *more = map(_image, self.data.images)
        return Question.from_row(row | {"id": self.data.id or "", "image": image, "more_images": more})

    def protocol(self, model: str) -> Protocol:
        """The turn protocol for a model of this name.

        Raises:
            ValueError: neither the settings nor the name say how it writes boxes.
        """
        family, own = family_of_name(model), self.config
        usual = PixelBudget.usual((family and family.factor) or PixelBudget.factor)
        return Protocol.from_settings(
            own.model_dump(), usual.changed(own.min_pixels, own.max_pixels), family.form if family else None
        )

    @vf.reward
    async def accuracy(self, trace: vf.Trace) -> float:
        """1 if the last turn answers right, else 0. The first turn of `mgpo` names a region and is never an answer."""
        said = [message.content or "" for message in trace.assistant_messages]
        if not said or (len(said) == 1 and self.config.method is Method.MGPO):
            return 0.0
        return float(is_correct(said[-1], self.data.choices, self.data.answer))


class GroundingTaskset(vf.Taskset[GroundingTask, GroundingTasksetConfig]):
    """Questions as tasks."""

    def load(self) -> Iterator[GroundingTask]:
        """All questions, in order.

        Raises:
            ValueError: a row cannot be used; the message names it.
        """
        chosen = self.config
        for row in load_questions(chosen.data, chosen.split, seed=chosen.seed, size=chosen.size):
            yield GroundingTask(_data(Question.from_row(row)), chosen.task)


class GroundingHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the model for one turn, in this process. verifiers' own `null` harness starts a program for that."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self, ctx: Any, trace: vf.Trace, runtime: vf.Runtime, endpoint: str, secret: str, mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:  # fmt: skip
        """Send the conversation so far; verifiers records the reply on its way. A failure is a result, as of a program."""
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        messages += [message_to_wire(message) for message in prompt or []]
        limit = {"max_tokens": trace.state.max_tokens} if isinstance(trace.state, TurnState) else {}
        try:
            async with AsyncOpenAI(base_url=endpoint, api_key=secret, timeout=None) as client:
                await client.chat.completions.create(model=ctx.model, messages=messages, **limit)
        except APIStatusError as error:
            return vf.ProgramResult(1, "", str(error))
        except APIConnectionError as error:
            return vf.ProgramResult(MODEL_TRANSPORT_ERROR_EXIT_CODE, "", str(error))
        return vf.ProgramResult(0, "", "")


class GroundingEnv(vf.Env[GroundingEnvConfig]):
    """The user's side: shows the overview, cuts the region that the model names from the original, and asks again."""

    def __init__(self, config: GroundingEnvConfig) -> None:
        super().__init__(config)
        self._photographs = SharedPhotographs()

    async def run(self, task: GroundingTask, agents: vf.Agents) -> None:
        """One rollout.

        Raises:
            ImageError: an image of the question cannot be used.
        """
        question, settings = task.asked, task.config
        protocol = task.protocol(agents.agent.ctx.model)
        limits = TurnLimits(settings.grounding_tokens, settings.answer_tokens)
        episode = await asyncio.to_thread(self._photographs.begin, question, protocol)
        turn: UserTurn | None = episode.user_turns[0]
        async with agents.agent.interaction(task) as exchange:
            while turn is not None:
                exchange.trace.state.max_tokens = limit_of(protocol, len(episode.model_turns) + 1, limits)
                heard = await exchange.turn([user_message(turn)])
                if heard.terminated:  # a limit of verifiers, or a failure, which is on its record
                    break
                said = exchange.trace.assistant_messages[-1].content or ""
                turn = await asyncio.to_thread(episode.reply, said, exchange.trace.is_truncated)
        exchange.trace.record_metrics(episode_metrics(episode))


def load_environment(
    data: str = "needle", split: str = "train", seed: int = 0, size: int = 2000, **task: Any
) -> vf.Env:
    """The environment over some questions.

    Args:
        data, split, seed, size: as in `GroundingTasksetConfig`.
        task: the turn protocol, as in `GroundingTaskConfig`.
    """
    chosen = {"id": ID, "data": data, "split": split, "seed": seed, "size": size, "task": task}
    return GroundingEnv(GroundingEnvConfig.model_validate({"taskset": chosen}))


def _data(question: Question) -> GroundingData:
    return GroundingData(
        id=question.id or None,
        images=[_text(image) for image in question.images],
        question=question.question,
        choices=list(question.choices),
        answer=question.answer,
        gold_boxes=list(question.gold_boxes_px_original),
        gold_image=question.gold_image,
        category=question.category,
    )


def _text(image: Any) -> str:
    """An image as text: its path, or its file as a data URI."""
    image = file_of(image)
    if isinstance(image, Image.Image):
        return png_uri(image)
    if isinstance(image, bytes):
        return "data:;base64," + base64.b64encode(image).decode()
    return str(Path(image).resolve())


def _image(text: str) -> str | bytes:
    return base64.b64decode(text.partition(",")[2]) if text.startswith("data:") else text

"""MGPO's turns as an agent loop of verl 0.9.

    # actor_rollout_ref.rollout.agent.agent_loop_config_path: a YAML list
    - name: mgpo
      _target_: mgpo.verl.agent_loop.MGPOAgentLoop
      max_pixels: 1003520

The episode, the turn loop, the boxes, the images and the reward are those of all other engines; this file connects them to
verl's server. It opens the row's file itself, so a box is cut from the file's own pixels: what the model sees is made by
`mgpo.images`, at a size that verl's processor and engine leave as it is, and no copy of another size is involved.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.rollout_trace import rollout_trace_op

from mgpo.images.identity import image_key
from mgpo.images.photograph import Photograph
from mgpo.method.episode import Episode, UserTurn
from mgpo.method.metrics import episode_metrics
from mgpo.method.prompts import opening_text
from mgpo.method.protocol import Method
from mgpo.method.question import Question
from mgpo.method.rewards import is_correct
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import Said, turn_by_turn
from mgpo.verl.reward import ANSWER, CHOICES, LAST_TURN
from mgpo.verl.rollout import RolloutWriter, VerlRollout
from mgpo.verl.rows import question_of
from mgpo.verl.settings import LoopSettings

KEPT_PHOTOGRAPHS = 64
"""Photographs that a worker keeps open, so that the rollouts of a question share one."""


class _Photographs:
    """The photographs that were opened last, by what is in them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[Any, Photograph] = OrderedDict()

    def open(self, source: Any) -> Photograph:
        key = image_key(source)
        with self._lock:
            if key not in self._open:
                self._open[key] = Photograph(source)
            self._open.move_to_end(key)
            while len(self._open) > KEPT_PHOTOGRAPHS:
                self._open.popitem(last=False)
            return self._open[key]


_photographs = _Photographs()


class MGPOAgentLoop(AgentLoopBase):
    """Runs one episode per row; rows without an image are asked for the answer at once, in one turn.

    Args:
        settings: of `mgpo.verl.settings.NAMES`, from the YAML list; the rest is given by verl's worker.

    Raises:
        ValueError: a setting is wrong, or the longest episode does not fit into verl's lengths.
    """

    def __init__(
        self, trainer_config: Any, server_manager: Any, tokenizer: Any, processor: Any, dataset_cls: Any, data_config: Any,
        hf_model_type: str | None = None, tools: Any = None, name: str = "mgpo", **settings: Any,
    ) -> None:  # fmt: skip
        if processor is None:
            raise ValueError("MGPOAgentLoop needs a vision-language model, but verl could not load its processor.")
        super().__init__(trainer_config, server_manager, tokenizer, processor, dataset_cls, data_config, hf_model_type)
        self.settings = LoopSettings.read(settings, processor, hf_model_type, self._get_mm_processor_kwargs())
        self.settings.refuse_too_short(self.rollout_config)
        if self.rollout_config.enable_rollout_routing_replay:
            raise ValueError(
                "MGPOAgentLoop does not record which experts a token was routed to: set enable_rollout_routing_replay=False."
            )
        tokens = TurnTokens(processor, dict(self.apply_chat_template_kwargs))
        self.writer = RolloutWriter(tokens, self.settings.most_text_tokens, self.settings.processor_kwargs)
        self._request = ""
        self._metrics: dict[str, Any] = {"generate_sequences": 0.0, "tool_calls": 0.0, "num_preempted": -1}
        self._server_fields: dict[str, Any] = {}

    @rollout_trace_op
    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row: Any) -> AgentLoopOutput:
        """One rollout of a row.

        Args:
            sampling_params: for the server; each turn adds its own token limit.
            priority: of the rollout among those of the batch.
            row: fields of verl's dataset (`mgpo.verl.rows`).

        Returns:
            Prompt ids, response ids with both turns and the environment's between them, the mask of sampled tokens, images
            and reward.

        Raises:
            ValueError: the row cannot be asked; the message names it.
            RuntimeError: the server stopped before it had finished a turn, or image tokens and features differ.
        """
        full = getattr(self.rollout_config, "full_determinism", False)
        self._request = f"det-{int(priority)}" if full else uuid4().hex
        question = await self._aside(lambda: question_of(row))
        self.writer.name = question.id
        ask = self._without_image if question.image is None else self._episode
        rollout, last, episode = await ask(question, sampling_params, int(priority))
        self.writer.check_whole(rollout)
        right = float(is_correct(last.text, question.choices, question.answer))
        seen = episode_metrics(episode) if episode is not None else {}
        extra: dict[str, Any] = self._server_fields | {"turn_scores": [], "tool_rewards": []}
        extra |= {LAST_TURN: last.text, CHOICES: list(question.choices), ANSWER: question.answer}
        if self.settings.score:
            extra["reward_extra_info"] = {
                "acc": right,
                "valid_box": seen.get("grounding/valid_share", 0.0),
                "truncated": float(last.truncated),
                "cut_turns": float(rollout.cut),
            }
        return AgentLoopOutput(
            prompt_ids=rollout.prompt_ids,
            response_ids=rollout.ids,
            response_mask=rollout.mask,
            response_logprobs=rollout.logprobs,
            multi_modal_data={"images": rollout.images} if rollout.images else {},
            reward_score=right if self.settings.score else None,
            num_turns=len(episode.user_turns) + len(episode.model_turns) if episode is not None else 2,
            metrics=AgentLoopMetrics(**self._metrics),
            mm_processor_kwargs=self.settings.processor_kwargs,
            extra_fields=extra,
        )

    async def _episode(self, question: Question, sampling: dict[str, Any], priority: int) -> tuple:
        """The turns of an episode: `turn_by_turn` asks, and the server answers."""
        episode = await self._aside(lambda: self._opened(question))
        loop = turn_by_turn(self.writer, [episode], self.settings.limits)
        asked = await self._aside(lambda: next(loop))
        while True:
            rollout = asked.conversations[0]
            said = await self._say(rollout, asked.max_new_tokens, sampling, priority)
            # A coroutine cannot pass on StopIteration, which is how a generator returns.
            asked = await self._aside(lambda: _next(loop, said))  # noqa: B023 (called at once)
            if asked is None:
                return rollout, said, episode

    async def _without_image(self, question: Question, sampling: dict[str, Any], priority: int) -> tuple:
        protocol = replace(self.settings.protocol, method=Method.DIRECT)
        turn = UserTurn(opening_text(question, protocol))
        rollout = await self._aside(lambda: self.writer.open(turn))
        return rollout, await self._say(rollout, self.settings.limits.answer, sampling, priority), None

    def _opened(self, question: Question) -> Episode:
        if len(question.images) > self.settings.most_images:
            raise ValueError(
                f"Question {question.id!r} shows {len(question.images)} images, more than max_images="
                f"{self.settings.most_images}. Set max_images to {len(question.images)}, or leave the question out."
            )
        photographs = tuple(_photographs.open(image) for image in question.images)
        episode = Episode(question, photographs, self.settings.protocol)
        episode.opening()
        return episode

    async def _say(self, rollout: VerlRollout, limit: int, sampling: dict[str, Any], priority: int) -> Said:
        """The model's next turn, from verl's server."""
        start = time.perf_counter()
        output = await self.server_manager.generate(
            request_id=self._request,
            prompt_ids=rollout.prompt_ids + rollout.ids,
            sampling_params=sampling | {"max_tokens": limit},
            image_data=list(rollout.images) or None,
            mm_processor_kwargs=self.settings.processor_kwargs,
            priority=priority,
        )
        self._metrics["generate_sequences"] += time.perf_counter() - start
        if output.num_preempted is not None:
            self._metrics["num_preempted"] = max(0, self._metrics["num_preempted"]) + output.num_preempted
        if output.stop_reason in ("abort", "aborted"):
            raise RuntimeError(f"verl's server aborted a turn of question {rollout.name!r}: it must be sampled again.")
        first, latest = self._server_fields.get("min_global_steps"), output.extra_fields
        self._server_fields |= latest | ({"min_global_steps": first} if first is not None else {})
        return self.writer.hear(rollout, output.token_ids, output.log_probs, limit)

    async def _aside(self, work: Callable[[], Any]) -> Any:
        """Work on images and tokens in a thread: other episodes of this worker go on meanwhile."""
        start = time.perf_counter()
        done = await asyncio.get_running_loop().run_in_executor(None, work)
        self._metrics["tool_calls"] += time.perf_counter() - start
        return done


def _next(loop: Any, said: Said) -> Any:
    """What the turn loop asks next; None at its end."""
    try:
        return loop.send([said])
    except StopIteration:
        return None

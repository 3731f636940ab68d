"""Batches requests to one model: those that arrive together go through all turns as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mgpo.asking.grounded import Answer, GroundedVQA, turns_of
from mgpo.method.episode import Episode
from mgpo.serving.limits import ApiError, Limits

WINDOW_S = 0.02
"""How long the first request of a batch waits for others, in seconds."""
PREPARED_AT_ONCE = 2
"""Number of questions whose photographs are opened at the same time: each photograph may take hundreds of megabytes."""
FETCHED_AT_ONCE = 4
"""Number of questions whose images are fetched at the same time."""


@dataclass
class Waiting:
    """A question in the queue.

    `again` makes its episode afresh. `on_turn` is called in the event loop with the turns so far and the photographs'
    sizes (`Episode.sizes`).
    """

    episode: Episode
    again: Callable[[], Episode]
    temperature: float
    answer_tokens: int | None
    done: asyncio.Future
    on_turn: Callable[[Any, Any], None] | None = field(default=None, repr=False)

    @property
    def kind(self) -> tuple:
        """Questions of one kind can share a batch."""
        return self.temperature, self.answer_tokens


class Batcher:
    """A queue in front of a policy.

    Args:
        vqa: answers the questions; it is only ever called from one thread.
        limits: how many requests may wait and how many are asked together.
        on_batch: called with the size of each batch, for metrics.
    """

    def __init__(self, vqa: GroundedVQA, limits: Limits, on_batch: Callable[[int], None] = lambda size: None) -> None:
        self.vqa, self.limits, self.on_batch = vqa, limits, on_batch
        self.inside = 0
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._fetching = asyncio.Semaphore(FETCHED_AT_ONCE)
        self._preparing = asyncio.Semaphore(PREPARED_AT_ONCE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._worker: asyncio.Task | None = None

    def start(self) -> None:
        """Start the worker; call this inside the event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answer the waiting requests, then stop."""
        while self._queue or self.inside:
            await asyncio.sleep(0.01)
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown()

    async def ask(
        self,
        images: Sequence[Any] | Callable[[], Sequence[Any]],
        question: str,
        choices: list[str],
        temperature: float = 0.0,
        answer_tokens: int | None = None,
        on_turn: Callable[[Any, Any], None] | None = None,
    ) -> Answer:
        """Answer one question. `images` may be a function that fetches them.

        Raises:
            ApiError: the queue is full (429), or the answer took too long (504).
            ImageError, ValueError: image or question cannot be used.
        """
        if self.inside >= self.limits.waiting:
            raise ApiError(429, f"{self.inside} requests are already waiting. Try again later.", "busy", retry_after=2)
        self.inside += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                if callable(images):
                    async with self._fetching:
                        images = await asyncio.to_thread(images)
                async with self._preparing:
                    prepare = partial(self._prepare, images, question, choices)
                    episode = await asyncio.to_thread(prepare)
                done = asyncio.get_running_loop().create_future()
                self._queue.append(Waiting(episode, prepare, temperature, answer_tokens, done, on_turn))
                self._arrived.set()
                return await done
        except TimeoutError as error:
            message = f"The answer took longer than {self.limits.seconds:g} seconds."
            raise ApiError(504, message, "timeout") from error
        finally:
            self.inside -= 1

    def _prepare(self, images: Sequence[Any], question: str, choices: list[str]) -> Episode:
        """Make the episode and decode its photograph before the batch: a damaged image fails only its own request.

        Of several photographs a region of one is needed, so they are decoded in the background while there is room.
        """
        episode = self.vqa.episode(images, question, choices)
        if self.vqa.protocol.looks_again and len(images) == 1:
            _ = episode.originals[0].image
        return episode

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await asyncio.sleep(WINDOW_S)
            batch = self._take()
            if batch:
                self.on_batch(len(batch))
                found = await loop.run_in_executor(self._thread, self._each, batch, loop)
                for waiting, outcome in zip(batch, found):
                    _settle(waiting, outcome)

    def _take(self) -> list[Waiting]:
        """Take the first waiting question and others of its kind, in order; those whose client has gone are dropped."""
        batch: list[Waiting] = []
        others: deque[Waiting] = deque()
        while self._queue:
            waiting = self._queue.popleft()
            if waiting.done.done():
                continue
            fits = not batch or (waiting.kind == batch[0].kind and len(batch) < self.limits.batch)
            (batch if fits else others).append(waiting)
        self._queue = others
        if not others:
            self._arrived.clear()
        return batch

    def _each(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> list[Answer | Exception]:
        """Answer a batch; if it fails, answer its questions one by one, so that a bad one fails alone."""
        try:
            return list(self._answer(batch, loop))
        except Exception as error:  # whatever a model raises, the server keeps running
            if len(batch) == 1:
                return [error]
        found: list[Answer | Exception] = []
        for waiting in batch:
            try:
                waiting.episode = waiting.again()
                found += self._answer([waiting], loop)
            except Exception as error:
                found.append(error)
        return found

    def _answer(self, batch: list[Waiting], loop: asyncio.AbstractEventLoop) -> list[Answer]:
        def report(index: int, episode: Episode) -> None:
            listener = batch[index].on_turn
            if listener is not None:
                loop.call_soon_threadsafe(listener, turns_of(episode), episode.sizes)

        temperature, tokens = batch[0].kind
        return self.vqa.answer([waiting.episode for waiting in batch], temperature, tokens, report)


def _settle(waiting: Waiting, outcome: Answer | Exception) -> None:
    if waiting.done.done():
        return
    if isinstance(outcome, Exception):
        waiting.done.set_exception(outcome)
    else:
        waiting.done.set_result(outcome)

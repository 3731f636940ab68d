"""`rollouts_ahead`: a vLLM server samples the next batch of rollouts while the model is updated from this one.

Taking turns, a step lasts as long as its rollouts and its update together; overlapped, as long as the longer of the two. The
price: a batch is sampled with the weights of one batch before, that is, one update earlier if every batch is updated from once.
TRL corrects for it by the ratio of the model's own probability of a token to the one it was sampled with (importance sampling).

    weights pushed    batch n+1 sampled by the server, in a thread ---------------->|
    batch n scored, loss, backward pass, optimizer step ----------->| next step     | waits for it, pushes weights, ...

Each process asks the server for its own rollouts over HTTP. No collective call is made outside the main thread, so data
parallel, FSDP and DeepSpeed processes cannot get out of step. Weights are pushed when no process is sampling. The first batch of an epoch and of a
run, and the first after resuming, is sampled in its own step, with that step's weights.
"""

from __future__ import annotations

import copy
import time
from concurrent.futures import Future
from dataclasses import dataclass
from math import gcd
from threading import Thread
from typing import Any

from mgpo.policies.tokens import TurnTokens
from mgpo.policies.vllm_engine import ServerOfProcess
from mgpo.training.rollouts import Batch, first_turns, later_turns, open_batch
from mgpo.training.turns import PolicyInTraining, Rollout


@dataclass(frozen=True)
class Sampled:
    """A batch whose rollouts were sampled before TRL asks for them.

    Attributes:
        batch: its episodes, all ended.
        prompt_ids, images: first user turns, as `_tokenize_prompts` returns them.
        first: ids and log-probabilities of the model's first turns, as `_generate_single_turn` returns them.
        later: what `_tool_call_loop` returns.
        metrics: names and values to log.
    """

    batch: Batch
    prompt_ids: list[list[int]]
    images: list[list[Any]]
    first: tuple[list[list[int]], list[list[float]]]
    later: tuple
    metrics: list[tuple[str, float]]


class RolloutsAhead:
    """Samples one batch ahead in a thread. It serves `_generate_and_score_completions`.

    Args:
        trainer: an `MGPOTrainer` that TRL has built with a vLLM server.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.server = ServerOfProcess(trainer.vllm_generation, trainer.turn_tokens, trainer.args.vllm_call_seconds)
        # The thread has tokens of its own: a fast tokenizer must not pad in one thread while it encodes in another.
        self.tokens = TurnTokens(copy.deepcopy(trainer.processing_class), trainer.args.chat_template_kwargs)
        self._begun: tuple[Any, Future[Sampled]] | None = None

    def take(self, rows: list[dict[str, Any]]) -> Sampled:
        """The rollouts of these rows, sampled ahead if they were begun, else now; the next batch is begun.

        Raises:
            Exception: whatever sampling raised.
        """
        start = time.perf_counter()
        sampled = self._finished(rows)
        self.trainer.accelerator.wait_for_everyone()  # no process may be sampling while weights change
        self.trainer.vllm_sampling.push_weights()
        self.trainer.accelerator.wait_for_everyone()
        sampled = sampled or self._sample(rows)
        sampled.metrics.append(("rollouts_ahead/wait_time", time.perf_counter() - start))
        following = self.trainer.pictures.next_rows
        if following is not None:
            self._begun = following, in_thread(self._sample, following)
        return sampled

    def wait(self) -> None:
        """Wait until nothing is being sampled; what was sampled is kept for `take`, and so is an error."""
        if self._begun is not None:
            self._begun[1].exception()

    def _finished(self, rows: list[dict[str, Any]]) -> Sampled | None:
        """What was begun, if it was for these rows; what was begun for others is dropped when it has ended."""
        begun, self._begun = self._begun, None
        if begun is None:
            return None
        if begun[0] is rows:
            return begun[1].result()
        begun[1].exception()
        return None

    def _sample(self, inputs: list[dict[str, Any]]) -> Sampled:
        """All turns of a batch. It reads nothing of the trainer that a step changes."""
        trainer, args = self.trainer, self.trainer.args
        batch = open_batch(inputs, trainer.pictures, trainer.protocol, args.check_images)
        try:
            prompt_ids, images = first_turns(batch.episodes, self.tokens, args.max_reply_tokens)
            together = gcd(len(inputs), trainer.num_generations)  # this process may hold a part of a group
            limit = trainer.limit_of_turn(1)
            first = self.server.speak(prompt_ids, images, limit, together)
            names = [episode.question.id for episode in batch.episodes]
            said = [[{"role": "assistant", "content": ""}] for _ in names]  # the policy fills in the text
            begun = zip(names, prompt_ids, map(list, first[0]), map(list, first[1]), said, images, strict=True)
            rollouts = [Rollout(*row) for row in begun]
            policy = PolicyInTraining(
                rollouts, self.tokens, trainer.eos_token_ids, self._speak_again, trainer.protocol.turns, args.max_reply_tokens
            )  # fmt: skip
            later, metrics = later_turns(batch.episodes, rollouts, policy, trainer.turn_limits, collective=False)
        finally:
            waited = trainer.pictures.release()
        return Sampled(batch, prompt_ids, images, first, later, [*metrics, ("pictures/wait_time", waited)])

    def _speak_again(self, ids: list[list[int]], images: list[list[Any]], limit: int, last: bool) -> tuple:
        return self.server.speak(ids, images, limit, 1)


def in_thread(work: Any, *arguments: Any) -> Future[Any]:
    """Run this in a thread that does not keep a process from ending."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # raised again by whoever asks for the result
            future.set_exception(error)

    Thread(target=run, name="rollouts", daemon=True).start()
    return future

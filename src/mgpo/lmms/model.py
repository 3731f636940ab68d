"""The policy as a model of lmms-eval.

    python -m lmms_eval --model mgpo --model_args pretrained=runs/mine --tasks vstar_bench

lmms-eval passes one text per question. Lines that are lettered options are taken as choices, so that turn 1 withholds
them as in training. What follows them is the task's instruction and is left out, since the turn protocol has its own.
The final answer is returned alone (the task's own letter, or the text in the box), because lmms-eval's tasks look for
that.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from mgpo.asking.settings import limits_for, protocol_for
from mgpo.data.texts import options_in
from mgpo.method.episode import Episode
from mgpo.method.question import LETTERS, MAX_IMAGES, Question
from mgpo.method.rewards import boxed, chosen_letter
from mgpo.policies.local import LocalPolicy
from mgpo.policies.names import trained_with
from mgpo.policies.turn_loop import run_episodes


class MGPO(lmms):
    """The policy behind `mgpo eval`, for lmms-eval's tasks with up to eight images per question.

    Args:
        pretrained: `mgpo-tiny`, a folder or a hub id.
        protocol: mgpo, grpo, direct or adaptive; if not set, as in the policy's training.
        max_turns, min_pixels, max_pixels, coordinates, grounding_tokens, answer_tokens: as the options of `mgpo eval`.
            A task's own `max_new_tokens` is used for the answer if `answer_tokens` is not set and it is larger than the
            trained limit.
        batch_size: questions that are asked together.

    Raises:
        ValueError: an argument is unknown, or several processes were started.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "mgpo-tiny",
        protocol: str | None = None,
        max_turns: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        coordinates: str | None = None,
        grounding_tokens: int | None = None,
        answer_tokens: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(f"model_args: the model mgpo does not take {', '.join(sorted(unknown))}.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("The model mgpo runs in a single process: start lmms-eval without accelerate launch.")
        self.policy, trained = LocalPolicy.load(pretrained), trained_with(pretrained)
        if device not in (None, "cuda", "auto"):
            self.policy.model.to(device)
        self.protocol = protocol_for(self.policy, protocol, max_turns, min_pixels, max_pixels, coordinates, trained)
        self.limits, self._answer_is_set = (
            limits_for(trained, self.protocol, grounding_tokens, answer_tokens),
            bool(answer_tokens),
        )
        self.batch_size_per_gpu = int(batch_size) if str(batch_size).isdigit() else 8

    @property
    def batch_size(self) -> int:
        """Questions that are asked together."""
        return self.batch_size_per_gpu

    @property
    def device(self) -> Any:
        """The device that the model is on."""
        return self.policy.model.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The final answer to each request, in order.

        Raises:
            ValueError: a request has no image, or more than eight.
        """
        answers: list[str] = []
        waiting = iter(requests)
        while batch := list(islice(waiting, self.batch_size)):
            episodes, letters = zip(*[self._episode(request) for request in batch])
            asked = max((request.args[1].get("max_new_tokens") or 0) for request in batch)
            limits = self.limits
            if not self._answer_is_set and asked > limits.answer:
                limits = replace(limits, answer=asked)
            run_episodes(self.policy, episodes, limits)
            answers += [_final_answer(episode, own) for episode, own in zip(episodes, letters)]
        return answers

    def _episode(self, request: Instance) -> tuple[Episode, list[str]]:
        """An episode, and the task's own letters of its choices."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        images = doc_to_visual(self.task_dict[task][split][doc_id])
        if not 1 <= len(images) <= MAX_IMAGES:
            raise ValueError(
                f"Question {doc_id} of {task} has {len(images)} images; the model mgpo takes 1 to {MAX_IMAGES}."
            )
        text, options = options_in(context)
        if not 2 <= len(options) <= len(LETTERS) or not all(option for _, option in options):
            text, options = context, []  # asked unchanged
        choices = tuple(option for _, option in options)
        question = Question(images[0], text or context, choices, id=f"{task}/{doc_id}", more_images=tuple(images[1:]))
        return Episode(question, tuple(images), self.protocol), [letter for letter, _ in options]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported: a policy that looks twice is scored by what it generates."""
        raise NotImplementedError("The model mgpo only generates text: use tasks with output_type generate_until.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: the rounds of such tasks are the task's, while this model takes turns of its own."""
        raise NotImplementedError("The model mgpo runs its own turns: use tasks with output_type generate_until.")


def _final_answer(episode: Episode, letters: list[str]) -> str:
    said = episode.model_turns[-1].text
    given = boxed(said)
    if given is None:
        return said.strip()
    chosen = chosen_letter(given, episode.question.choices)
    return letters[LETTERS.index(chosen)] if chosen else given

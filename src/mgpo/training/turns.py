"""The model in training, so that the turn loop (`mgpo.policies.turn_loop`) drives it like any other policy.

TRL samples the first turns itself. This module records what TRL trains on: which tokens of a rollout the model
sampled, their log-probabilities, and the images of later turns. Token ids are appended to token ids; nothing is
tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mgpo.method.episode import UserTurn
from mgpo.policies.tokens import TurnTokens, as_message
from mgpo.policies.turn_loop import Said

Speak = Callable[[list[list[int]], list[list[Any]], int, bool], tuple[list[list[int]], list[list[float]] | None]]
"""Token ids, images, the limit of new tokens and whether it is the last turn -> new ids and, from some engines, their
log-probabilities."""


def check_text(name: str, tokens: int, most: int) -> None:
    """Refuse a user turn whose text takes more tokens than `max_reply_tokens`."""
    if tokens > most:
        raise ValueError(
            f"Question {name!r} takes {tokens} tokens of text in a user turn, more than max_reply_tokens={most}. Raise it, or "
            "leave the question out."
        )


@dataclass
class Rollout:
    """One conversation as TRL trains on it.

    Attributes:
        name: the question's id, for messages.
        prompt_ids: the first user turn.
        ids: everything after it, the model's tokens and the environment's.
        mask: 1 for tokens of the model, 0 for tokens of the environment; as long as `ids`.
        logprobs: log-probabilities of the model's tokens, 0 elsewhere; None where the engine gives none.
        messages: the same as `ids`, in TRL's message form.
        images: of all user turns so far.
        speaks: whether the model's next turn is added to it: not after a turn of its own, so not once its episode has ended.
    """

    name: str
    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float] | None
    messages: list[dict[str, Any]]
    images: list[Any]
    mask: list[int] = field(init=False)
    speaks: bool = False

    def __post_init__(self) -> None:
        self.images = list(self.images)  # TRL appends later images to its own list
        self.mask = [1] * len(self.ids)


class PolicyInTraining:
    """Continues the rollouts of one batch after their first turns, which TRL has sampled.

    Args:
        rollouts: in the order of the episodes.
        tokens: how turns become token ids.
        ends: ids that end a turn.
        speak: generates one more turn of the model for all rollouts.
        turns: the largest number of model turns in an episode.
        most_text_tokens: limit of the text of one user turn.
    """

    def __init__(
        self, rollouts: Sequence[Rollout], tokens: TurnTokens, ends: Sequence[int], speak: Speak, turns: int,
        most_text_tokens: int,
    ) -> None:  # fmt: skip
        self.tokens, self.ends, self._speak = tokens, ends, speak
        self.turns, self.most_text_tokens = turns, most_text_tokens
        self.first = [self._said(list(rollout.ids)) for rollout in rollouts]
        for rollout, said in zip(rollouts, self.first, strict=True):
            rollout.messages[-1]["content"] = said.text  # TRL leaves out what the template opened
        self._unopened = iter(rollouts)
        self._number = 1

    def open(self, turn: UserTurn) -> Rollout:
        """The next rollout of the batch, which TRL has opened with this turn."""
        return next(self._unopened)

    def follow(self, conversation: Rollout, said: Said, turn: UserTurn) -> None:
        """Append the environment's turn, which is not trained on.

        Raises:
            ValueError: its text is over the limit.
        """
        ids = self.tokens.reply(turn, closed=said.ids[-1:] == [self.tokens.turn_end_id])
        check_text(conversation.name, self.tokens.text_tokens_of(ids, turn), self.most_text_tokens)
        conversation.ids += ids
        conversation.mask += [0] * len(ids)
        if conversation.logprobs is not None:
            conversation.logprobs += [0.0] * len(ids)
        conversation.images += turn.images
        conversation.messages.append(as_message(turn))
        conversation.speaks = True

    def say(self, conversations: Sequence[Rollout], max_new_tokens: int, temperature: float = 1.0) -> list[Said]:
        """The next turn of all rollouts, sampled with the trainer's settings; turns of ended rollouts are discarded."""
        self._number += 1
        ids = [rollout.prompt_ids + rollout.ids for rollout in conversations]
        images = [list(rollout.images) for rollout in conversations]
        new_ids, new_logprobs = self._speak(ids, images, max_new_tokens, self._number == self.turns)
        turns = [self._said(ids) for ids in new_ids]
        for i, (rollout, turn) in enumerate(zip(conversations, turns, strict=True)):
            if not rollout.speaks:
                continue
            rollout.ids += turn.ids
            rollout.mask += [1] * len(turn.ids)
            if rollout.logprobs is not None and new_logprobs is not None:
                rollout.logprobs += new_logprobs[i]
            rollout.messages.append({"role": "assistant", "content": turn.text})
            rollout.speaks = False
        return turns

    def _said(self, ids: list[int]) -> Said:
        text = self.tokens.decode(ids)
        return Said(ids, text, not ids or ids[-1] not in self.ends)

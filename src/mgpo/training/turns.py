"""The model in training as a `Policy`, so that the turn loop (`mgpo.policies.turn_loop`) drives it like any other.

TRL samples the first turns itself. This module also records what TRL trains on: which tokens of a rollout the model
sampled, their log-probabilities, and the images of later turns. Token ids are appended to token ids; nothing is
tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mgpo.images.imaging import PixelBudget
from mgpo.method.protocol import UserTurn
from mgpo.policies.tokens import TurnTokens
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
        image: the image of the first user turn, in a list.
        later: the images of the other user turns.
        speaks: whether the model's next turn is added to it; False once its episode has ended.
    """

    name: str
    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float] | None
    messages: list[dict[str, Any]]
    image: list[Any]
    mask: list[int] = field(default_factory=list)
    later: list[Any] = field(default_factory=list)
    speaks: bool = True


class PolicyInTraining:
    """Continues the rollouts of one batch. It is `collective`, as calls to the model are under ZeRO-3 and FSDP.

    Args:
        rollouts: in the order of the episodes; their first turns are already sampled.
        tokens: how turns become token ids.
        ends: ids that end a turn.
        speak: generates one more turn of the model for all rollouts.
        turns: the largest number of model turns in an episode.
        most_text_tokens: limit of the text of one user turn.
    """

    collective = True

    def __init__(
        self, rollouts: Sequence[Rollout], tokens: TurnTokens, ends: Sequence[int], speak: Speak, turns: int,
        most_text_tokens: int,
    ) -> None:  # fmt: skip
        self.tokens, self.ends, self._speak = tokens, ends, speak
        self.turns, self.most_text_tokens = turns, most_text_tokens
        self._unopened = iter(rollouts)
        self._number = 0
        self.budget, self.coordinates = None, None

    def set_budget(self, budget: PixelBudget) -> None:
        """Do nothing: the trainer's processor is already set to the budget."""

    def open(self, turn: UserTurn) -> Rollout:
        """The next rollout of the batch, which TRL has opened with this turn."""
        return next(self._unopened)

    def follow(self, conversation: Rollout, said: Said, turn: UserTurn) -> None:
        """Append the environment's turn, which is not trained on.

        Raises:
            ValueError: its text is over the limit.
        """
        ids = self.tokens.reply(turn, closed=said.ids[-1:] == [self.tokens.eos_id])
        check_text(conversation.name, len(ids) - self.tokens.image_tokens(turn.image), self.most_text_tokens)
        conversation.ids += ids
        conversation.mask += [0] * len(ids)
        if conversation.logprobs is not None:
            conversation.logprobs += [0.0] * len(ids)
        conversation.later.append(turn.image)
        conversation.messages.append(
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turn.text}]}
        )
        conversation.speaks = True

    def say(self, conversations: Sequence[Rollout], max_new_tokens: int, temperature: float = 1.0) -> list[Said]:
        """The next turn of all rollouts, sampled with the trainer's settings; turns of ended rollouts are discarded."""
        self._number += 1
        if self._number == 1:
            new_ids, new_logprobs = [list(rollout.ids) for rollout in conversations], None
        else:
            ids = [rollout.prompt_ids + rollout.ids for rollout in conversations]
            images = [rollout.image + rollout.later for rollout in conversations]
            new_ids, new_logprobs = self._speak(ids, images, max_new_tokens, self._number == self.turns)
        texts = [self.tokens.tokenizer.decode(ids, skip_special_tokens=True) for ids in new_ids]
        for i, rollout in enumerate(conversations):
            if rollout.speaks:
                self._keep(rollout, new_ids[i], new_logprobs[i] if new_logprobs else None, texts[i])
        return [Said(ids, text, not ids or ids[-1] not in self.ends) for ids, text in zip(new_ids, texts)]

    def _keep(self, rollout: Rollout, ids: list[int], logprobs: list[float] | None, text: str) -> None:
        rollout.mask += [1] * len(ids)
        if self._number > 1:
            rollout.ids += ids
            if rollout.logprobs is not None:
                rollout.logprobs += logprobs or []
        if rollout.messages[-1]["role"] != "assistant":
            rollout.messages.append({"role": "assistant", "content": text})
        rollout.speaks = False

    def write(self, text: str) -> Said:
        """Refused: controls are for evaluation."""
        raise NotImplementedError("A rollout that is trained on holds only what the model sampled.")

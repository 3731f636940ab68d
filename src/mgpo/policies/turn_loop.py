"""The turn loop between a policy and an environment, used by training, evaluation, `mgpo ask` and serving.

A policy is any object that continues conversations: a model in this process (`mgpo.policies.local`), the model in
training (`mgpo.training.turns`), or a server behind an endpoint (`mgpo.policies.endpoint`). Each policy decides how it
represents a conversation, as token ids or as messages.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm
from mgpo.method.episode import Episode, UserTurn
from mgpo.method.protocol import Method
from mgpo.method.protocol import Protocol as TurnProtocol


@dataclass(frozen=True)
class Said:
    """One turn of the model: its tokens (`ids`, where they are known), its text, and whether it hit its token limit.

    `refused` is why a server did not let the model speak; empty if it did.
    """

    ids: list[int]
    text: str
    truncated: bool
    refused: str = ""


class Writer(Protocol):
    """The part of a policy that writes conversations down, without a model. Its conversations are opaque to callers."""

    def open(self, turn: UserTurn) -> Any:
        """A conversation that consists of one user turn."""

    def follow(self, conversation: Any, said: Said, turn: UserTurn) -> None:
        """Append what the model said and the next user turn."""


class Speaker(Writer, Protocol):
    """What the turn loop needs of a policy."""

    def say(self, conversations: Sequence[Any], max_new_tokens: int, temperature: float = 0.0) -> list[Said]:
        """The model's next turn in each conversation."""


class Policy(Speaker, Protocol):
    """Interface of a policy that is asked questions.

    `budget` and `box_form` are those that its model is used to; `box_form` is None if that is not known.
    """

    @property
    def budget(self) -> PixelBudget:
        """Pixels that an image may have."""

    @property
    def box_form(self) -> BoxForm | None:
        """How the model writes boxes."""

    def set_budget(self, budget: PixelBudget) -> None:
        """Set the pixel budget that every image will be within."""

    # A policy whose model runs in this process also has `go_on(conversations, begun, max_new_tokens)`: see
    # `mgpo.policies.local`.

    def write(self, text: str) -> Said:
        """A turn with this text, as if the model had said it. Controls use it in place of the model's own turn."""


class GivenFirst:
    """A policy whose first turn is given; the later turns are its own."""

    def __init__(self, policy: Speaker, first: Sequence[Said]) -> None:
        self.policy, self._first = policy, list(first)
        self.open, self.follow = policy.open, policy.follow

    def say(self, conversations: Sequence[Any], max_new_tokens: int, temperature: float = 0.0) -> list[Said]:
        """The given turns in the first call, the policy's own turns afterwards."""
        if self._first:
            first, self._first = self._first, []
            return first
        return self.policy.say(conversations, max_new_tokens, temperature)


@dataclass(frozen=True)
class TurnLimits:
    """Limits of new tokens: of a turn that names a region, and of the last turn."""

    grounding: int = 128
    answer: int = 512


@dataclass(frozen=True)
class Asked:
    """What the turn loop wants next: one turn of the model in each of these conversations, of so many new tokens at most."""

    conversations: list[Any]
    max_new_tokens: int


def run_episodes(
    policy: Speaker,
    episodes: Sequence[Episode],
    limits: TurnLimits,
    temperature: float = 0.0,
    turns: int | None = None,
    on_turn: Callable[[int], None] | None = None,
    collective: bool = False,
) -> list[list[Said]]:
    """Run episodes to their end, all of them as one batch per turn.

    Args:
        policy: the policy that takes the model's turns.
        episodes: fresh episodes of one protocol, filled in place. An episode that is already open starts from its
            opening.
        limits: token limits of the turns.
        temperature: 0 decodes greedily.
        turns: stop after this many turns of the model, even if an episode has not ended.
        on_turn: called with the index of each episode as soon as its turn was read.
        collective: ask all conversations in every turn, ended ones too, up to the last turn, and discard what ended ones
            say: every process must make the same calls to a model whose weights are sharded.

    Returns:
        The model's turns of each episode, in order.
    """
    loop = turn_by_turn(policy, episodes, limits, turns, on_turn, collective)
    said: list[Said] | None = None
    while True:
        try:
            asked = next(loop) if said is None else loop.send(said)
        except StopIteration as ended:
            heard: list[list[Said]] = ended.value
            return heard
        said = policy.say(asked.conversations, asked.max_new_tokens, temperature)


def turn_by_turn(
    writer: Writer,
    episodes: Sequence[Episode],
    limits: TurnLimits,
    turns: int | None = None,
    on_turn: Callable[[int], None] | None = None,
    collective: bool = False,
) -> Generator[Asked, list[Said], list[list[Said]]]:
    """The turn loop without a model: it yields what it asks and is sent what the model said. Arguments as of `run_episodes`.

    Whoever drives it may wait for the model in any way, as the coroutine of verl's agent loop does.
    """
    heard: list[list[Said]] = [[] for _ in episodes]
    conversations = [writer.open(e.user_turns[0] if e.user_turns else e.opening()) for e in episodes]
    running = list(range(len(episodes)))
    for number in range(1, (turns or episodes[0].protocol.turns) + 1):
        limit = limit_of(episodes[0].protocol, number, limits)
        asked = range(len(episodes)) if collective else running
        said = dict(zip(asked, (yield Asked([conversations[i] for i in asked], limit)), strict=True))
        still = []
        for i in running:
            heard[i].append(said[i])
            reply = episodes[i].reply(said[i].text, said[i].truncated)
            if on_turn is not None:
                on_turn(i)
            if reply is not None:
                writer.follow(conversations[i], said[i], reply)
                still.append(i)
        running = still
        if not running and not collective:
            break
    return heard


def limit_of(protocol: TurnProtocol, number: int, limits: TurnLimits) -> int:
    """The limit of new tokens of the model's turn `number`, counted from 1."""
    if protocol.method is Method.GRPO or number == protocol.turns:
        return limits.answer
    only_a_box = number == 1 and protocol.method is not Method.ADAPTIVE
    return limits.grounding if only_a_box else max(limits.grounding, limits.answer)

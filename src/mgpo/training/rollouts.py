"""The rollouts of one batch: their episodes, their first user turns, and their later turns as TRL trains on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mgpo.method.episode import Episode
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import GivenFirst, TurnLimits, run_episodes
from mgpo.training.ahead import PicturesAhead
from mgpo.training.turns import PolicyInTraining, Rollout, check_text

NOT_FOR_REWARDS = ("image", "more_images", "gold_boxes", "gold_boxes_px_original", "gold_image")
"""Columns that reward functions do not get: images, and what must reach neither prompt nor reward."""


@dataclass(frozen=True)
class Batch:
    """Open episodes, one per rollout, and the rows that TRL is given for them."""

    episodes: list[Episode]
    rows: list[dict[str, Any]]


def open_batch(
    inputs: Sequence[dict[str, Any]], pictures: PicturesAhead, protocol: Protocol, check: Callable[[Question], None]
) -> Batch:
    """Open an episode per rollout; each photograph is opened once for all that show it.

    Args:
        inputs: a row of the data set per rollout.
        pictures: opens their photographs.
        protocol: the turn protocol.
        check: raises for a question that cannot be trained on.
    """
    batch = Batch([], [])
    pictures.begin(inputs)
    for row in inputs:
        question = Question.from_row(row)
        check(question)
        opened = [pictures.open(image, question.id) for image in question.images]
        episode = Episode(question, tuple(one.photograph for one in opened), protocol)
        turn = episode.opening([one.shown for one in opened])
        batch.episodes.append(episode)
        batch.rows.append(
            {name: value for name, value in row.items() if name not in NOT_FOR_REWARDS}
            | {"prompt": [{"role": "user", "content": turn.text}], "images": list(turn.images)}
        )
    return batch


def first_turns(
    episodes: Sequence[Episode], tokens: TurnTokens, most_text_tokens: int
) -> tuple[list[list[int]], list[list[Any]]]:
    """The first user turns as token ids, and their images.

    Raises:
        ValueError: a text is over the limit.
    """
    turns = [episode.user_turns[0] for episode in episodes]
    prompt_ids = [tokens.opening(turn) for turn in turns]
    for episode, ids in zip(episodes, prompt_ids):
        check_text(episode.question.id, tokens.text_tokens_of(ids, episode.user_turns[0]), most_text_tokens)
    return prompt_ids, [list(turn.images) for turn in turns]


def later_turns(
    episodes: Sequence[Episode],
    rollouts: Sequence[Rollout],
    policy: PolicyInTraining,
    limits: TurnLimits,
    collective: bool,
) -> tuple[tuple, list[tuple[str, float]]]:
    """Read the first turns of the model and run the later ones.

    Args:
        episodes: open ones.
        rollouts: of the episodes, with the model's first turns.
        policy: continues these rollouts.
        limits: of new tokens.
        collective: see `run_episodes`.

    Returns:
        What TRL's `_tool_call_loop` returns: masks, messages, ids, log-probabilities, the number of rollouts that were
        replied to and of those without a box, and the images of later turns; and metrics, by name.
    """
    heard = run_episodes(GivenFirst(policy, policy.first), episodes, limits, collective=collective)
    metrics = [
        (f"turns/{number}_tokens", float(len(turn.ids))) for said in heard for number, turn in enumerate(said, 1)
    ]
    shown = [rollout.images[len(e.question.images) :] for rollout, e in zip(rollouts, episodes, strict=True)]
    for rollout in rollouts:
        policy.tokens.check(rollout.prompt_ids + rollout.ids, rollout.images, rollout.name)
    answered = [episode.first_grounding for episode in episodes if len(episode.user_turns) > 1]
    failures = sum(1 for grounding in answered if grounding.box_px_original is None)
    logprobs = [rollout.logprobs for rollout in rollouts]
    trained_on = (
        [rollout.mask for rollout in rollouts],
        [rollout.messages for rollout in rollouts],
        [rollout.ids for rollout in rollouts],
        None if any(row is None for row in logprobs) else logprobs,
    )
    return (*trained_on, len(answered), failures, shown), metrics

"""What verl trains on: one rollout's token ids, which of them the model sampled, and its images. No verl here.

Ids are appended to ids; nothing is decoded and tokenised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mgpo.method.episode import UserTurn
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import Said
from mgpo.training.turns import check_text


@dataclass
class VerlRollout:
    """One conversation.

    Attributes:
        name: the question's id, for messages.
        prompt_ids: the first user turn.
        ids: everything after it, the model's tokens and the environment's.
        mask: 1 for tokens of the model, 0 for tokens of the environment; as long as `ids`.
        logprobs: log-probabilities of the model's tokens, 0 elsewhere; None once a turn came without them.
        images: of all user turns so far, at the size at which the model sees them.
        cut: how many turns were cut at a token that the model must not write.
    """

    name: str
    prompt_ids: list[int]
    images: list[Image.Image]
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    cut: int = 0

    def append(self, ids: Sequence[int], sampled: int, logprobs: Sequence[float] | None = None) -> None:
        """Add ids that the model sampled (1) or that the environment wrote (0)."""
        self.ids += ids
        self.mask += [sampled] * len(ids)
        given = logprobs if sampled else [0.0] * len(ids)
        self.logprobs = None if self.logprobs is None or given is None else [*self.logprobs, *given]


class RolloutWriter:
    """Writes rollouts, as the turn loop asks for it (`mgpo.policies.turn_loop.Writer`).

    Args:
        tokens: how turns become token ids.
        most_text_tokens: limit of the text of one user turn.
        processor_kwargs: what verl's worker will call the processor with.
    """

    def __init__(self, tokens: TurnTokens, most_text_tokens: int, processor_kwargs: Mapping[str, Any]) -> None:
        self.tokens, self.most_text_tokens = tokens, most_text_tokens
        self.processor_kwargs = dict(processor_kwargs)
        self.name = ""
        tokenizer = tokens.tokenizer
        self._ends = {tokens.turn_end_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        self._banned = frozenset(tokens.banned_ids())

    def open(self, turn: UserTurn) -> VerlRollout:
        """A rollout that consists of one user turn.

        Raises:
            ValueError: its text is over the limit.
            RuntimeError: verl's processor would resize an image.
        """
        ids = self.tokens.opening(turn)
        self._check(ids, turn)
        return VerlRollout(self.name, ids, list(turn.images))

    def follow(self, rollout: VerlRollout, said: Said, turn: UserTurn) -> None:
        """Append the environment's turn, after an end of the model's turn where it wrote none: neither is trained on.

        Raises:
            ValueError: its text is over the limit.
            RuntimeError: verl's processor would resize an image.
        """
        ids = self.tokens.reply(turn, closed=rollout.ids[-1:] == [self.tokens.turn_end_id])
        self._check(ids, turn)
        rollout.append(ids, 0)
        rollout.images += turn.images

    def hear(self, rollout: VerlRollout, ids: Sequence[int], logprobs: Sequence[float] | None, limit: int) -> Said:
        """Append the model's turn, as it was sampled.

        It is cut before a token that stands for an image or begins a turn: an image token without features would stop the
        update of the whole batch. Such a turn is ended by the environment and counts as truncated.
        """
        ids = list(ids)[:limit]
        at = next((i for i, token in enumerate(ids) if token in self._banned), None)
        kept = ids[:at]
        rollout.append(kept, 1, None if logprobs is None else list(logprobs)[: len(kept)])
        if at is not None:
            rollout.cut += 1
            rollout.append([self.tokens.turn_end_id], 0)
        return Said(kept, self.tokens.decode(kept), not kept or kept[-1] not in self._ends)

    def check_whole(self, rollout: VerlRollout) -> None:
        """Check that the rollout holds as many image tokens as its images have features.

        Raises:
            RuntimeError: it does not.
        """
        self.tokens.check(rollout.prompt_ids + rollout.ids, rollout.images, rollout.name)

    def _check(self, ids: Sequence[int], turn: UserTurn) -> None:
        check_text(self.name, self.tokens.text_tokens_of(ids, turn), self.most_text_tokens)
        images = self.tokens.processor.image_processor
        for image in turn.images:
            _, rows, columns = self.tokens.grid(image)
            patches = images.get_number_of_image_patches(image.height, image.width, self.processor_kwargs)
            if patches != rows * columns:
                raise RuntimeError(
                    f"verl's processor would cut an image of {image.width}x{image.height} px into {patches} patches, not "
                    f"{rows} x {columns}: its pixel budget differs from the protocol's. Leave min_pixels and max_pixels out of "
                    "data.mm_processor_kwargs, or set both as for MGPOAgentLoop."
                )

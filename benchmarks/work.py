"""What the phases of a step must compute, read and send, from the lengths of its episodes alone.

`benchmarks.phases` counts a step that was run; this module counts one that was not, from the same sums (`benchmarks.flops`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import Qwen2_5_VLConfig

from benchmarks import flops
from benchmarks.flops import Work
from mgpo.planning.sizes import Size


@dataclass(frozen=True)
class Episode:
    """Mean lengths in tokens.

    Attributes:
        question: text of the first user turn.
        overview: visual tokens of the image in it.
        reply, crop: text and visual tokens of each later user turn.
        said: what the model says in each of its turns.
        longest: the longest of each turn in a batch, which all rollouts wait for.
        new_crops: share of the later images that the tower has not seen in the step; the others are overviews shown again.
    """

    question: float
    overview: float
    reply: float
    crop: float
    said: Sequence[float]
    longest: Sequence[float]
    new_crops: float = 1.0

    @property
    def prompt(self) -> int:
        """Tokens before the model's first turn."""
        return round(self.question + self.overview)

    @property
    def added(self) -> int:
        """Tokens of each later user turn."""
        return round(self.reply + self.crop)

    @property
    def own(self) -> int:
        """Tokens of a rollout after its prompt."""
        return sum(map(round, self.said)) + (len(self.said) - 1) * self.added

    @property
    def turns(self) -> list[range]:
        """Where each of the model's turns is among the rollout's own tokens."""
        found, at = [], 0
        for said in map(round, self.said):
            found.append(range(at, at + said))
            at += said + self.added
        return found


def config_of(size: Size, head: int = 128, whole: Sequence[int] = (7, 15, 23, 31)) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's configuration of this size; `whole` are the tower's layers without windows."""
    text = {
        "hidden_size": size.hidden, "intermediate_size": size.inner, "num_hidden_layers": size.layers,
        "num_attention_heads": size.queries // head, "num_key_value_heads": size.key_value // head, "vocab_size": size.vocabulary,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    vision = {
        "depth": size.tower.depth, "hidden_size": size.tower.hidden, "intermediate_size": size.tower.inner, "num_heads": 16,
        "out_hidden_size": size.hidden, "patch_size": size.patch, "fullatt_block_indexes": list(whole), "window_size": 112,
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)


def image(config: Any, tokens: float) -> Work:
    """One image of about so many visual tokens, nearly square."""
    side = config.vision_config.spatial_merge_size
    rows = max(1, math.isqrt(round(tokens)))
    return flops.image(config, (side * rows, side * round(tokens / rows)))


def prefilled(config: Any, episode: Episode, rollouts: int) -> Work:
    """A question's prompt once, and what the environment adds to each of its rollouts, with the images."""
    work = image(config, episode.overview) + flops.continued(0, episode.prompt - 1)
    for turn in episode.turns[1:]:
        work += flops.continued(episode.prompt - 1 + turn.start - episode.added, episode.added) * rollouts
        work += image(config, episode.crop) * round(rollouts * episode.new_crops)
    return work


def sampled(episode: Episode, rollouts: int) -> Work:
    """All turns of a question's rollouts, token by token."""
    turns = episode.turns
    return sum((flops.continued(episode.prompt - 1 + t.start, len(t), range(len(t))) * rollouts for t in turns), Work())


def updated(config: Any, episode: Episode, rollouts: int, prompts: int, frozen: bool, shared: bool = True) -> Work:
    """One pass over rollouts; with `shared`, over so many prompts once, and only what the model said is scored."""
    seen = (
        Work()
        if frozen
        else image(config, episode.crop) * round(rollouts * episode.new_crops * (len(episode.said) - 1))
    )
    shown = prompts if shared else rollouts
    seen += Work() if frozen else image(config, episode.overview) * shown
    if not shared:
        whole = episode.prompt + episode.own
        return seen + flops.continued(0, whole, range(whole)) * rollouts
    one = flops.continued(episode.prompt - 1, episode.own)
    for turn in episode.turns:
        said = flops.continued(episode.prompt - 1, episode.own, turn)
        one += Work(scored=said.scored, scored_pairs=said.scored_pairs)
    return seen + flops.continued(0, episode.prompt - 1) * prompts + one * rollouts


@dataclass(frozen=True)
class Operations:
    """Of matrix products with weights, and of attention."""

    products: float
    attention: float

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.products + other.products, self.attention + other.attention)

    @property
    def total(self) -> float:
        """Both."""
        return self.products + self.attention


def ahead(config: Any, work: Work) -> Operations:
    """Of a forward pass."""
    return _parted(flops.forward(config, work), flops.forward(config, _without_pairs(work)))


def back(config: Any, work: Work, frozen: bool) -> Operations:
    """Of a backward pass."""
    whole, bare = (flops.backward(config, w, tower_trained=not frozen) for w in (work, _without_pairs(work)))
    return _parted(whole, bare)


def _parted(whole: float, products: float) -> Operations:
    return Operations(products, whole - products)


def _without_pairs(work: Work) -> Work:
    return replace(work, pairs=0, scored_pairs=0, window_pairs=0, image_pairs=0)


def read_weights(config: Any) -> float:
    """Weights that are read to sample a token: each is in one product of two operations."""
    return flops.language(config, Work(tokens=1, scored=1)) / 2

"""Settings of the agent loop: what the YAML list beside its name and class may say.

They have the names and defaults of a recipe (docs/settings.md), and `score`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgpo.errors import suggestion
from mgpo.images.imaging import PixelBudget
from mgpo.method.protocol import Protocol
from mgpo.policies.families import form_of
from mgpo.policies.pictures import Grid, pictures_of
from mgpo.policies.turn_loop import TurnLimits

PROTOCOL = ("method", "max_turns", "crop_frame", "min_box_side", "max_box_aspect", "coordinates")
TOKENS = ("max_grounding_tokens", "max_answer_tokens", "max_reply_tokens")
PIXELS = ("min_pixels", "max_pixels")
NAMES = (*PROTOCOL, *TOKENS, *PIXELS, "max_images", "score")


@dataclass(frozen=True)
class LoopSettings:
    """How `MGPOAgentLoop` asks.

    Attributes:
        protocol: the turn protocol, with the pixel budget of every image shown.
        limits: token limits of the model's turns.
        most_text_tokens: token limit of the text of one user turn.
        most_images: most images that a question shows.
        score: whether the agent loop sets the reward; if not, verl's reward loop does (`mgpo.verl.reward`).
        processor_kwargs: arguments with which verl and its engines call the processor. They hold the budget's two limits, so
            that none of them resizes an image again.
    """

    protocol: Protocol
    limits: TurnLimits
    most_text_tokens: int
    most_images: int
    score: bool
    processor_kwargs: dict[str, Any]

    @classmethod
    def read(
        cls, given: Mapping[str, Any], processor: Any, model_type: str | None, processor_kwargs: Mapping[str, Any]
    ) -> LoopSettings:
        """Read settings.

        Args:
            given: by name; the paper's values stand for those that are missing.
            processor: the model's processor.
            model_type: of the model's configuration.
            processor_kwargs: verl's `data.mm_processor_kwargs`, whose pixel limits count where `given` has none.

        Raises:
            ValueError: a name is unknown, the two pixel budgets differ, the family's images are not one grid of patches, or it
                is not known how it writes boxes.
        """
        for name in given:
            if name not in NAMES:
                raise ValueError(f"MGPOAgentLoop: unknown setting {name!r}.{suggestion(name, NAMES)}")
        pictures = pictures_of(processor)
        if not isinstance(pictures, Grid):
            raise ValueError(
                f"MGPOAgentLoop needs a processor that cuts an image into one grid of patches, as those of Qwen-VL do, not "
                f"{type(processor).__name__}."
            )
        for name in PIXELS:
            one, other = given.get(name), processor_kwargs.get(name)
            if one is not None and other is not None and one != other:
                raise ValueError(
                    f"{name} is {one} for MGPOAgentLoop and {other} in data.mm_processor_kwargs. Set both alike, or one of them."
                )
        least, most = (given.get(name) or processor_kwargs.get(name) for name in PIXELS)
        budget = PixelBudget.usual(pictures.factor).changed(least, most)
        usual = TurnLimits()
        return cls(
            Protocol.from_settings(given, budget, form_of(model_type or "")),
            TurnLimits(
                given.get("max_grounding_tokens", usual.grounding), given.get("max_answer_tokens", usual.answer)
            ),
            given.get("max_reply_tokens", 640),
            given.get("max_images", 1),
            given.get("score", True),
            {**processor_kwargs, "min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels},
        )

    @property
    def lengths(self) -> tuple[int, int]:
        """Most tokens of the first user turn, and of everything after it."""
        parts = self.protocol.episode_parts(
            self.most_images, self.most_text_tokens, self.limits.grounding, self.limits.answer
        )
        prompt = parts["question"] + parts["overview"]
        return prompt, sum(parts.values()) - prompt

    def refuse_too_short(self, rollout: Any) -> None:
        """Check that the longest episode fits into verl's lengths: a response that verl cut would lose image tokens.

        Raises:
            ValueError: it does not fit; the message says what would.
        """
        prompt, response = self.lengths
        held = rollout.max_model_len
        if rollout.prompt_length < prompt or rollout.response_length < response:
            raise ValueError(
                f"The longest episode takes {prompt} tokens of prompt and {response} of response, more than verl's "
                f"{rollout.prompt_length} and {rollout.response_length}. Set data.max_prompt_length={prompt} and "
                f"data.max_response_length={response}, or lower max_pixels, max_reply_tokens or the limits of the turns."
            )
        if held is not None and held < prompt + response:
            raise ValueError(
                f"actor_rollout_ref.rollout.max_model_len={held} cannot hold the longest episode of {prompt + response} "
                "tokens. Raise it, or leave it out."
            )

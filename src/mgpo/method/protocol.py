"""The settings of the turn protocol: how a question is asked, in how many turns, and how boxes are written.

    question -> opening (overview, request for a box) -> policy -> reply (crop, question) -> policy -> answer

Training, evaluation, inference, serving and every engine share it. `mgpo.method.prompts` holds the texts of its user
turns, `mgpo.method.episode` drives one rollout through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm, BoxRules


class Method(StrEnum):
    """How a question is asked."""

    MGPO = "mgpo"
    """Box first, crop, then the answer: two or more turns."""
    GRPO = "grpo"
    """One turn: the box as JSON and the boxed answer (the paper's baseline)."""
    ADAPTIVE = "adaptive"
    """As `mgpo`, but turn 1 may answer at once: it is asked for a box only if it needs one. For evaluation."""
    DIRECT = "direct"
    """One turn: the boxed answer alone (what supervised fine-tuning trains)."""


class CropFrame(StrEnum):
    """Which image a further box (turn 2 and later, K > 2) refers to."""

    LATEST = "latest"
    """The image shown last (paper, Algorithm 1)."""
    ORIGINAL = "original"
    """Always the overview."""


def method_named(name: str) -> Method:
    """The method of a training or an evaluation; a model that was trained by `sft` answers directly.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in (*Method, "sft"):
        raise ValueError(f"protocol {name!r} is unknown. Choose one of: {', '.join(Method)}.")
    return Method.DIRECT if name == "sft" else Method(name)


@dataclass(frozen=True)
class Protocol:
    """Settings of the turn protocol.

    Attributes:
        method: how a question is asked.
        max_turns: K, the largest number of model turns; only `mgpo` and `adaptive` use more than one.
        crop_frame: which image a further box refers to, with K > 2.
        box: when a box is valid and how it is written.
        budget: pixel budget of every image shown.
        tool: name of the tool by which the model names a region, for `adaptive`; if None, it writes the box as JSON.
    """

    method: Method = Method.MGPO
    max_turns: int = 2
    crop_frame: CropFrame = CropFrame.LATEST
    box: BoxRules = BoxRules()
    budget: PixelBudget = PixelBudget()
    tool: str | None = None

    def __post_init__(self) -> None:
        if self.tool is not None and self.method is not Method.ADAPTIVE:
            raise ValueError(
                f"A model that may call the tool {self.tool!r} decides by itself whether to look again: set method to "
                f"{Method.ADAPTIVE}, not {self.method}."
            )
        if self.looks_again and self.max_turns < 2:
            raise ValueError(
                f"MGPO needs max_turns of at least 2 (one to ground, one to answer), not {self.max_turns}."
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], budget: PixelBudget, own_form: BoxForm | None) -> Protocol:
        """Build a protocol from a run's settings (the fields of `MGPOConfig`); missing ones take the paper's values.

        Args:
            settings: settings by name; those that do not concern the protocol are ignored.
            budget: pixel budget of every image shown.
            own_form: how the model's family writes boxes, where the settings say `auto`; None if that is not known.

        Raises:
            ValueError: the method asks for boxes, and neither the settings nor the family say how they are written.
        """
        way, usual = settings.get("method", "mgpo"), BoxRules()
        method = method_named(way)
        written = settings.get("coordinates", "auto")
        form = own_form if written == "auto" else BoxForm.parse(written, own_form)
        if form is None and method is not Method.DIRECT:
            raise ValueError(
                "It is not known how this model family writes boxes. Set coordinates (on the command line: --coordinates) to "
                "absolute, for pixels of the image that the model was given, relative_1000, for thousandths of its sides, or "
                "relative_1, for fractions of them; add yxyx if it writes top before left, and its JSON key if that is not bbox_2d: "
                "'relative_1000 yxyx box_2d'."
            )
        return cls(
            method=method,
            max_turns=settings.get("max_turns", cls.max_turns),
            crop_frame=CropFrame(settings.get("crop_frame", cls.crop_frame)),
            box=BoxRules(
                settings.get("min_box_side", usual.min_side_px),
                settings.get("max_box_aspect", usual.max_aspect),
                form=form or usual.form,
            ),
            budget=budget,
        )

    @property
    def looks_again(self) -> bool:
        """Whether the model is shown the region that it named and gets another turn."""
        return self.method in (Method.MGPO, Method.ADAPTIVE)

    @property
    def turns(self) -> int:
        """The largest number of turns that the model gets."""
        return self.max_turns if self.looks_again else 1

    def episode_parts(self, images: int, text: int, grounding: int, answer: int) -> dict[str, int]:
        """Tokens of the longest episode, part by part, in order. Images count with their two delimiters.

        Args:
            images: most images that a question shows.
            text: token limit of the text of one user turn.
            grounding, answer: token limits of a turn of the model that names a region, and of the last one.
        """
        image, further = self.budget.max_tokens + 2, self.turns - 1
        parts = {"question": text, "overview": images * image}
        if further:
            parts["grounding"] = grounding
            if further > 1:  # turns in between may ground again or answer
                parts["turns in between"] = (further - 1) * max(grounding, answer)
            parts |= {"reply": further * text, "crop": further * image}
        return parts | {"answer": answer}

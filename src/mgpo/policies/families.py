"""Model families: what differs between them, in one frozen description each.

    family_of("qwen3_vl").form                       # thousandths, x1 y1 x2 y2, key bbox_2d
    family_of_name("Qwen/Qwen3-VL-8B-Instruct")      # where only the name is known, e.g. behind an endpoint

Nothing is guessed for an unknown family: a wrong frame would train on wrong crops. What a checkpoint itself says is read there
and not repeated here: where a turn ends, whether the chat template opens a thinking block, and which special tokens must not
be sampled (`mgpo.policies.tokens`). `docs/models.md` says what was tested with each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mgpo.method.boxes import BoxForm, Coordinates

_PIXELS = BoxForm(Coordinates.ABSOLUTE)
_THOUSANDTHS = BoxForm(Coordinates.RELATIVE_1000)


@dataclass(frozen=True)
class Family:
    """What differs between model families.

    Attributes:
        name: as people call it.
        processors: the processor in transformers, by `model_type` of its configurations; none for a family that can only be
            asked behind an endpoint.
        pattern: regular expression of its models' names, in lower case and with hyphens.
        form: how it was trained to write boxes; None where no source says so, and it must be set.
        factor: the sides of its images are multiples of this, in pixels: patch size times merge size; None where images are
            cut into tiles instead (`mgpo.policies.pictures`).
        shares_prompts: whether the rollouts of a question can share its prompt: the sharing of its layers, positions and
            vision tower was tested (`mgpo.policies.shared`).
        source: where the facts are from.
    """

    name: str
    processors: Mapping[str, str]
    pattern: str
    form: BoxForm | None
    factor: int | None
    shares_prompts: bool
    source: str

    @property
    def model_types(self) -> tuple[str, ...]:
        """`model_type` of its configurations."""
        return tuple(self.processors)


FAMILIES = (
    Family(
        "Qwen2-VL", {"qwen2_vl": "Qwen2VLProcessor"},
        r"qwen2-?vl", _THOUSANDTHS, 28, True,
        "arXiv 2409.12191, section 2.1: boxes within [0, 1000)",
    ),
    Family(
        "Qwen2.5-VL", {"qwen2_5_vl": "Qwen2_5_VLProcessor"},
        r"qwen2\.5-?vl|mimo-?vl", _PIXELS, 28, True,
        "arXiv 2502.13923, section 2.1.2: coordinates in the actual dimensions of the input; MiMo-VL keeps architecture and form",
    ),
    Family(
        "Qwen3-VL", {"qwen3_vl": "Qwen3VLProcessor", "qwen3_vl_moe": "Qwen3VLProcessor"},
        r"qwen3-?vl", _THOUSANDTHS, 32, True,
        "cookbook 2d_grounding of the Qwen3-VL repository: relative coordinates from 0 to 1000",
    ),
    Family(
        "Qwen3.5 and later", {"qwen3_5": "Qwen3VLProcessor", "qwen3_5_moe": "Qwen3VLProcessor"},
        r"qwen3\.[5-9]", _THOUSANDTHS, 32, True,
        "as Qwen3-VL, whose processor it uses",
    ),
    Family(
        "GLM-4.5V and 4.6V", {"glm4v": "Glm4vProcessor", "glm4v_moe": "Glm4vProcessor", "glm46v": "Glm46VProcessor"},
        r"glm-?4\.[56]v", BoxForm(Coordinates.RELATIVE_1000, bare=True), 28, True,
        "model cards of GLM-4.5V and GLM-4.6V: boxes in brackets of varying style, in thousandths; GLM-4.6V-Flash is of type glm4v",
    ),
    Family(
        "InternVL 3 and 3.5", {"internvl": "InternVLProcessor"},
        r"internvl", BoxForm(Coordinates.RELATIVE_1000, bare=True), None, False,
        "documentation of InternVL, grounding data: <box>[[x1, y1, x2, y2]]</box>, in thousandths",
    ),
    Family(
        "Kimi-VL", {},
        r"kimi-?vl", BoxForm(Coordinates.RELATIVE_1), None, False,
        "model card of Kimi-VL: coordinates between 0 and 1; its code is not part of transformers, so it is asked behind an endpoint",
    ),
    Family(
        "Idefics 3 and SmolVLM", {"idefics3": "Idefics3Processor", "smolvlm": "SmolVLMProcessor"},
        r"idefics3|smolvlm", None, None, False,
        "no source: their cards show no boxes",
    ),
    Family(
        "Gemma 3 and 4", {"gemma3": "Gemma3Processor", "gemma4": "Gemma4Processor"},
        r"gemma-?(?:3(?!n)|4)", None, None, False,
        "no source: Google documents y1 x1 y2 x2 in thousandths under box_2d for Gemini, not for Gemma",
    ),
)  # fmt: skip


def family_of(model_type: str) -> Family | None:
    """The family of a model type, e.g. `qwen2_5_vl`; None if it is not known."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def processor_of(model_type: str) -> str | None:
    """The processor in transformers of a model type; None if it is not known."""
    family = family_of(model_type)
    return family.processors[model_type] if family else None


def shares_prompts(model_type: str) -> bool:
    """Whether rollouts of models of a type can share their prompts."""
    family = family_of(model_type)
    return family is not None and family.shares_prompts


def form_of(model_type: str) -> BoxForm | None:
    """How models of a type write boxes; None if the family is not known."""
    family = family_of(model_type)
    return family.form if family else None


def family_of_name(model: str) -> Family | None:
    """The family of a model of this name, e.g. `Qwen/Qwen3-VL-8B-Instruct`.

    None if the name holds no known family, or families that write boxes in different ways.
    """
    plain = re.sub(r"[_\s]", "-", model.lower())
    found = [family for family in FAMILIES if re.search(family.pattern, plain)]
    return found[0] if len({family.form for family in found}) == 1 else None


def form_of_name(model: str) -> BoxForm | None:
    """How a model of this name writes boxes; None if the name does not decide it."""
    family = family_of_name(model)
    return family.form if family else None

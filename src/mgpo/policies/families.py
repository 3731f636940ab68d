"""How model families write boxes. It is never guessed for an unknown family: a wrong frame trains on wrong crops.

Qwen2.5-VL is the only one of Qwen's families that writes pixels of the image it was given; MiMo-VL is built on it.
Qwen2-VL, Qwen3-VL and later ones, InternVL and GLM-4.5V and 4.6V write thousandths of the image's sides. Sources: the
model cards and cookbooks of the families.
"""

from __future__ import annotations

import re

from mgpo.method.grounding import Coordinates

FAMILIES = {
    "qwen2_5_vl": Coordinates.ABSOLUTE,  # MiMo-VL's checkpoints have this model type too
    **dict.fromkeys(
        ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "internvl", "glm4v_moe", "glm46v"),
        Coordinates.RELATIVE_1000,
    ),
}
"""How boxes are written, by the model type in a model's configuration."""
NAMES = {
    r"qwen2\.5-?vl|mimo-?vl": Coordinates.ABSOLUTE,
    r"qwen2-?vl|qwen3-?vl|qwen3\.5|internvl|glm-?4\.[56]v": Coordinates.RELATIVE_1000,
}
"""How boxes are written, by a pattern in the model's name, where only the name is known, e.g. behind an endpoint."""


def default_coordinates(model_type: str) -> Coordinates | None:
    """How models of a type, e.g. `qwen2_5_vl`, write boxes; None if the family is not known."""
    return FAMILIES.get(model_type)


def coordinates_of_name(model: str) -> Coordinates | None:
    """How a model of this name, e.g. `Qwen/Qwen3-VL-8B-Instruct`, writes boxes; None if the name does not decide it.

    It does not if it contains no known family, or families that differ.
    """
    plain = re.sub(r"[_\s]", "-", model.lower())
    found = {unit for pattern, unit in NAMES.items() if re.search(pattern, plain)}
    return found.pop() if len(found) == 1 else None

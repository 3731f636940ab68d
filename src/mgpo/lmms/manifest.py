"""The function behind the entry point `lmms_eval.models`.

This module is light and does not import lmms-eval when it is imported itself, because that happens in the middle of
lmms-eval's own import.
"""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """The model `mgpo`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="mgpo", simple_class_path="mgpo.lmms.model.MGPO")]

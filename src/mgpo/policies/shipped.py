"""The checkpoints that come with the package. Importing this loads no model and no library."""

from __future__ import annotations

from importlib.resources import files

TINY, TINY_TRAINED = "mgpo-tiny", "mgpo-tiny-mgpo"
SHIPPED = (TINY, TINY_TRAINED)
"""The base, and what MGPO made of it. They know only the world `needle`."""
KNOWS = "knows only drawn signs, such as `mgpo ask` draws if no photograph is given. For photographs, name another --model, e.g. Qwen/Qwen2.5-VL-3B-Instruct, or one of docs/models.md."


def folder_of(name: str) -> str:
    """The folder of a shipped checkpoint."""
    return str(files("mgpo") / "assets" / name)

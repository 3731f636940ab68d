"""Saves nested state (dicts, lists, tensors, plain values) in one safetensors file, for optimizers and generators.

torch and transformers write such state with pickle, which can run code when it is read. Here tensors are safetensors
and everything around them is JSON, whose bytes are one more tensor of the file. What is read equals what was written,
in type and in every bit (but numpy's scalars come back as Python's).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

SHAPE = "tree"


def save_tree(tree: Any, file: Path) -> None:
    """Write dicts (keys: text or whole numbers), lists, tuples, tensors, text, numbers, booleans and None.

    Raises:
        TypeError: something else is in it; the message says where.
    """
    tensors: dict[str, torch.Tensor] = {}
    shape = json.dumps(_plain(tree, tensors, "")).encode()
    tensors[SHAPE] = torch.frombuffer(bytearray(shape), dtype=torch.uint8)
    save_file(tensors, file)


def load_tree(file: Path) -> Any:
    """Read what `save_tree` wrote; tensors are on the CPU."""
    tensors = load_file(file)
    return _tree(json.loads(bytes(tensors[SHAPE].numpy())), tensors)


def _plain(value: Any, tensors: dict[str, torch.Tensor], where: str) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"tensor {len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
        return {"tensor": name}
    if isinstance(value, Mapping):
        if not all(type(key) in (str, int) for key in value):
            raise TypeError(f"{where or 'The tree'} has keys that are neither text nor whole numbers.")
        return {"dict": [[key, _plain(inner, tensors, f"{where}/{key}")] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_plain(inner, tensors, f"{where}/{number}") for number, inner in enumerate(value)]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{where or 'The tree'} is a {type(value).__name__}, which cannot be saved.")


def _tree(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _tree(one, tensors) for key, one in inner}
    made = [_tree(one, tensors) for one in inner]
    return made if kind == "list" else tuple(made)


def without_tied(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Gathered weights without those that are another name of the same weight: gathered, they no longer share memory.

    A model that was never sharded is saved without them, so that the same model is the same file.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    twice = {
        name
        for name, other in tied.items()
        if name in state and other in state and torch.equal(state[name], state[other])
    }
    return {name: weight for name, weight in state.items() if name not in twice}

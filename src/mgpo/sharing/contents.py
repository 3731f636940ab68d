"""What of a run folder is shared. Only files that are listed here are, so that whatever else lies in it stays private."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token

from mgpo.images.imaging import open_image
from mgpo.policies.names import trained_with
from mgpo.runs.checkpoints import ADAPTER, INDEX, WEIGHTS, model_files
from mgpo.sharing.card import PICTURE, hub_card, without_places
from mgpo.sharing.results import evaluations_of

RECORDS = ("environment.json", "metrics.jsonl")
UNSCANNED = ("*.safetensors", "tokenizer*", "vocab.json", "merges.txt", "*.jpg")
"""Weights, vocabularies and pictures are not searched for secrets: any short word may occur in them."""
LARGEST_PICTURE = 1600
_KEY = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\b(?:ghp_|github_pat_)\w{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|://[^/@\s:]+:[^/@\s]+@|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_SECRET_VARIABLE = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")


@dataclass(frozen=True)
class Item:
    """A file on the hub: its path there, and a file of this machine or the bytes that it will hold."""

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def read(self) -> bytes:
        """All bytes."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass(frozen=True)
class Contents:
    """What is shared, what of the run folder is not, and what its owner should know."""

    items: tuple[Item, ...]
    left_here: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """JPEG bytes of an episode, and sentences about it."""

    data: bytes
    caption: str


def contents_of(run: Path, hub_id: str, results: Sequence[Path] = (), picture: Picture | None = None) -> Contents:
    """All that is shared of a run folder.

    Args:
        run: a folder with a finished model.
        hub_id: what it will be called.
        results, picture: further results folders, and a picture of an episode.

    Raises:
        ValueError: there is no whole model, nobody else could load it, or a file holds a secret.
    """
    model = _model_files(run)
    settings = trained_with(str(run))  # of a checkpoint: those of its run
    evaluations, notes = evaluations_of(run, hub_id, results)
    if not evaluations:
        notes.append(f"No evaluations were found, so the card has no results. mgpo eval --model {run} makes some.")
    card = hub_card(run, hub_id, settings, evaluations, picture and picture.caption)
    items = [Item("README.md", card.encode()), *(Item(file.name, file) for file in model)]
    if settings:
        items.append(Item("config.yaml", yaml.safe_dump(without_places(settings), sort_keys=True).encode()))
    items += [Item(name, run / name) for name in RECORDS if (run / name).is_file()]
    items += [Item(f"results/{e.name}.json", _as_json(e.rows)) for e in evaluations]
    if picture is not None:
        items.append(Item(PICTURE, picture.data))
    _refuse_secrets(items)
    shared = {item.path for item in items}
    left = [entry.name + "/" * entry.is_dir() for entry in sorted(run.iterdir()) if entry.name not in shared]
    return Contents(tuple(items), tuple(left), tuple(notes))


def picture_of_file(file: Path) -> Picture:
    """A picture that the user names, re-encoded: what a camera writes beside the pixels is not shared."""
    return Picture(as_jpeg(open_image(str(file))), "A question, where the model looked, and its answer.")


def as_jpeg(image: Any) -> bytes:
    """An RGB picture as JPEG of at most 1600 pixels a side, without metadata."""
    small = image.copy()
    small.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    small.info.clear()
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return out.getvalue()


def _model_files(run: Path) -> list[Path]:
    files = model_files(run)
    names = {file.name for file in files}
    if not any(fnmatch(name, weights) for name in names for weights in WEIGHTS):
        raise ValueError(f"{run} holds no model (no model.safetensors). Name a finished run, or a checkpoint.")
    if INDEX in names:
        parts = set(json.loads((run / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(parts - names):
            raise ValueError(f"{run} lacks {', '.join(missing[:3])}, which {INDEX} names: the model is not whole.")
    if ADAPTER in names:
        base = json.loads((run / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        if Path(base).is_absolute() or Path(base).is_dir():
            raise ValueError(
                f"The adapters in {run} belong to the model in {base}, a folder that nobody else has. Push that model first, and write "
                f"its hub id as base_model_name_or_path into {run / ADAPTER}."
            )
    return files


def _as_json(rows: Sequence[dict[str, Any]]) -> bytes:
    return (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode()


def _refuse_secrets(items: Sequence[Item]) -> None:
    """Refuse files that hold a key in a known form, or the value of a secret environment variable of this machine."""
    known = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8}
    known |= {token for token in [get_token()] if token}
    for item in items:
        if any(fnmatch(item.path, pattern) for pattern in UNSCANNED):
            continue
        text = item.read().decode("utf-8", "replace")
        if _KEY.search(text) or any(value in text for value in known):
            raise ValueError(
                f"{item.path} seems to hold a key, a token or a password, so nothing is uploaded. Take it out of the run folder, and "
                "replace it where it came from if others could read it."
            )

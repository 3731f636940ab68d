"""Checkpoints on disk: written so that none is seen half-written, and searched for the one to resume from.

A checkpoint is written to `.saving/` in the run folder, sealed by a `manifest.json` that lists all its files with their
sizes, and renamed to `checkpoint-N` when everything is on disk. So a folder called `checkpoint-N` is complete, unless
something else wrote or truncated it, which a comparison with the manifest shows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

from mgpo.errors import CheckpointError
from mgpo.files import flush, write_whole

MANIFEST = "manifest.json"
ASIDE = ".saving"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
INDEX, ADAPTER = "model.safetensors.index.json", "adapter_config.json"
MODEL = (
    *WEIGHTS, INDEX, ADAPTER, "config.json", "generation_config.json", "chat_template.jinja", "chat_template.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
"""Names of the files by which a model is loaded; a checkpoint has others beside them."""
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path) -> None:
    """List all files of a checkpoint in its manifest; everything is on disk when this returns."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    for file in files:
        flush(file)
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    write_whole(folder / MANIFEST, json.dumps({"files": sizes}, indent=1) + "\n")
    flush(folder)


def flaw(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, None if it is complete."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last: it is half-written, or was not written by mgpo"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
    return None


def last_complete(run: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run folder, and a sentence about each newer one that is not complete."""
    if not run.is_dir():
        return None, []
    half = [place for place in (run / ASIDE).glob("checkpoint-*")]
    told = [f"{place} was being written when the run ended: it is skipped." for place in half]
    for place in sorted((p for p in run.iterdir() if _is_checkpoint(p)), key=step_of, reverse=True):
        why = flaw(place)
        if why is None:
            return place, told
        told.append(f"{place} is skipped: {why}.")
    return None, told


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint's run had made, from the checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint} is not called checkpoint-N.")
    return int(match.group(1))


def move_into_place(aside: Path, final: Path) -> None:
    """Give a sealed checkpoint its final name; a folder that already has the name is deleted first."""
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    flush(final.parent)
    shutil.rmtree(aside.parent, ignore_errors=True)


def replace_files(aside: Path, folder: Path) -> None:
    """Move files that were written to `aside` into `folder`, replacing files of the same name."""
    for made in sorted(aside.iterdir()):
        there = folder / made.name
        if there.is_dir():
            shutil.rmtree(there)
        if made.is_file():
            flush(made)
        os.replace(made, there)
    flush(folder)
    shutil.rmtree(aside.parent, ignore_errors=True)


def is_about_the_disk(error: Exception) -> bool:
    """Whether an error comes from the disk. safetensors and tokenizers raise their own, with the system's number."""
    return isinstance(error, OSError) or "os error" in str(error).lower() or "i/o error" in str(error).lower()


def cannot_write(run: Path, step: int, error: Exception) -> CheckpointError:
    """The error for a checkpoint that could not be written to disk; its unfinished files are deleted."""
    shutil.rmtree(run / ASIDE, ignore_errors=True)
    good, _ = last_complete(run)
    kept = f"{good} is complete: the run goes on from there" if good else "There is none yet: the run begins again"
    try:
        free = f" ({shutil.disk_usage(run).free / 1e9:.1f} GB are free there)"
    except OSError:
        free = ""
    return CheckpointError(
        f"The checkpoint of step {step} could not be written to {run}{free}: {error}. {kept} when it is started again with "
        "room and rights to write there."
    )


def model_files(folder: Path) -> list[Path]:
    """The files of a run folder or checkpoint by which its model is loaded."""
    return [file for file in sorted(folder.iterdir()) if file.is_file() and any(fnmatch(file.name, n) for n in MODEL)]


def holds_weights(folder: Path) -> bool:
    """Whether a run folder or checkpoint holds a model's weights, or its adapters."""
    return any(fnmatch(file.name, pattern) for file in folder.iterdir() for pattern in WEIGHTS)


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and _NAME.fullmatch(path.name) is not None

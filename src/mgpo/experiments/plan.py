"""The plan of an experiment, and where its parts are on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from mgpo.files import write_whole

METHODS = ("mgpo", "grpo", "direct", "sft")
"""Names of the recipes `tiny_*`.

MGPO; single-turn GRPO with a box (the paper's baseline); single-turn GRPO on the answer alone; and supervised
fine-tuning on the answer.
"""
TITLES = {"mgpo": "MGPO", "grpo": "GRPO, box and answer", "direct": "GRPO, answer alone", "sft": "SFT"}
EVALUATION_SEED = 9_000
"""Evaluation questions of training seed s come from seed EVALUATION_SEED + s: never trained on."""
VALIDATION_SEED = 8_000
"""Seed of the questions of `train` on which checkpoints and learning rates are chosen; trainings use seeds below it."""


@dataclass(frozen=True)
class Plan:
    """The plan of an experiment.

    Attributes:
        out: folder of everything it writes.
        seeds: training seeds.
        steps: training steps per method, the same for all, so that all see the same number of questions (and all but
            `sft` of rollouts).
        questions: evaluation questions per split and seed.
        validation: number of questions on which every checkpoint is measured.
        checkpoints: checkpoints per training, evenly spaced; the last one is the end.
        methods: which of `METHODS` are trained.
        rates: learning rate by method, where it is not the recipe's.
        workers: number of processes at a time.
    """

    out: Path
    seeds: tuple[int, ...]
    steps: int
    questions: int
    validation: int = 200
    checkpoints: int = 4
    methods: tuple[str, ...] = METHODS
    rates: dict[str, float] = field(default_factory=dict)
    workers: int = 2

    def __post_init__(self) -> None:
        if unknown := [method for method in self.methods if method not in METHODS]:
            raise ValueError(f"methods: {unknown[0]!r} is unknown. Choose among {', '.join(METHODS)}.")

    def run(self, method: str, seed: int) -> Path:
        """The folder that a training writes to."""
        return self.out / f"{method}_seed{seed}"

    @property
    def save_steps(self) -> int:
        """Steps between checkpoints."""
        return max(1, self.steps // self.checkpoints)

    def wanted(self, method: str, trained: bool) -> dict[str, Any]:
        """The mark that a run folder must have to be used."""
        saved = {"steps": self.steps, "save_steps": self.save_steps, "rate": self.rates.get(method)}
        return {"from": fingerprint(method), **saved, "trained": trained}

    @property
    def measured(self) -> dict[str, Any]:
        """The entry that a file of results must have to be used."""
        return {
            "from": fingerprint(*self.methods), "steps": self.steps, "n": self.questions,
            "validated": self.validation, "rates": self.rates, "methods": list(self.methods),
        }  # fmt: skip


@cache
def fingerprint(*methods: str) -> str:
    """A hash of what results depend on besides the plan: base weights, the methods' recipes, the package's version."""
    package = files("mgpo")
    parts = [package / "assets" / "mgpo-tiny" / "model.safetensors"]
    parts += [package / "recipes" / f"tiny_{method}.yaml" for method in methods]
    digest = hashlib.sha256(version("mgpo").encode())
    for part in parts:
        digest.update(part.read_bytes())
    return digest.hexdigest()[:16]


def read_mark(folder: Path) -> dict[str, Any] | None:
    """The mark of a run folder: its plan, and whether the training is done; None if no experiment began the folder."""
    file = folder / "plan.json"
    return json.loads(file.read_text()) if file.is_file() else None


def write_mark(folder: Path, mark: dict[str, Any]) -> None:
    """Write the mark of a run folder."""
    write_whole(folder / "plan.json", json.dumps(mark) + "\n")

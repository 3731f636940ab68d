"""The run folder: it belongs to one run, which one command at a time may train.

`config.yaml` holds the settings that the run began with, and `data.json` a mark that distinguishes its questions.
Resuming with other questions is refused, and so are other settings except those in `MAY_CHANGE`.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import xxhash
import yaml

from mgpo.files import write_whole
from mgpo.runs.checkpoints import last_complete
from mgpo.runs.environment import describe_environment

if TYPE_CHECKING:  # it imports TRL, which takes seconds
    from mgpo.config import MGPOConfig

MAY_CHANGE = re.compile(
    r"output_dir|max_steps|num_train_epochs|(logging|save|eval|log|report|trajectories|disable|run|hub|push|dataset_test|dataloader)_.*"
    r"|.*resume.*|per_device_eval_.*|reward_seconds|max_nonfinite_steps|check_images|vllm_call_seconds|vllm_server_.*"
)
"""Settings that may differ when a run is resumed."""


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, now and not when the first checkpoint is due."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"The run folder {folder} cannot be written to ({error}). Choose another --output_dir."
        ) from error


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock a run folder; the system releases the lock when the process ends, however it ends.

    Raises:
        ValueError: another process writes to it.
    """
    with (folder / ".lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"Another process writes to {folder}. Wait for it, or give this run a folder of its own."
            ) from error
        except OSError:
            print(f"{folder} is on a file system without locks: see to it that no second run is started in it.")
        yield


def mark_of(questions: Any) -> dict[str, Any]:
    """A mark that distinguishes questions from others: their number, and a hash of texts that are held in memory."""
    plain = questions.format["type"] is None and {"question", "answer"} <= set(questions.column_names)
    texts = json.dumps([list(questions["question"]), list(questions["answer"])]) if plain else ""
    return {"questions": len(questions), "texts": xxhash.xxh3_64_hexdigest(texts.encode())}


def write_run_files(folder: Path, settings: dict[str, Any]) -> None:
    """Write `config.yaml` and `environment.json`."""
    write_whole(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=True))
    write_whole(folder / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Add settings to a folder's `config.yaml`, beside those that `mgpo train` wrote; the file is made if missing."""
    file = folder / "config.yaml"
    before = yaml.safe_load(file.read_text()) or {} if file.is_file() else {}
    if before | settings != before:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, yaml.safe_dump(before | settings, sort_keys=True))


def last_checkpoint(folder: Path, trainer: Any) -> str | None:
    """The newest complete checkpoint; newer ones that are incomplete are named in the output."""
    last, skipped = last_complete(folder)
    if trainer.is_world_process_zero():
        for line in skipped:
            print(line)
    return str(last) if last else None


def is_finished(checkpoint: Path, config: MGPOConfig) -> bool:
    """Whether a checkpoint has reached the last step that the settings ask for."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if config.max_steps > 0:
        return state["global_step"] == config.max_steps
    return state["epoch"] >= config.num_train_epochs


def refuse_another_run(folder: Path, settings: dict[str, Any], done: int, mark: dict[str, Any]) -> None:
    """Refuse to resume with other settings or questions, and to overwrite another run.

    A checkpoint's optimizer and schedule are valid only for the settings that it was made with.
    """
    file = folder / "config.yaml"
    made = [*folder.glob("checkpoint-*"), *folder.glob("*.safetensors")]
    if not made or not file.is_file():
        return
    try:
        before = dict(yaml.safe_load(file.read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}), so it is not known whose run {folder} holds.") from error
    before = {key: _resolved(key, value) for key, value in before.items()}
    now = {key: _resolved(key, value) for key, value in settings.items()}
    changed = [k for k in now if not MAY_CHANGE.fullmatch(k) and k in before and now[k] != before[k]]
    if changed:
        told = ", ".join(f"{key} {before.get(key)!r} -> {settings[key]!r}" for key in changed[:5])
        raise ValueError(
            f"{folder} holds a run with other settings ({told}). Give the new run a folder of its own by --output_dir, or "
            "delete this one."
        )
    known = folder / "data.json"
    if known.is_file() and json.loads(known.read_text()) != mark:
        raise ValueError(
            f"{folder} holds a run on other questions: those of {settings['dataset_name']} have changed. Give the new run a "
            "folder of its own by --output_dir; --resume_from_checkpoint begins it with what was learned."
        )
    if not done and any(place.is_dir() for place in made):
        raise ValueError(
            f"{folder} holds checkpoints, but none that is complete (see above). Give the new run a folder of its own by "
            "--output_dir, or delete this one."
        )
    if 0 < settings["max_steps"] < done:
        raise ValueError(
            f"{folder} holds a run of {done} steps already, more than max_steps={settings['max_steps']}. Give the new run "
            "a folder of its own by --output_dir."
        )


def _resolved(key: str, value: Any) -> Any:
    """A path in its resolved spelling, so that spellings do not matter; other settings as they are."""
    is_path = key in ("dataset_name", "model_name_or_path", "needle_backgrounds") and isinstance(value, str)
    return str(Path(value).resolve()) if is_path and Path(value).exists() else value

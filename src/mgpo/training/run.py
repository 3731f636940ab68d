"""`mgpo train`: trains by a recipe and leaves a run folder.

    mgpo train --config recipes/tiny_mgpo.yaml --output_dir runs/mine

A run folder holds `config.yaml` (as resolved), `environment.json` (versions, git state), `metrics.jsonl`,
`trajectories/`, `checkpoint-N/` and, at the end, the model itself.
"""

from __future__ import annotations

import dataclasses
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from mgpo.config import DataArguments, MGPOConfig
from mgpo.data.admitting import Admission, admitted, write_listing
from mgpo.data.loading import load_rows
from mgpo.data.reading import BadRow
from mgpo.data.sources import files_of, unread_columns, unread_note
from mgpo.errors import Stopped
from mgpo.files import write_whole
from mgpo.method.methods import SFT
from mgpo.policies.families import form_of
from mgpo.policies.loading import budget_of, load_processor, model_type_of
from mgpo.policies.tokens import TurnTokens
from mgpo.recipes import refuse_unknown_settings, words_apart
from mgpo.runs.checkpoints import last_complete, step_of
from mgpo.runs.folder import (
    is_finished,
    last_checkpoint,
    mark_of,
    only_one,
    refuse_another_run,
    refuse_unwritable,
    write_run_files,
)
from mgpo.runs.quiet import take_over
from mgpo.training.typed import parse_typed
from mgpo.training.weights import model_kwargs, peft_config

WAYS = (DataArguments, MGPOConfig)
_USER_IN_URL = re.compile(r"://[^/@\s]+@")
_SECRET = re.compile(r"(^|_)(token|api_?key|secret|password)$", re.IGNORECASE)


def parse(argv: list[str], config_class: type[MGPOConfig] = MGPOConfig) -> tuple[DataArguments, MGPOConfig]:
    """Settings from `--config recipe.yaml` and the command line, which wins.

    Args:
        argv: the command line.
        config_class: class of the settings; `mgpo.planning.validate` passes one with further checks.

    Raises:
        ValueError: a key is unknown; the message names the one that was probably meant.
    """
    refuse_unknown_settings(argv, {f.name for way in WAYS for f in dataclasses.fields(way) if f.init})
    data, config = parse_typed((DataArguments, config_class), words_apart(argv))
    return data, config


def train(data: DataArguments, config: MGPOConfig, resume: bool = True) -> Path:
    """Train, and save the model in the run folder. A run that was stopped resumes from its last checkpoint.

    Returns:
        The run folder, `config.output_dir`.

    Raises:
        ValueError: the folder holds a run with other settings, or one that has made more steps than are asked for.
        CheckpointError: a checkpoint could not be written or read.
        Stopped: the run was stopped by SIGTERM; it is saved, and resumes when it is started again.
    """
    folder = Path(config.output_dir)
    take_over()
    refuse_unwritable(folder)
    with only_one(folder) if config.process_index == 0 else nullcontext():
        try:
            return _train(data, config, folder, resume)
        except KeyboardInterrupt:
            if config.process_index == 0:
                kept = last_complete(folder)[0]
                goes = f"the same command goes on from {kept}" if kept else "the same command begins anew"
                print(
                    f"\nStopped by Ctrl-C in the middle of a step: {goes}. SIGTERM (kill PID) finishes the step and saves first."
                )
            raise


def _train(data: DataArguments, config: MGPOConfig, folder: Path, resume: bool) -> Path:
    skipped: dict[str, list[BadRow]] = {}
    trainer = build_trainer(data, config, skipped)
    take_over()  # of the libraries that the trainer has imported
    last = config.resume_from_checkpoint or (last_checkpoint(folder, trainer) if resume else None)
    settings = plain_settings(data, config)
    mark = mark_of(trainer.train_dataset)
    if resume and not config.resume_from_checkpoint:
        refuse_another_run(folder, settings, step_of(Path(last)) if last else 0, mark)
    trainer.accelerator.wait_for_everyone()  # no process may still be comparing when the files are written
    if trainer.is_world_process_zero():
        write_run_files(folder, settings)
        write_whole(folder / "data.json", json.dumps(mark) + "\n")
        for split, bad in skipped.items():
            write_listing(bad, folder / f"skipped_{split}.jsonl")
        if last:
            print(f"Going on from {last}.")
    if last:
        trainer.refuse_unfit(last)
    if last and is_finished(Path(last), config):
        print(f"{last} has made all steps already: nothing to train.")
        trainer.take_finished(last)
    else:
        trainer.train(resume_from_checkpoint=last)
    if trainer.stopped:
        made = trainer.state.global_step
        raise Stopped(
            f"Stopped {trainer.stopped} after step {made}. Start it again to go on from {folder}/checkpoint-{made}."
        )
    trainer.save_model(str(folder))
    return folder


def enough_questions(config: MGPOConfig, rows: int, name: str) -> None:
    """Refuse a dataset that is smaller than one batch of rollouts: the trainer would silently make no step."""
    needed = 1 if config.method == SFT else config.generation_batch_size // config.num_generations
    if rows < needed:
        raise ValueError(
            f"{name} has {rows} questions, but one generation takes {needed}, so no step would be made. Lower "
            f"per_device_train_batch_size (rollouts: questions x num_generations={config.num_generations}), or add questions."
        )


def build_trainer(data: DataArguments, config: MGPOConfig, skipped: dict[str, list[BadRow]] | None = None) -> Any:
    """The trainer of a recipe, ready to run. Rows that were left out are put into `skipped`, by split."""
    skipped = {} if skipped is None else skipped
    questions = _questions(data, config, skipped, data.dataset_split, data.dataset_size)
    enough_questions(config, len(questions), data.dataset_name)
    asked = None
    if config.eval_strategy != "no":
        _refuse_training_rows(data)
        asked = _questions(
            data, config, skipped, data.dataset_test_split, data.dataset_test_size, data.dataset_test_size
        )
    if config.method == SFT:
        from mgpo.training.sft import build_sft_trainer

        return build_sft_trainer(data, config, questions, asked)
    from mgpo.training.trainer import MGPOTrainer

    config.model_init_kwargs = model_kwargs(data) | (config.model_init_kwargs or {})
    return MGPOTrainer(data.model_name_or_path, config, questions, eval_dataset=asked, peft_config=peft_config(data))


def _refuse_training_rows(data: DataArguments) -> None:
    """Refuse to evaluate on the rows that are trained on."""
    name, train, test = data.dataset_name, data.dataset_split, data.dataset_test_split
    path = Path(name)
    same = train == test or path.is_file() or path.is_dir() and files_of(path, train) == files_of(path, test)
    if same:
        raise ValueError(
            f"eval_strategy: the split {test!r} of {name} would be the rows that are trained on. Put both into one folder as "
            f"{train}.jsonl and {test}.jsonl, or name another --dataset_test_split."
        )


def _questions(
    data: DataArguments, config: MGPOConfig, skipped: dict, split: str, size: int, most: int | None = None
) -> Any:
    """The questions of a split that this policy can be asked, from its first `most` rows."""
    drawn = {"megapixels": data.needle_megapixels, "backgrounds": data.needle_backgrounds}
    loaded = load_rows(data.dataset_name, split, seed=data.dataset_seed, size=size, **drawn)
    if most is not None and len(loaded.places) > most:
        loaded = dataclasses.replace(
            loaded, questions=loaded.questions.select(range(most)), places=loaded.places[:most]
        )
    if data.dataset_name == "needle":
        return loaded.questions
    if config.process_index == 0:
        note = unread_note(unread_columns(data.dataset_name, split), data.dataset_name)
        print(*filter(None, [note, *loaded.notes]), sep="\n", end="\n" if note or loaded.notes else "")
    share = config.process_index, config.world_size, gather_object
    questions, skipped[split] = admitted(loaded, data.dataset_name, admission_of(data, config), data.on_bad_row, share)
    return questions


def admission_of(data: DataArguments, config: MGPOConfig) -> Admission:
    """The checks that a row must pass for this policy and these settings."""
    processor = load_processor(data.model_name_or_path)
    form = form_of(model_type_of(data.model_name_or_path))
    protocol = config.protocol(budget_of(processor), form)
    most = None if config.method == SFT else config.max_reply_tokens
    return Admission(
        protocol,
        TurnTokens(processor, config.chat_template_kwargs).text_tokens,
        most,
        data.check_images,
        config.max_images,
    )


def plain_settings(data: DataArguments, config: MGPOConfig) -> dict[str, Any]:
    """All settings as resolved, in a form that fits a recipe, without those that could hold a secret."""
    resolved = dataclasses.asdict(data) | config.to_dict()
    resolved.pop("generation_batch_size", None)  # follows from steps_per_generation; TRL refuses both
    return _without_secrets(json.loads(json.dumps(resolved, default=str)))


def _without_secrets(value: Any) -> Any:
    """Settings without entries, at any depth, whose name says that they hold a secret, and without users in URLs."""
    if isinstance(value, str):
        return _USER_IN_URL.sub("://", value)
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items() if not _SECRET.search(key)}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value

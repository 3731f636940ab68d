"""`mgpo train`: one recipe in, one run folder out.

A run folder holds `config.yaml` (as resolved), `environment.json` (versions, git state), `metrics.jsonl`,
`trajectories/`, `checkpoint-N/` and, at the end, the model itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import xxhash
import yaml
from accelerate.utils import gather_object
from trl import TrlParser

from mgpo.checkpoints import last_complete, step_of
from mgpo.config import SFT, DataArguments, MGPOConfig
from mgpo.data.admitting import Admission, admitted, write_listing
from mgpo.data.loading import load_rows
from mgpo.data.reading import BadRow
from mgpo.data.sources import files_of
from mgpo.engines.families import default_coordinates
from mgpo.engines.loading import default_budget, load_processor, model_type_of
from mgpo.engines.tokens import TurnTokens
from mgpo.environment import describe_environment
from mgpo.errors import Stopped
from mgpo.files import write_whole

WAYS = (DataArguments, MGPOConfig)
MAY_CHANGE = re.compile(
    r"output_dir|max_steps|num_train_epochs|(logging|save|eval|log|report|trajectories|disable|run|hub|push|dataset_test|dataloader)_.*"
    r"|.*resume.*|per_device_eval_.*|reward_seconds|max_nonfinite_steps|check_images|vllm_call_seconds|vllm_server_.*"
)
"""Settings that a run may be continued with, different from those it was begun with."""
_USER_IN_URL = re.compile(r"://[^/@\s]+@")
_SECRET = re.compile(r"(^|_)(token|api_?key|secret|password)$", re.IGNORECASE)


def parse(argv: list[str], config_class: type[MGPOConfig] = MGPOConfig) -> tuple[DataArguments, MGPOConfig]:
    """Settings from `--config recipe.yaml` and the command line, which wins.

    Args:
        argv: the command line.
        config_class: what to build; `mgpo.validation` checks more while it is built.

    Raises:
        ValueError: an unknown key, with the one that was probably meant.
    """
    known = {f.name for way in WAYS for f in dataclasses.fields(way) if f.init} | {"env"}
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    for flag, value in zip(argv, argv[1:] + [""]):
        if flag == "--config":
            recipe = Path(value)
            if not recipe.is_file():
                raise ValueError(f"The recipe {value} does not exist.")
            try:
                written = yaml.safe_load(recipe.read_text()) or {}
            except yaml.YAMLError as error:
                raise ValueError(f"{value} cannot be read: {error}") from error
            _refuse_unknown(written, known, value)
        elif flag.startswith("--"):
            _refuse_unknown([flag[2:].split("=")[0].replace("-", "_")], known, "the command line")
    data, config = TrlParser((DataArguments, config_class)).parse_args_and_config(args=argv)
    return data, config


def _refuse_unknown(keys: Any, known: set[str], where: str) -> None:
    for key in keys:
        bare = key.removeprefix("no_")
        if key not in known and bare not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{where}: unknown setting {key!r}.{hint}")


def train(data: DataArguments, config: MGPOConfig, resume: bool = True) -> Path:
    """Train, and leave the model in the run folder. A run that was stopped goes on from its last checkpoint.

    Returns:
        The run folder, `config.output_dir`.

    Raises:
        ValueError: the folder holds a run with other settings, or one that has made more steps than are asked for.
        CheckpointError: a checkpoint could not be written or read.
        Stopped: the run was asked to stop by SIGTERM; it is saved, and goes on when it is started again.
    """
    folder = Path(config.output_dir)
    _refuse_unwritable(folder)
    with only_one(folder) if config.process_index == 0 else nullcontext():
        return _train(data, config, folder, resume)


def _train(data: DataArguments, config: MGPOConfig, folder: Path, resume: bool) -> Path:
    skipped: dict[str, list[BadRow]] = {}
    trainer = build_trainer(data, config, skipped)
    last = config.resume_from_checkpoint or (_last_checkpoint(folder, trainer) if resume else None)
    settings = plain_settings(data, config)
    mark = mark_of(trainer.train_dataset)
    if resume and not config.resume_from_checkpoint:
        _refuse_another_run(folder, settings, step_of(Path(last)) if last else 0, mark)
    trainer.accelerator.wait_for_everyone()  # nobody compares with what is written now
    if trainer.is_world_process_zero():
        write_run_files(folder, settings)
        write_whole(folder / "data.json", json.dumps(mark) + "\n")
        for split, bad in skipped.items():
            write_listing(bad, folder / f"skipped_{split}.jsonl")
        if last:
            print(f"Going on from {last}.")
    if last:
        trainer.refuse_unfit(last)
    if last and _is_finished(Path(last), config):
        print(f"{last} has made all steps already: nothing to train.")
        trainer._load_from_checkpoint(last)
        trainer.log_end(last)
        if config.load_best_model_at_end:
            trainer._load_best_model()
    else:
        trainer.train(resume_from_checkpoint=last)
    if trainer.stopped:
        made = trainer.state.global_step
        raise Stopped(f"Stopped by SIGTERM after step {made}. Start it again to go on from {folder}/checkpoint-{made}.")
    trainer.save_model(str(folder))
    return folder


def _refuse_unwritable(folder: Path) -> None:
    """Now, and not when the first checkpoint is due."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"The run folder {folder} cannot be written to ({error}). Choose another --output_dir."
        ) from error


def _is_finished(checkpoint: Path, config: MGPOConfig) -> bool:
    """Whether a checkpoint is of the last step that is asked for."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if config.max_steps > 0:
        return state["global_step"] == config.max_steps
    return state["epoch"] >= config.num_train_epochs


def _refuse_another_run(folder: Path, settings: dict[str, Any], done: int, mark: dict[str, Any]) -> None:
    """A checkpoint's optimizer and schedule belong to the settings that it was made with; and no run is overwritten."""
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
    """A path however it is spelled; other settings as they are."""
    is_path = key in ("dataset_name", "model_name_or_path", "needle_backgrounds") and isinstance(value, str)
    return str(Path(value).resolve()) if is_path and Path(value).exists() else value


def mark_of(questions: Any) -> dict[str, Any]:
    """Tells other questions from these: how many, and a hash of their texts where they lie in memory."""
    plain = questions.format["type"] is None and {"question", "answer"} <= set(questions.column_names)
    texts = json.dumps([list(questions["question"]), list(questions["answer"])]) if plain else ""
    return {"questions": len(questions), "texts": xxhash.xxh3_64_hexdigest(texts.encode())}


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a run folder; the system lets go of it when the process ends, however that is.

    Raises:
        ValueError: another process trains in it.
    """
    with (folder / ".lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"Another process trains in {folder}. Wait for it, or give this run a folder of its own."
            ) from error
        except OSError:
            pass  # a file system without locks
        yield


def enough_questions(config: MGPOConfig, rows: int, name: str) -> None:
    """Refuse a dataset that is smaller than one batch of rollouts: the trainer would make no step, and say nothing."""
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
        from mgpo.sft import build_sft_trainer

        return build_sft_trainer(data, config, questions, asked)
    from mgpo.trainer import MGPOTrainer

    config.model_init_kwargs = model_kwargs(data) | (config.model_init_kwargs or {})
    return MGPOTrainer(data.model_name_or_path, config, questions, eval_dataset=asked, peft_config=peft_config(data))


def _refuse_training_rows(data: DataArguments) -> None:
    """What is evaluated on must not be what is trained on."""
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
    """The questions of a split, each of which this policy can be asked; the first `most` of them."""
    more = data.needle_megapixels, data.needle_backgrounds
    loaded = load_rows(data.dataset_name, split, data.dataset_seed, size, *more)
    if most is not None and len(loaded.places) > most:
        loaded = dataclasses.replace(
            loaded, questions=loaded.questions.select(range(most)), places=loaded.places[:most]
        )
    if data.dataset_name == "needle":
        return loaded.questions
    share = config.process_index, config.world_size, gather_object
    questions, skipped[split] = admitted(loaded, data.dataset_name, admission_of(data, config), data.on_bad_row, share)
    return questions


def admission_of(data: DataArguments, config: MGPOConfig) -> Admission:
    """What must hold of a row for this policy and these settings."""
    processor = load_processor(data.model_name_or_path)
    family = default_coordinates(model_type_of(data.model_name_or_path))
    protocol = config.protocol(default_budget(processor), family)
    most = None if config.method == SFT else config.max_reply_tokens
    return Admission(protocol, TurnTokens(processor).text_tokens, most, data.check_images)


def model_kwargs(data: DataArguments) -> dict[str, Any]:
    """How to load the model: TRL passes this to transformers."""
    kwargs: dict[str, Any] = {"dtype": data.dtype, "use_safetensors": True}
    if data.attn_implementation:
        kwargs["attn_implementation"] = data.attn_implementation
    return kwargs


def peft_config(data: DataArguments) -> Any:
    """LoRA's configuration, None if all weights are trained."""
    if not data.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=data.lora_r,
        lora_alpha=data.lora_alpha,
        lora_dropout=data.lora_dropout,
        target_modules=data.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def plain_settings(data: DataArguments, config: MGPOConfig) -> dict[str, Any]:
    """All settings as resolved, fit for a recipe; what could hold a secret is left out."""
    resolved = dataclasses.asdict(data) | config.to_dict()
    resolved.pop("generation_batch_size", None)  # follows from steps_per_generation; TRL refuses both
    return _without_secrets(json.loads(json.dumps(resolved, default=str)))


def write_run_files(folder: Path, settings: dict[str, Any]) -> None:
    """`config.yaml` and `environment.json`."""
    write_whole(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=True))
    write_whole(folder / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")


def _without_secrets(value: Any) -> Any:
    """Settings without the entries, at any depth, whose name says that they hold a key, and without users in URLs."""
    if isinstance(value, str):
        return _USER_IN_URL.sub("://", value)
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items() if not _SECRET.search(key)}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value


def _last_checkpoint(folder: Path, trainer: Any) -> str | None:
    """The newest complete checkpoint; others are told of."""
    last, skipped = last_complete(folder)
    if trainer.is_world_process_zero():
        for line in skipped:
            print(line)
    return str(last) if last else None

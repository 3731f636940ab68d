"""`mgpo train`: one recipe in, one run folder out.

A run folder holds `config.yaml` (as resolved), `environment.json` (versions, git state), `metrics.jsonl`,
`trajectories/`, `checkpoint-N/` and, at the end, the model itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from mgpo.config import SFT, DataArguments, MGPOConfig
from mgpo.data.loading import load_questions
from mgpo.environment import describe_environment

WAYS = (DataArguments, MGPOConfig)
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
    for flag, value in zip(argv, argv[1:] + [""]):
        if flag == "--config":
            recipe = Path(value)
            if not recipe.is_file():
                raise ValueError(f"The recipe {value} does not exist.")
            _refuse_unknown(yaml.safe_load(recipe.read_text()) or {}, known, value)
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
    """Train, and leave the model in the run folder.

    Returns:
        The run folder, `config.output_dir`.
    """
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_run_files(folder, data, config)
    trainer = build_trainer(data, config)
    last = config.resume_from_checkpoint or (_last_checkpoint(folder) if resume else None)
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(folder))
    return folder


def build_trainer(data: DataArguments, config: MGPOConfig) -> Any:
    """The trainer of a recipe, ready to run."""
    questions = load_questions(data.dataset_name, data.dataset_split, data.dataset_seed, data.dataset_size)
    if config.method == SFT:
        from mgpo.sft import build_sft_trainer

        return build_sft_trainer(data, config, questions)
    from mgpo.trainer import MGPOTrainer

    config.model_init_kwargs = model_kwargs(data) | (config.model_init_kwargs or {})
    return MGPOTrainer(data.model_name_or_path, config, questions, peft_config=peft_config(data))


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


def write_run_files(folder: Path, data: DataArguments, config: MGPOConfig) -> None:
    """`config.yaml` and `environment.json`; what could hold a secret is left out."""
    resolved = dataclasses.asdict(data) | config.to_dict()
    plain = _without_secrets(json.loads(json.dumps(resolved, default=str)))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=True))
    (folder / "environment.json").write_text(json.dumps(describe_environment(), indent=2) + "\n")


def _without_secrets(value: Any) -> Any:
    """Settings without the entries, at any depth, whose name says that they hold a key."""
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items() if not _SECRET.search(key)}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value


def _last_checkpoint(folder: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(folder))

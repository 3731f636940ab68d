"""Writes docs/settings.md and src/mgpo/assets/settings.json from the fields of the settings: python docs/write_settings.py"""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

from mgpo.cli.settings import FILE, LIBRARIES, described
from mgpo.config import DataArguments, MGPOConfig

HEAD = """# Settings

A recipe sets these by name, and so does the command line: `mgpo train --config recipe.yaml --max_turns 3`. `mgpo validate` takes the same options and
`--num_gpus N`. `mgpo train --help` lists them by group, with TRL's that matter most; `--help-all` describes all. This page is written by `docs/write_settings.py` from `src/mgpo/config.py`, which an installed package has as `mgpo.config`.

Everything else is TRL's and works as documented there: [GRPOConfig](https://huggingface.co/docs/trl/grpo_trainer) (`num_generations`, `beta`, `epsilon`,
`loss_type`, `use_vllm`, ...) with transformers' [TrainingArguments](https://huggingface.co/docs/transformers/main_classes/trainer) (`learning_rate`,
`max_steps`, `bf16`, ...).
"""


def rows(kind, names):
    """Lines of a table of these fields: name, default, help."""
    yield from ["| setting | default | |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        if field.name in names:
            default = [] if field.default is dataclasses.MISSING else field.default
            told = str(field.metadata["help"]).replace("|", "\\|")
            yield f"| `{field.name}` | {'none' if default in (None, []) else f'`{shown(default)}`'} | {told} |"


def shown(value):
    """As YAML has it."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("|", "\\|")


def page():
    """The whole page."""
    data = rows(DataArguments, DataArguments.__annotations__)
    method = rows(MGPOConfig, MGPOConfig.__annotations__)
    return "\n".join([HEAD, "## Model and data", "", *data, "", "## The method", "", *method]) + "\n"


def held():
    """What `mgpo train --help` and the shell's completion read, with the versions of TRL and transformers that it is true for."""
    written = {"versions": {name: version(name) for name in LIBRARIES}, "settings": described()}
    return json.dumps(written, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(held())
    (Path(__file__).parent / "settings.md").write_text(page())

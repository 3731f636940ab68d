"""What a policy's name leads to: a folder or a hub id, and the settings of its training run. Nothing here loads a library of models.

`mgpo-tiny` and `mgpo-tiny-mgpo` name the checkpoints that the package ships; every other name is a folder or a hub id.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from mgpo.hub import fetched, reachable
from mgpo.policies.shipped import SHIPPED, TINY, folder_of


def resolve(name_or_path: str) -> str:
    """Folder or hub id of a policy; those in `SHIPPED` come with the package.

    Raises:
        FileNotFoundError: the name looks like a folder, but there is no model in it.
    """
    if name_or_path in SHIPPED:
        return folder_of(name_or_path)
    folder = Path(name_or_path)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(
                f"{name_or_path} holds no model (no config.json). Name a finished run or a checkpoint."
            )
    elif not may_be_hub_id(name_or_path):
        raise FileNotFoundError(
            f"The model folder {name_or_path} does not exist. Name an existing folder, a hub id (owner/name) or {TINY}."
        )
    return name_or_path


def may_be_hub_id(name: str) -> bool:
    """Whether a name that is no folder has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~", "runs/"))


def trained_with(name_or_path: str) -> dict[str, Any]:
    """Settings of the run that trained a model; empty if they are not known.

    They are read from the `config.yaml` beside the model, in the run folder above a checkpoint, or on the hub.
    """
    if not name_or_path:  # a model that was made in memory
        return {}
    folder = Path(resolve(name_or_path) if name_or_path in SHIPPED else name_or_path)
    if not folder.exists() and may_be_hub_id(name_or_path):
        return _trained_with_on_the_hub(name_or_path)
    run = folder.parent if folder.name.startswith("checkpoint-") else folder
    file = run / "config.yaml"
    return yaml.safe_load(file.read_text()) or {} if file.is_file() else {}


def _trained_with_on_the_hub(hub_id: str) -> dict[str, Any]:
    """Settings that `mgpo push` uploaded with a model; empty for other models, and for names that the hub does not know."""
    from huggingface_hub import constants, hf_hub_download

    here = constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT)
    try:
        text = Path(hf_hub_download(hub_id, "config.yaml", local_files_only=here)).read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    # Other projects have files of this name, too.
    return settings if isinstance(settings, dict) and "max_grounding_tokens" in settings else {}


def template_kwargs_of(name_or_path: str, thinking: bool | None = None) -> dict[str, Any]:
    """Variables of a policy's chat template: those of its training run, with `enable_thinking` where that is given."""
    own = trained_with(name_or_path).get("chat_template_kwargs") or {}
    return own if thinking is None else own | {"enable_thinking": thinking}


def fetched_model(name: str) -> AbstractContextManager[None]:
    """Inside, a part of this policy is loaded; see `mgpo.hub.fetched`."""
    if name in SHIPPED or Path(name).is_dir():
        return nullcontext()
    return fetched(name, "model", "name FOLDER as the model")

"""The settings of `mgpo train` as options of a command: their help, by group, and their completion.

Importing TRL takes seconds, and a key press must not. So `assets/settings.json` holds what the dataclasses say, for the
versions of TRL and transformers that it names; `docs/write_settings.py` writes it. With other versions, the help is read from
the dataclasses themselves.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from mgpo.planning import early
from mgpo.recipes import names, refuse_unknown_settings

FILE = Path(__file__).parents[1] / "assets" / "settings.json"
LIBRARIES = ("trl", "transformers")
GROUPS = {
    "Method": "method max_turns max_images crop_frame coordinates min_box_side max_box_aspect extra_reward_funcs reward_weights "
    "reward_seconds",
    "Model and data": "model_name_or_path dataset_name dataset_split dataset_size dataset_seed dataset_test_split "
    "dataset_test_size needle_megapixels needle_backgrounds on_bad_row check_images",
    "Rollout": "num_generations temperature top_p top_k min_pixels max_pixels max_grounding_tokens max_answer_tokens "
    "max_reply_tokens max_completion_length steps_per_generation chat_template_kwargs use_vllm vllm_mode vllm_server_host "
    "vllm_server_port vllm_call_seconds max_logprob_difference rollouts_ahead vllm_importance_sampling_mode",
    "Update": "max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps learning_rate "
    "lr_scheduler_type warmup_steps optim weight_decay max_grad_norm loss_type beta epsilon epsilon_high num_iterations "
    "scale_rewards importance_sampling_level max_nonfinite_steps seed",
    "Memory": "dtype bf16 attn_implementation use_peft lora_r lora_alpha lora_dropout lora_target_modules load_in_4bit "
    "freeze_vision_tower allow_low_precision_weights gradient_checkpointing shared_prefix decoded_bytes use_liger_kernel "
    "vllm_gpu_memory_utilization vllm_max_model_length vllm_enable_sleep_mode vllm_tensor_parallel_size use_cpu",
    "Logging, checkpoints, evaluation": "output_dir logging_steps report_to run_name trajectories_every trajectories_kept "
    "log_completions log_multimodal disable_tqdm save_strategy save_steps save_total_limit resume_from_checkpoint eval_strategy "
    "eval_steps per_device_eval_batch_size load_best_model_at_end metric_for_best_model push_to_hub hub_model_id",
}
"""Group -> its settings, in the order in which `mgpo train --help` lists them."""
RECIPE = {
    "name": "config",
    "kind": "text",
    "default": "",
    "help": "A YAML file, or the name of a shipped recipe (mgpo recipes).",
}
NUMBER = {
    "name": "num_gpus",
    "kind": "whole number",
    "default": "1",
    "help": "Number of GPUs that the recipe is checked for.",
}
OTHERS = "Further settings of TRL and transformers"


def described() -> list[dict[str, str]]:
    """Name, kind, default and help of every setting, in the order of the help: what the dataclasses say."""
    from mgpo.config import DataArguments, MGPOConfig

    found = {}
    for way in (DataArguments, MGPOConfig):
        hints = get_type_hints(way)
        for field in dataclasses.fields(way):
            if field.init:
                told = " ".join(str(field.metadata.get("help", "")).split())
                found[field.name] = {
                    "name": field.name, "kind": _kind(hints[field.name]), "default": _default(field), "help": told
                }  # fmt: skip
    first = [name for group in GROUPS.values() for name in group.split()]
    return [found[name] for name in [*first, *sorted(found.keys() - set(first))] if name in found]


def shipped() -> dict[str, Any]:
    """What `assets/settings.json` holds: `versions` and `settings`."""
    return json.loads(FILE.read_text())


def settings() -> list[dict[str, str]]:
    """As `described`, from the shipped file where the installed versions are its own."""
    held = shipped()
    same = held["versions"] == {name: version(name) for name in LIBRARIES}
    return held["settings"] if same else described()


def refuse_words(words: Sequence[str], *others: str) -> None:
    """Refuse a command line with an unknown setting, method or recipe, without importing TRL where the shipped file holds.

    Args:
        words: settings, and `--config`; their values are checked later, by TRL's parser.
        others: names of further options of the command.

    Raises:
        ValueError: the message names the setting that was probably meant.
    """
    early.refuse_words(words)
    refuse_unknown_settings(words, {one["name"] for one in settings()} | set(others))


class SettingsCommand(TyperCommand):
    """A command whose further options are the settings of a training."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help that typer prints, with the settings as groups; all of them after `--help-all`."""
        super().format_help(ctx, formatter)
        everything = "help_all" in ctx.meta
        listed = {one["name"]: one for one in settings()}
        console = Console()
        first = RECIPE if ctx.command.name == "train" else NUMBER
        console.print(_panel("Recipe", [first], everything))
        for title, held in GROUPS.items():
            console.print(_panel(title, [listed.pop(name) for name in held.split() if name in listed], everything))
        if everything:
            console.print(_panel(OTHERS, list(listed.values()), everything))
        else:
            console.print(f"{OTHERS}, which --help-all describes: {', '.join(listed)}.", style="dim", highlight=False)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Recipes after `--config`, the values of a setting after its name, else names of settings.

        Where nothing fits, the shell completes files.
        """
        item = type(super().shell_complete(ctx, "--help")[0])  # click's class, or that of the copy that typer has
        before = ctx.args[-1] if ctx.args else ""
        listed = shipped()["settings"]
        if before == "--config":
            return [item(name) for name in names() if name.startswith(incomplete)]
        for one in listed:
            if before == f"--{one['name']}":
                values = one["kind"].split("|") if "|" in one["kind"] else []
                return [item(value) for value in values if value.startswith(incomplete)]
        shown = [] if incomplete and not incomplete.startswith("-") else listed
        own = [item(f"--{one['name']}", help=_first_sentence(one["help"])) for one in shown]
        return super().shell_complete(ctx, incomplete) + [one for one in own if one.value.startswith(incomplete)]


def help_all(ctx: typer.Context, asked: bool) -> None:
    """Callback of `--help-all`."""
    if asked and not ctx.resilient_parsing:
        ctx.meta["help_all"] = True
        typer.echo(ctx.get_help(), nl=False)
        raise typer.Exit


def _panel(title: str, listed: list[dict[str, str]], everything: bool) -> RenderableType:
    """A group of settings as typer draws its options."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(style="bold yellow", max_width=16)
    table.add_column(ratio=1)
    for one in listed:
        told = Text(one["help"] if everything else _first_sentence(one["help"]))
        if "|" in one["kind"] and one["kind"].count("|") < 8 and one["kind"] != "true|false":
            told.append(f" One of: {one['kind'].replace('|', ', ')}.")
        if one["default"]:
            told.append(f" [default: {one['default']}]", style="dim")
        kind = "choice" if "|" in one["kind"] and one["kind"] != "true|false" else one["kind"]
        table.add_row(f"--{one['name']}", kind, told)
    return Panel(table, title=title, title_align="left", border_style="dim")


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[^ .]\.) (?=[A-Z'`0])", text, maxsplit=1)[0]


def _kind(hint: Any) -> str:
    """What a value is: text, number, whole number, true|false, list, mapping, or its choices."""
    parts: Iterable[Any] = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for part in parts:
        if isinstance(part, type) and issubclass(part, Enum):
            return "|".join(str(member.value) for member in part)
        if get_origin(part) is Literal and all(isinstance(value, str) for value in get_args(part)):
            return "|".join(get_args(part))
    words = {bool: "true|false", int: "whole number", float: "number", dict: "mapping", list: "list", str: "text"}
    kinds = {get_origin(part) or part for part in parts}
    if str in kinds and not {bool, int, float} & kinds:
        return "mapping" if dict in kinds else "text or list" if list in kinds else "text"
    return next((word for kind, word in words.items() if kind in kinds), "text")


def _default(field: Any) -> str:
    value = field.default if field.default is not dataclasses.MISSING else None
    if value is None or value == "":
        return ""
    value = value.value if isinstance(value, Enum) else value
    return str(value).lower() if isinstance(value, bool) else str(value)

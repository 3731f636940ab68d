"""`mgpo train` and `mgpo eval` in several processes: `--accelerate_config NAME` starts them by `accelerate launch`.

    mgpo train --accelerate_config zero3 --num_processes 8 --config recipes/qwen2_5_vl_7b_vllm.yaml

Options of `accelerate launch` go to it, all others to the command that every process runs. What both know
(`gradient_accumulation_steps`, `debug`) is the command's: a recipe decides it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mgpo.cli.settings import refuse_words
from mgpo.errors import ProcessFailed, Stopped, suggestion

FLAG = "--accelerate_config"
COMMANDS = ("train", "eval")
NAMES = ("multi_gpu", "fsdp2", "zero2", "zero3")
OURS = ("debug", "gradient_accumulation_steps")
"""Options of `accelerate launch` that are settings of a recipe too."""
NOT_HERE = ("config_file", "module", "no_python", "cpu", "help")
"""Options of `accelerate launch` that would change what is started. `--use_cpu true` trains on CPU."""
STARTERS = ("MULTI_GPU", "FSDP", "DEEPSPEED")
WAIT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
LONGEST_STEP = 3600
"""Seconds that processes have, after a SIGTERM to the launcher, to finish their step and save; PyTorch gives them 30."""


def asked(words: Sequence[str]) -> bool:
    """Whether a command line asks for several processes."""
    return bool(words) and words[0] in COMMANDS and any(word.split("=")[0] in _spelled(FLAG) for word in words)


def launch(words: Sequence[str]) -> None:
    """Start the processes, and wait for their end.

    Args:
        words: the command line: `train` or `eval`, and its options.

    Raises:
        ValueError: the configuration, its number of processes or an option is wrong. Nothing was started.
        Stopped: SIGTERM ended the processes; each of them has said what it saved.
        ProcessFailed: a process ended with an error, which it has printed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(
            f"{FLAG} starts processes, but this is already one that a launcher has started: leave it out of the command."
        )
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = launch_command_parser()
    for_launcher, for_command = split(words, parser)
    if words[0] == "train":
        refuse_words(for_command[1:])
    request = parser.parse_args([*for_launcher, "--module", "mgpo", *for_command])
    os.environ.setdefault(WAIT, str(LONGEST_STEP))
    try:
        launch_command(request)
    except SignalException as stopped:
        raise Stopped(
            f"The launcher was stopped by {signal.Signals(stopped.sigval).name}.", stopped.sigval
        ) from stopped
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM):
            raise Stopped(f"Process {rank} was stopped by SIGTERM, and all others with it.") from failed
        how = f"was killed by {first.signal_name()}" if first.exitcode < 0 else f"ended with status {first.exitcode}"
        status = 128 - first.exitcode if first.exitcode < 0 else first.exitcode
        raise ProcessFailed(f"Process {rank} {how}; what it printed is above.", status) from failed


def split(words: Sequence[str], parser: Any) -> tuple[list[str], list[str]]:
    """Words for `accelerate launch`, and words of the command.

    Args:
        words: a command line with `--accelerate_config`.
        parser: that of `accelerate launch`.

    Raises:
        ValueError: an option is not allowed here or has no value, or the number of processes is not known.
    """
    actions = {spelled: action for action in parser._actions for spelled in action.option_strings}
    known = {name for name in actions if _bare(name) not in OURS}
    for_launcher, for_command = [], []
    config, rest = None, list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in _spelled(FLAG):
            config = value if equals else _value(name, rest)
        elif not name.startswith("--") or name not in known:
            for_command.append(word)
        elif _bare(name) in NOT_HERE:
            raise ValueError(f"{name} is an option of accelerate launch that has no meaning beside {FLAG}.")
        else:
            for_launcher.append(word)
            if not equals and actions[name].nargs != 0:
                for_launcher.append(_value(name, rest))
    path, written = _configuration(config or "")
    if words[0] == "eval" and written["distributed_type"] != "MULTI_GPU":
        raise ValueError(
            f"mgpo eval splits questions, and every process holds the whole model: use {FLAG} multi_gpu. For a model that is "
            "too large for one GPU, start a vLLM server with --tensor-parallel-size and evaluate it by --endpoint."
        )
    given = {_bare(word.partition("=")[0]) for word in for_launcher if word.startswith("--")}
    if "num_processes" not in given and "num_processes" not in written:
        for_launcher += ["--num_processes", str(_on_all_gpus(for_launcher, written))]
    if "num_machines" not in given and "num_machines" not in written:
        for_launcher += ["--num_machines", "1"]
    return ["--config_file", str(path), *for_launcher], for_command


def _spelled(flag: str) -> tuple[str, str]:
    return flag, "--" + flag[2:].replace("_", "-")


def _bare(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _value(flag: str, rest: list[str]) -> str:
    if not rest:
        raise ValueError(f"{flag} needs a value.")
    return rest.pop(0)


def _configuration(name: str) -> tuple[Path, dict[str, Any]]:
    """The file of a shipped configuration, or of the user's own, and what it holds."""
    path = Path(str(files("mgpo") / "accelerate_configs" / f"{name}.yaml")) if name in NAMES else Path(name)
    if not path.is_file():
        raise ValueError(f"{FLAG} {name}: it is neither one of {', '.join(NAMES)} nor a file.{suggestion(name, NAMES)}")
    try:
        written = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(written, dict) or written.get("distributed_type") not in STARTERS:
        raise ValueError(
            f"{path} starts no processes: its distributed_type must be one of {', '.join(STARTERS)}. Without {FLAG}, the "
            "command runs in one process."
        )
    return path, written


def _on_all_gpus(words: Sequence[str], written: dict[str, Any]) -> int:
    """One process for each GPU of each machine."""
    import torch

    machines = written.get("num_machines", 1)
    for word, value in zip(words, [*words[1:], ""]):
        name, equals, own = word.partition("=")
        if _bare(name) == "num_machines":
            machines = own if equals else value
    if not torch.cuda.device_count():
        raise ValueError(
            f"{FLAG}: this machine has no GPU that PyTorch can use. --num_processes N says how many processes to start."
        )
    return torch.cuda.device_count() * int(machines)

"""What libraries say while `mgpo` runs: what a user can do nothing about is silent, the rest is said once.

A Python warning or a log record is left out if `SILENT` names its module and its text; anything else is printed, the same
text once, by the main process. Errors are printed by every process. Only the command line does this: a program that imports
`mgpo` keeps its own filters.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class Silent:
    """A message that is left out.

    Attributes:
        module: the module that warns, or the logger's name: a regular expression that must match it whole.
        text: a regular expression that its text must begin with.
        why: why a user can do nothing about it.
    """

    module: str
    text: str
    why: str


SILENT = (
    Silent(
        r"transformers\.training_args",
        r"`gradient_checkpointing(_kwargs)?` is deprecated",
        "TRL 1.16 sets this field itself, whatever the recipe says; it is the only name that it reads.",
    ),
    Silent(
        r"transformers\.modeling_utils",
        r"`is_gradient_checkpointing` is deprecated",
        "TRL 1.16 and PEFT read this attribute.",
    ),
    Silent(
        r"transformers\.modeling_utils",
        r"`gradient_checkpointing_(en|dis)able` is deprecated",
        "TRL 1.16 calls these methods around each generation.",
    ),
)
_said: set[tuple[str, str]] = set()


def quieten() -> None:
    """Install the filters for Python's warnings and for log records; call it before libraries are imported."""
    for one in SILENT:
        warnings.filterwarnings("ignore", message=one.text, module=one.module)
    warnings.showwarning = _show_warning
    if not _is_quiet():
        logging.root.addHandler(Once())


def take_over() -> None:
    """After `quieten`: replace the handlers by which imported libraries print to the terminal, so that `Once` prints their records.

    Bars of transformers and datasets are for terminals: in a file each of their states would be a line.
    """
    if not _is_quiet():
        return
    if not sys.stderr.isatty():
        import datasets
        import transformers

        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    for logger in list(logging.root.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue
        printing = [handler for handler in logger.handlers if _prints(handler)]
        for handler in printing:
            logger.removeHandler(handler)
        if printing:
            logger.addHandler(Once())


class Once(logging.Handler):
    """Prints records to whatever `sys.stderr` is at that moment, the same warning once."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record that is neither silent nor a repetition."""
        text = self.format(record)
        if logging.WARNING <= record.levelno < logging.ERROR and not _is_new(record.name, text):
            return
        if record.levelno < logging.ERROR and not _is_main():
            return
        print(f"{record.levelname.lower()} ({record.name.partition('.')[0]}): {text}", file=sys.stderr, flush=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: Any = None,
) -> None:
    text = " ".join(str(message).split())
    if _is_main() and _is_new(category.__name__, text):
        print(f"warning ({_package(filename)}): {text}", file=file or sys.stderr, flush=True)


def _is_quiet() -> bool:
    return any(isinstance(handler, Once) for handler in logging.root.handlers)


def _is_new(source: str, text: str) -> bool:
    if any(_matches(one, source, text) for one in SILENT) or (source, text) in _said:
        return False
    _said.add((source, text))
    return True


def _matches(one: Silent, source: str, text: str) -> bool:
    return re.fullmatch(one.module, source) is not None and re.match(one.text, text) is not None


def _package(filename: str) -> str:
    """The package of a file: this one, or what follows `site-packages`, else the file's own name."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return "mgpo"
    parts = filename.replace("\\", "/").split("/")
    return parts[parts.index("site-packages") + 1].removesuffix(".py") if "site-packages" in parts else parts[-1]


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _prints(handler: logging.Handler) -> bool:
    return (
        isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
        and handler.stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    )

"""A setting of the wrong type is one sentence with its name: of a recipe, whose values YAML has typed, or of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser


def parse_typed(ways: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """Settings from `--config recipe.yaml` and the command line, as TRL's parser reads them.

    Args:
        ways: the classes of the settings.
        argv: the command line; its names are known ones.

    Raises:
        ValueError: a value has the wrong type, or a word belongs to no setting.
    """
    parser = TrlParser(ways, exit_on_error=False, allow_abbrev=False)
    actions = {action.dest: action for action in reversed(parser._actions)}  # not `--no_...`, which comes second
    hints = {name: hint for way in ways for name, hint in get_type_hints(way).items()}
    for flag, value in zip(argv, argv[1:]):
        if flag == "--config":
            written = yaml.safe_load(Path(value).read_text()) or {}
            for name, given in written.items():
                if name in actions:
                    _check(name, given, hints[name], actions[name], value)
    try:
        return parser.parse_args_and_config(args=list(argv))
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").partition("/")[0].lstrip("-").replace("-", "_").removeprefix("no_")
        raise ValueError(_told(name, _given(argv, name, error), hints.get(name), actions.get(name))) from error
    except ValueError as error:
        if "not used by the HfArgumentParser" in str(error):
            extra = str(error).partition("[")[2].rstrip("]")
            raise ValueError(
                f"The command line: {extra} belongs to no setting. A setting is written --name value, and a recipe --config NAME."
            ) from error
        raise


def _check(name: str, given: Any, hint: Any, action: argparse.Action, where: str) -> None:
    """Check a value as YAML has typed it; text is converted as on the command line."""
    kinds = _kinds(hint)
    if isinstance(given, str) and list not in kinds:
        try:
            value = action.type(given) if callable(action.type) else given
            right = action.choices is None or value in action.choices
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            right = False
    elif given is None:
        right = NoneType in kinds or action.default is None
    elif action.choices is not None:
        right = given in action.choices and not isinstance(given, bool)
    elif isinstance(given, list) and list in kinds:
        wanted = next(get_args(kind)[0] for kind in _parts(hint) if get_origin(kind) is list)
        right = all(_is(one, wanted) for one in given)
    else:
        right = str in kinds or dict in kinds or any(_is(given, kind) for kind in kinds)
    if not right:
        raise ValueError(f"{where}: {_told(name, given, hint, action)}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value that is no text has this type: 1 is a number, True is not, 1.0 is no whole number."""
    if kind in (int, bool):
        return type(value) is kind
    return type(value) in (int, float) if kind is float else not isinstance(kind, type) or isinstance(value, kind)


def _told(name: str, given: Any, hint: Any, action: argparse.Action | None) -> str:
    if given is _NOTHING:
        return f"{name} has no value: write --{name} VALUE."
    sentence = f"{name} must be {_words(hint, action)}, not {'null' if given is None else repr(given)}."
    if isinstance(given, bool) and action is not None and action.choices is not None:
        sentence += (
            f' YAML reads no and yes as false and true: write {name}: "{"yes" if given else "no"}", with quotes.'
        )
    return sentence


def _words(hint: Any, action: argparse.Action | None) -> str:
    """What a value must be."""
    if action is not None and action.choices is not None:
        return "one of " + ", ".join(str(choice) for choice in action.choices)
    kinds = _kinds(hint)
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        list: "a list, such as [a, b]",
        dict: "a mapping",
        str: "text",
    }
    return " or ".join(word for kind, word in words.items() if kind in kinds) or "of another type"


def _kinds(hint: Any) -> set[Any]:
    return {get_origin(part) or part for part in _parts(hint)}


def _parts(hint: Any) -> Iterable[Any]:
    """The types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


_NOTHING = object()


def _given(argv: Sequence[str], name: str, error: argparse.ArgumentError) -> Any:
    """The value of a setting on the command line."""
    if "expected" in error.message and "argument" in error.message:
        return _NOTHING
    values: Mapping[str, str] = {
        word.lstrip("-").replace("-", "_"): value for word, value in _pairs(argv) if word.startswith("--")
    }
    return values.get(name, "this value")


def _pairs(argv: Sequence[str]) -> Iterable[tuple[str, str]]:
    for word, following in zip(argv, [*argv[1:], ""]):
        flag, equals, value = word.partition("=")
        yield flag, value if equals else following

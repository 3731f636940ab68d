"""The shipped recipes, and how one is found by its name: `--config tiny_mgpo` works wherever the package is installed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from mgpo.errors import suggestion
from mgpo.method.methods import refuse_unknown_method

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(given: str | Path) -> Path:
    """The file of a recipe: a file of the user's, else the shipped one of that name.

    Args:
        given: a path, or a shipped recipe's name with or without `.yaml`. A file that exists is meant before a name.

    Raises:
        ValueError: there is neither; the message lists near names.
    """
    path = Path(given)
    if path.is_file():
        return path
    bare = path.name.removesuffix(".yaml")
    shipped = FOLDER / f"{bare}.yaml"
    if str(path) in (bare, shipped.name) and shipped.is_file():
        return shipped
    beside = [str(near) for near in path.parent.glob("*.yaml")]
    close = difflib.get_close_matches(bare, names(), 3) + difflib.get_close_matches(str(path), beside, 1)
    near = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    raise ValueError(
        f"The recipe {given} does not exist: it is neither a file nor a shipped recipe.{near} `mgpo recipes` lists those."
    )


def written(recipe: Path) -> dict[str, Any]:
    """The settings that a recipe's file holds, unchecked but for the method.

    Raises:
        ValueError: it does not exist, is no YAML mapping, or its method is unknown.
    """
    recipe = find_recipe(recipe)
    try:
        found = yaml.safe_load(recipe.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{recipe} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{recipe} must contain a YAML mapping: settings and their values, such as max_steps: 300.")
    if isinstance(found.get("method"), str):
        refuse_unknown_method(found["method"])
    return found


def words_apart(argv: Sequence[str]) -> list[str]:
    """A command line with `--config=NAME` as two words, which TRL's parser needs, and with the recipe's file for its name."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    return [str(find_recipe(word)) if before == "--config" else word for before, word in zip(["", *words], words)]


def refuse_unknown_settings(argv: Sequence[str], known: Collection[str]) -> None:
    """Refuse a command line, or a recipe that it names, with a setting that does not exist.

    Args:
        argv: the command line.
        known: the names of all settings.

    Raises:
        ValueError: the message names the setting that was probably meant; or the recipe cannot be read, see `written`.
    """
    words = words_apart(argv)
    for flag, value in zip(words, [*words[1:], ""]):
        if flag == "--config":
            _refuse_unknown(written(Path(value)), {*known, "env"}, value)
        elif flag.startswith("--"):
            _refuse_unknown([flag[2:].split("=")[0].replace("-", "_")], known, "the command line")


def _refuse_unknown(keys: Iterable[str], known: Collection[str], where: str) -> None:
    for key in keys:
        if key not in known and key.removeprefix("no_") not in known:
            raise ValueError(f"{where}: unknown setting {key!r}.{suggestion(key, known)}")

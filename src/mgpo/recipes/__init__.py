"""The shipped recipes, and how one is found by its name: `--config tiny_mgpo` works wherever the package is installed."""

from __future__ import annotations

import difflib
from pathlib import Path

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

"""What can be refused at once: this module imports neither torch nor TRL, which take ten seconds.

`mgpo recipe`, `mgpo validate` and `mgpo train` ask it first; what needs more than a look at the words is refused later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgpo.errors import suggestion
from mgpo.method.methods import refuse_unknown_method
from mgpo.planning.sizes import SIZES, Size, known_size
from mgpo.recipes import written


def size_to_train(model: str, method: str) -> Size:
    """The size of a model, for a recipe of this method.

    Raises:
        ValueError: the method is unknown, the size is not known, or the name lacks its owner.
    """
    refuse_unknown_method(method)
    size = known_size(model)
    if size is None:
        close = suggestion(model.rpartition("/")[2].removesuffix("-Instruct"), SIZES)
        raise ValueError(
            f"The size of {model} is not known, so its memory cannot be estimated.{close} Known: {', '.join(SIZES)}."
        )
    return size


def refuse_request(model: str, method: str, out: Path) -> None:
    """Refuse a recipe that cannot be written.

    Raises:
        ValueError: as in `size_to_train`; the model's name has no owner; or the file exists.
    """
    size_to_train(model, method)
    if "/" not in model:
        raise ValueError(f"--model {model} has no owner. Did you mean Qwen/{model}?")
    if out.exists():
        raise ValueError(f"{out} exists already. Name another file with --out.")


def refuse_words(words: Sequence[str]) -> None:
    """Refuse a command line of `mgpo train` or `mgpo validate` whose recipe cannot be read, or whose method is unknown.

    Raises:
        ValueError: as in `written`, or `--method` is unknown.
    """
    given = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for flag, value in zip(given, given[1:]):
        if flag == "--config":
            written(Path(value))
        elif flag == "--method":
            refuse_unknown_method(value)

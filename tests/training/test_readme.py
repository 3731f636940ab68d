"""The table of overridden methods is complete, and names tests that exist."""

import inspect
import re
from pathlib import Path

from trl import GRPOTrainer

import mgpo.training
from mgpo.training.trainer import MGPOTrainer

TABLE = (Path(mgpo.training.__file__).with_name("README.md")).read_text()
TESTS = Path(__file__).parents[1]


def test_every_overridden_method_is_listed_with_its_class():
    ours = MGPOTrainer.__mro__[: MGPOTrainer.__mro__.index(GRPOTrainer)]
    overridden = {
        (name, part.__name__)
        for part in ours
        for name, member in vars(part).items()
        if inspect.isfunction(member) and hasattr(GRPOTrainer, name) and name != "__init__"
    }
    listed = set()
    for line in TABLE.splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3]]
        if len(cells) == 2:
            listed |= {(method, part) for method in cells[0] for part in cells[1]}
    assert overridden <= listed, f"not in src/mgpo/training/README.md: {sorted(overridden - listed)}"
    stale = {pair for pair in listed if hasattr(GRPOTrainer, pair[0])} - overridden
    assert not stale, f"in src/mgpo/training/README.md, but not overridden: {sorted(stale)}"


def test_its_tests_exist():
    named = set(re.findall(r"`([\w/]*test_\w+\.py)`", TABLE))
    assert len(named) > 4
    assert not [name for name in named if not (TESTS / name).is_file()]

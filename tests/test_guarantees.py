"""docs/guarantees.md promises nothing that no test shows."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = [
    line
    for line in (ROOT / "docs" / "guarantees.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| promise")
]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`(?: \((slow)[^)]*\))?")


def functions_of(file):
    """Names of a file's tests, and whether each is marked slow, wholly or for one of its parameters."""
    found = {}
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = any("mark.slow" in ast.unparse(decorator) for decorator in node.decorator_list)
    return found


def test_every_promise_names_a_test():
    assert len(ROWS) > 30
    assert not [row for row in ROWS if not NAMED.search(row.split("|")[2])]


def test_every_test_that_is_named_exists_and_is_marked_as_it_runs():
    named = [match for row in ROWS for match in NAMED.findall(row)]
    assert len(named) == sum(row.count("::") for row in ROWS), "a test is named in a form that is not understood"
    for file, name, slow in named:
        assert name in functions_of(file), f"{file} has no {name}"
        assert functions_of(file)[name] == bool(slow), f"{file}::{name} is {'not ' * bool(slow)}slow"


def test_what_looks_for_missing_tests_finds_one():
    assert NAMED.findall("| a | `tests/test_x.py::test_y` (slow) |") == [("tests/test_x.py", "test_y", "slow")]
    assert "test_that_is_not_there" not in functions_of("tests/test_guarantees.py")

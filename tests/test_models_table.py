"""docs/models.md: each ✓ of its table is a test that pytest collects, and no family, test or reason is missing.

The table's own legend names the tests and their file, so a new family is a new row, and a new test a new column: this file stays.
"""

import re
from pathlib import Path

import pytest

from mgpo.policies.families import FAMILIES, shares_prompts

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/models.md").read_text()
SHARING = ("shared update", "shared sampling")


def table():
    """Rows as (model types, {column: cell})."""
    (block,) = re.findall(r"^\| family \| TYPE \|.*?(?=\n\n)", PAGE, re.DOTALL | re.MULTILINE)
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
    assert all(len(row) == len(header) for row in rows)
    return [(re.findall(r"`(\w+)`", row[1]), dict(zip(header[2:], row[2:]))) for row in rows]


def legend():
    """The test of each letter, as a pattern of pytest's ids with a group for the model type."""
    found = dict(re.findall(r"\*\*(\w)\*\* `(test_[^`]*)`", PAGE))
    return {
        key: re.escape(test).replace("TYPE", r"(\w+)").replace(r"\]", r"(?:-[^\]]+)?\]") for key, test in found.items()
    }


@pytest.fixture(scope="module")
def collected():
    """Ids of the tests that the page links to, collected and not run."""
    (file,) = set(re.findall(r"^All tests are in \[.*?\]\(\.\./(.*?)\):$", PAGE, re.MULTILINE))
    ids = []

    class Keeper:
        def pytest_collection_modifyitems(self, items):
            ids.extend(item.name for item in items)
            items.clear()

    pytest.main(["-qq", "--collect-only", "-p", "no:cacheprovider", str(ROOT / file)], plugins=[Keeper()])
    assert ids
    return ids


def types_of(pattern, collected):
    return {found.group(1) for name in collected if (found := re.fullmatch(pattern, name))}


def test_each_tick_is_a_test_that_pytest_collects(collected):
    tests = legend()
    for types, cells in table():
        for column, cell in cells.items():
            if cell.startswith("no: "):
                continue
            keys = re.fullmatch(r"✓ (\w+)", cell)
            assert keys, f"{column} of {types}: {cell!r} is neither '✓ LETTERS' nor 'no: reason'"
            for key in keys.group(1):
                missing = set(types) - types_of(tests[key], collected)
                assert types and not missing, f"{column}: pytest collects no {tests[key]} for {missing or 'its row'}"


def test_a_column_is_the_same_tests_for_all():
    keys = {column: {cells[column][2:] for _, cells in table() if cells[column][0] == "✓"} for column in table()[0][1]}
    assert all(len(of) == 1 for of in keys.values()), keys
    assert sorted(key for of in keys.values() for key in "".join(of)) == sorted(legend())


def test_no_test_is_without_a_column(collected):
    lost = [name for name in collected if not any(re.fullmatch(pattern, name) for pattern in legend().values())]
    assert not lost, f"docs/models.md has no column for {lost[:3]} ..."


def test_no_family_is_without_a_row(collected):
    rows = [name for types, _ in table() for name in types]
    known = {name for family in FAMILIES for name in family.model_types}
    tested = set.union(*(types_of(pattern, collected) for pattern in legend().values()))
    assert sorted(rows) == sorted(known) and tested <= known
    named = re.findall(r"^\| ([^|]+?) \|", PAGE, re.MULTILINE)
    assert all(any(word in row for row in named) for family in FAMILIES for word in [family.name.split()[0]])


def test_prompts_are_shared_where_the_code_shares_them():
    """The tests of sharing pass for every family; where prompts are not shared, they check that."""
    for types, cells in table():
        assert {cells[column][0] == "✓" for column in SHARING} == {bool(types) and all(map(shares_prompts, types))}, (
            types
        )

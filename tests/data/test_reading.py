"""Files that are damaged say so, by row where only a row is damaged."""

import pytest
from miniatures import hrbench, write_parquet, write_tsv

from mgpo.data.reading import BadRow, RawRow, by_reason, read_rows


def test_a_bad_line_is_yielded_and_the_next_is_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
    rows = list(read_rows(file))
    assert [type(row) for row in rows] == [RawRow, BadRow, BadRow, BadRow, BadRow, RawRow]
    assert rows[1].where == f"{file} row 3" and rows[-1].where == f"{file} row 7" and rows[-1].columns == {"a": 2}


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", b"{"), ("a.json", b"{}"), ("a.parquet", b"PAR1"), ("a.csv", b"")]
)
def test_a_file_that_cannot_be_read_at_all_is_an_error_with_its_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        list(read_rows(tmp_path / name))


def test_a_truncated_parquet_file_is_an_error(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", hrbench())
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read"):
        list(read_rows(file))


def test_a_tsv_row_with_too_few_cells_is_bad(tmp_path):
    file = write_tsv(tmp_path / "a.tsv", [{"index": "0", "image": "x" * 80, "question": "?"}])
    with file.open("a") as out:
        out.write("1\tshort\n")
    good, bad = read_rows(file)
    assert (
        isinstance(good, RawRow)
        and bad == BadRow(f"{file} row 2", bad.reason)
        and "number of columns differs" in bad.reason
    )


def test_parquet_rows_are_numbered_through_all_batches(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", [{"n": n} for n in range(20)])
    assert [(row.columns["n"] + 1) for row in read_rows(file)] == list(range(1, 21))
    assert list(read_rows(file))[-1].where.endswith("row 20")


def test_rows_with_the_same_fault_take_one_line():
    bad = [BadRow(f"a.jsonl row {n}", "no question") for n in range(1, 31)] + [BadRow("a.jsonl row 31", "no answer")]
    assert by_reason(bad, 5) == ["a.jsonl row 1 and 29 more rows: no question", "a.jsonl row 31: no answer"]
    assert by_reason(bad, 1) == ["a.jsonl row 1 and 29 more rows: no question", "and 1 more"]
    assert by_reason(bad[:2], 5) == ["a.jsonl row 1 and 1 more row: no question"] and by_reason([], 5) == []

"""A file is there whole or not at all."""

import pytest

from mgpo.files import whole, write_whole


def test_it_appears_when_it_is_done(tmp_path):
    file = tmp_path / "new" / "a.txt"
    with whole(file) as aside:
        aside.write_text("half")
        assert not file.exists()
        aside.write_text("whole")
    assert file.read_text() == "whole" and list(file.parent.iterdir()) == [file]


def test_an_error_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.txt"
    write_whole(file, "before")
    with pytest.raises(OSError, match="full"), whole(file) as aside:
        aside.write_text("ha")
        raise OSError("full")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]

"""Shipped recipes are found by name, from anywhere, and listed in one line each."""

import pytest
import yaml
from typer.testing import CliRunner

from mgpo.cli import app
from mgpo.recipes import FOLDER, find_recipe, names


def test_a_name_with_or_without_its_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("tiny_mgpo") == find_recipe("tiny_mgpo.yaml") == FOLDER / "tiny_mgpo.yaml"


def test_a_file_of_the_user_s_is_meant_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_mgpo.yaml").write_text("seed: 1\n")
    assert find_recipe("tiny_mgpo.yaml").resolve() == (tmp_path / "tiny_mgpo.yaml").resolve()


@pytest.mark.parametrize("given", ["elsewhere/tiny_mgpo.yaml", "../recipes/tiny_mgpo", "tiny_mgpo.yml"])
def test_a_path_is_no_name(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        find_recipe(given)


def test_an_unknown_name_lists_near_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_mine.yaml").touch()
    with pytest.raises(ValueError, match=r"'tiny_mgpo' or 'tiny_grpo'.*`mgpo recipes` lists"):
        find_recipe("tiny_mpgo")
    with pytest.raises(ValueError, match=r"Did you mean .*'tiny_mine.yaml'"):
        find_recipe("tiny_mines.yaml")
    with pytest.raises(ValueError, match=r"shipped recipe\. `mgpo recipes` lists"):
        find_recipe("zzz")


def test_the_list_has_a_line_for_each_with_what_it_sets():
    lines = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "200"}).output.splitlines()
    for name in names():
        (line,) = (line for line in lines if line.split(" ")[0] == name)
        held = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        assert held["model_name_or_path"].rpartition("/")[2] in line
        assert ("LoRA" in line) == bool(held.get("use_peft")) and ("4-bit" in line) == bool(held.get("load_in_4bit"))
        assert line.rstrip().endswith("none" if held.get("use_cpu") else "GB"), line


def test_in_a_terminal_of_80_columns_a_recipe_takes_a_line():
    lines = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "80"}).output.split("\n\n")[0].splitlines()
    assert len(lines) <= 1 + len(names()) + 1  # the longest takes two


def test_every_budget_is_a_whole_number_of_tokens_of_its_family():
    lines = CliRunner().invoke(app, ["recipes"], env={"COLUMNS": "200"}).output
    assert lines.count("1280 visual tokens") + lines.count("640 visual tokens") == len(names()) - 4

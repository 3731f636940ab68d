"""`mgpo train --help`, `--version` and the shell's completion: every setting, in its group, without importing torch."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mgpo.cli import app
from mgpo.cli.settings import FILE, GROUPS, described, shipped
from mgpo.config import DataArguments, MGPOConfig

OWN = [*DataArguments.__annotations__, *MGPOConfig.__annotations__]
NAMES = [name for group in GROUPS.values() for name in group.split()]


def helped(*argv):
    done = CliRunner().invoke(app, [*argv], env={"COLUMNS": "160", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    return " ".join(done.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def texts():
    return helped("train", "--help"), helped("train", "--help-all")


def test_the_shipped_file_is_what_the_classes_say():
    """Else: python docs/write_settings.py. Help of upstream may differ with other versions than those it names."""
    held, now = shipped(), described()
    assert [one for one in held["settings"] if one["name"] in OWN] == [one for one in now if one["name"] in OWN]
    from importlib.metadata import version

    if held["versions"] == {name: version(name) for name in held["versions"]}:
        assert held["settings"] == now


def test_every_setting_of_ours_is_in_one_group():
    assert len(NAMES) == len(set(NAMES)) and set(OWN) <= set(NAMES) <= {one["name"] for one in shipped()["settings"]}


def test_the_help_has_every_setting_with_its_default(texts):
    short, full = texts
    assert all(f"─ {group} ─" in short for group in GROUPS) and "--config" in short
    for one in shipped()["settings"]:
        assert f"--{one['name']} " in full
        assert (f"--{one['name']} " in short) == (one["name"] in NAMES), one["name"]
        assert one["name"] in short
    assert len(full) > 2 * len(short)


def test_validate_has_the_same_help():
    assert "--num_gpus" in helped("validate", "--help") and "--max_turns" in helped("validate", "--help")


def test_other_versions_are_not_described_by_the_shipped_file(monkeypatch, tmp_path):
    from mgpo.cli import settings

    (tmp_path / "settings.json").write_text(json.dumps({"versions": {"trl": "0", "transformers": "0"}, "settings": []}))
    monkeypatch.setattr(settings, "FILE", tmp_path / "settings.json")
    assert {one["name"] for one in settings.settings()} >= set(OWN)


def asked(words, shell="bash"):
    """What the shell gets for the last of these words, from a process that must not import torch."""
    code = "import sys; sys.modules['torch'] = None; from mgpo.cli import main; main()"
    environment = {"_MGPO_COMPLETE": f"complete_{shell}", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1),
                   "_TYPER_COMPLETE_ARGS": " ".join(words), "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("mgpo rec", ["recipe", "recipes"]),
        ("mgpo train --config tiny_", ["tiny_direct", "tiny_grpo", "tiny_mgpo", "tiny_sft"]),
        ("mgpo train --max_tu", ["--max_turns"]),
        ("mgpo train --config tiny_mgpo --loss", ["--loss_type"]),
        ("mgpo train --config tiny_mgpo --save_strategy st", ["steps"]),
        ("mgpo validate tiny_g", ["tiny_grpo"]),
        ("mgpo train --dataset_name my_", []),
    ],
)
def test_the_shell_completes_commands_recipes_settings_and_values(line, found):
    assert asked(line.split()).split() == found


def test_zsh_shows_the_help_beside_a_setting():
    assert '"--max_turns":"K\\\\: maximum number' in asked("mgpo train --max_tu".split(), "zsh").replace("''", "'")


def test_version_and_scripts():
    import mgpo

    assert helped("--version") == f"mgpo {mgpo.__version__}"
    for shell in ("bash", "zsh"):
        script = helped("--print-completion", shell)
        assert "_MGPO_COMPLETE" in script and "mgpo" in script
    wrong = CliRunner().invoke(app, ["--print-completion", "csh"])
    assert wrong.exit_code == 2 and "none of bash, zsh" in " ".join(wrong.output.split())
    assert FILE.is_file()

"""What libraries say: listed messages are silent, others appear once, errors always."""

import logging
import re
import sys
import warnings
from types import SimpleNamespace

import pytest
from transformers import PreTrainedModel

from mgpo.config import MGPOConfig
from mgpo.runs.quiet import SILENT, Once, quieten, take_over


@pytest.fixture
def quiet(monkeypatch):
    """As on the command line, undone afterwards."""
    before = list(logging.root.handlers)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        monkeypatch.setattr("mgpo.runs.quiet._said", set())
        quieten()
        yield
    logging.root.handlers = before


def warn(text, category=FutureWarning, module="transformers.training_args"):
    warnings.warn_explicit(
        text, category, f"/x/site-packages/{module.replace('.', '/')}.py", 1, module=module, registry={}
    )


def test_a_listed_warning_is_silent_and_the_same_text_of_another_module_is_not(quiet, capsys):
    text = "`gradient_checkpointing` is deprecated and will be removed in v6."
    warn(text)
    assert not capsys.readouterr().err
    warn(text, module="elsewhere")
    assert capsys.readouterr().err == f"warning (elsewhere): {text}\n"


def test_another_warning_of_the_same_module_appears_once(quiet, capsys):
    for _ in range(3):
        warn("`fp16` is deprecated,\n    use bf16.")
    assert capsys.readouterr().err == "warning (transformers): `fp16` is deprecated, use bf16.\n"


def test_records_of_loggers_appear_once_and_errors_each_time(quiet, capsys):
    logger = logging.getLogger("trl.trainer")
    for _ in range(2):
        logger.warning("slow tokenizer")
        logger.error("it failed")
    assert capsys.readouterr().err.splitlines() == [
        "warning (trl): slow tokenizer",
        "error (trl): it failed",
        "error (trl): it failed",
    ]


def test_processes_beside_the_main_one_print_errors_only(quiet, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    warn("something")
    logging.getLogger("trl").warning("something")
    logging.getLogger("trl").error("it failed")
    assert capsys.readouterr().err == "error (trl): it failed\n"


def test_a_library_s_own_handler_is_replaced_and_a_file_s_is_kept(quiet, capsys, tmp_path):
    logger = logging.getLogger("some_library")
    logger.propagate = False
    file = logging.FileHandler(tmp_path / "log")
    logger.handlers = [logging.StreamHandler(sys.stderr), file]
    take_over()
    assert [type(handler) for handler in logger.handlers] == [logging.FileHandler, Once]
    logger.warning("twice")
    logger.warning("twice")
    file.close()
    assert capsys.readouterr().err == "warning (some_library): twice\n"
    assert (tmp_path / "log").read_text() == "twice\n" * 2


def test_a_program_that_imports_mgpo_keeps_its_handlers(monkeypatch):
    # Another test of this process may have called the command line, which installs `Once`: here nothing has.
    monkeypatch.setattr(logging.root, "handlers", [])
    logger = logging.getLogger("another_library")
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    take_over()
    assert [type(handler) for handler in logger.handlers] == [logging.StreamHandler]


def test_every_listed_message_names_one_module_and_a_reason():
    for one in SILENT:
        assert one.module.count(r"\.") and len(one.text) > 20 and one.why.endswith(".")


def test_every_listed_message_is_still_given(tmp_path):
    """Else it is taken off the list: TRL's and transformers' own classes, without the filters."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        MGPOConfig(str(tmp_path), use_cpu=True)
        PreTrainedModel.is_gradient_checkpointing.fget(SimpleNamespace(is_activation_checkpointing=False))
        with pytest.raises(AttributeError):
            PreTrainedModel.gradient_checkpointing_enable(None)
    said = {(warning.filename.split("site-packages/")[1], str(warning.message)) for warning in seen}
    for one in SILENT:
        file = one.module.replace(r"\.", "/") + ".py"
        assert any(name == file and re.match(one.text, text) for name, text in said), one

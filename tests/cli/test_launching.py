"""`--accelerate_config`: which words go to `accelerate launch`, which to the command, and what is refused before anything starts."""

import dataclasses

import pytest
import torch
import typer
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from mgpo.cli import app, launching
from mgpo.cli.launching import NAMES, OURS, asked, launch, split
from mgpo.training.run import WAYS

PARSER = launch_command_parser()
TRAIN = ["train", "--accelerate_config", "multi_gpu", "--num_processes", "2"]


def test_each_word_goes_where_it_is_known():
    words = ["train", "--config", "r.yaml", "--accelerate_config", "zero3", "--num_processes=32", "--num-machines", "4",
             "--machine_rank", "1", "--main_process_ip", "10.0.0.1", "--lora_target_modules", "q_proj", "v_proj", "--tf32",
             "--quiet", "--gradient_accumulation_steps", "4", "--debug", "underflow_overflow"]  # fmt: skip
    for_launcher, for_command = split(words, PARSER)
    assert for_command == ["train", "--config", "r.yaml", "--lora_target_modules", "q_proj", "v_proj", "--tf32",
                           "--gradient_accumulation_steps", "4", "--debug", "underflow_overflow"]  # fmt: skip
    parsed = PARSER.parse_args([*for_launcher, "--module", "mgpo", *for_command])
    assert (parsed.num_processes, parsed.num_machines, parsed.machine_rank) == (32, 4, 1)
    assert parsed.main_process_ip == "10.0.0.1" and parsed.quiet and parsed.config_file.endswith("zero3.yaml")
    assert parsed.training_script == "mgpo" and parsed.training_script_args == for_command


def test_what_both_know_is_the_recipes():
    """If accelerate and TRL come to share another name, it must be decided whose it is."""
    theirs = {name.lstrip("-").replace("-", "_") for action in PARSER._actions for name in action.option_strings}
    settings = {field.name for way in WAYS for field in dataclasses.fields(way) if field.init}
    options = {
        name[2:].replace("-", "_") for p in typer.main.get_command(app).commands["eval"].params for name in p.opts
    }
    assert sorted(settings & theirs) == sorted(OURS) and not options & (theirs - {"help"})


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_configurations_are_accelerates_and_leave_precision_to_the_recipe(name):
    path, written = launching._configuration(name)
    loaded = load_config_from_file(str(path))
    assert loaded.mixed_precision == "no" and loaded.num_processes == -1 and written["same_network"]
    assert loaded.fsdp_config.get("fsdp_version", 2) == 2
    assert ("zero" in name) == bool(loaded.deepspeed_config) and ("fsdp" in name) == bool(loaded.fsdp_config)


@pytest.mark.parametrize(
    ("gpus", "words", "processes"), [(8, [], "8"), (4, ["--num_machines", "2"], "8"), (8, ["--num-machines=4"], "32")]
)
def test_by_default_every_gpu_of_every_machine_gets_a_process(monkeypatch, gpus, words, processes):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for_launcher, _ = split(["train", "--accelerate_config=fsdp2", *words], PARSER)
    assert for_launcher[for_launcher.index("--num_processes") + 1] == processes


def test_a_file_of_ones_own_sets_the_number_itself(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\nnum_machines: 1\n")
    assert split(["eval", "--accelerate_config", str(file), "--n", "4"], PARSER) == (
        ["--config_file", str(file)],
        ["eval", "--n", "4"],
    )


@pytest.mark.parametrize(("words", "why"), [
    (["train", "--accelerate_config", "zero_3", "--num_processes", "2"], "neither one of multi_gpu.*Did you mean 'zero3'"),
    (["train", "--num_processes", "2", "--accelerate_config"], "--accelerate_config needs a value"),
    ([*TRAIN, "--config_file", "x.yaml"], "--config_file is an option of accelerate launch that has no meaning"),
    (["train", "--accelerate_config", "multi_gpu"], "no GPU that PyTorch can use. --num_processes N"),
    (["eval", "--accelerate_config", "zero3", "--num_processes", "2"], "every process holds the whole model: use"),
    ([*TRAIN, "--learning_rat", "1"], "unknown setting 'learning_rat'. Did you mean 'learning_rate'"),
])  # fmt: skip
def test_what_is_wrong_is_said_once_before_anything_starts(words, why):
    assert asked(words)
    with pytest.raises(ValueError, match=why):
        launch(words)


def test_a_file_that_starts_no_processes_is_refused(tmp_path):
    (tmp_path / "one.yaml").write_text("distributed_type: 'NO'\n")
    with pytest.raises(ValueError, match="starts no processes: its distributed_type must be one of MULTI_GPU"):
        split(["train", "--accelerate_config", str(tmp_path / "one.yaml")], PARSER)


def test_a_process_of_a_launcher_starts_no_others(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ValueError, match="already one that a launcher has started"):
        launch(TRAIN)


def test_other_command_lines_start_nothing():
    assert (
        not asked([]) and not asked(["train", "--config", "x"]) and not asked(["ask", "--accelerate_config", "zero3"])
    )

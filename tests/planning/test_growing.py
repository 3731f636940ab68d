"""A recipe on more GPUs: the batch stays, no GPU holds more at once, and what the headers of shipped recipes name is valid and fits."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

import mgpo
from mgpo.cli.launching import split
from mgpo.planning.gpus import Gpus
from mgpo.planning.growing import settings_on
from mgpo.planning.validate import validate_recipe

RECIPES = sorted((Path(mgpo.__file__).parent / "recipes").glob("*.yaml"))
COMMANDS = [
    (path, int(count), command)
    for path in RECIPES
    for count, command in re.findall(r"^# (\d+) GPUs?: (mgpo train .*)$", path.read_text(), re.MULTILINE)
]
KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")


@pytest.mark.parametrize("count", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize(
    ("batch", "accumulated", "steps"), [(8, 16, 1), (8, 16, 16), (4, 32, 2), (2, 64, 4), (4, 32, 32), (1, 128, 8)]
)
def test_an_update_keeps_its_rollouts_and_no_gpu_holds_more(count, batch, accumulated, steps):
    own = dict(zip(KEYS, (batch, accumulated, steps)))
    size, rounds, at_once = (own | settings_on(count, batch, accumulated, steps, 8)).values()
    assert size * rounds * count == batch * accumulated
    assert size <= batch and rounds % at_once == 0, "every update sees rollouts of its own policy, as on one GPU"
    assert size * at_once * count % 8 == 0 and size * at_once <= max(batch * steps, 8)


def test_an_update_that_is_too_small_is_not_split():
    assert settings_on(32, 2, 8, 1, 8) is None and settings_on(3, 2, 8, 1, 8) is None
    assert settings_on(2, 16, 1, None, 1) == {"per_device_train_batch_size": 8}


def words_of(command):
    """Words for accelerate and for `mgpo train`; what a user fills in is filled in."""
    words = command.replace(" RANK", " 1").replace(" IP", " 10.0.0.1").split()[1:]
    return split(words, launch_command_parser()) if "--accelerate_config" in words else ([], words)


def planned(path, words, gpus):
    lines = validate_recipe(path, [*words, "--num_gpus", str(gpus)])
    (update,) = (re.search(r"= (\d+) = ", line)[1] for line in lines if line.startswith("rollouts per update"))
    (rounds,) = (
        re.search(r"; ([\d.]+) updates? per", line)[1] for line in lines if line.startswith("rollouts per update")
    )
    return int(update), float(rounds), lines


@pytest.mark.parametrize(
    ("path", "count", "command"), COMMANDS, ids=lambda value: getattr(value, "stem", str(value)[:2])
)
def test_what_a_header_says_keeps_the_batch_and_fits(path, count, command):
    for_launcher, for_command = words_of(command)
    config, own = for_command[for_command.index("--config") + 1], for_command[3:]
    assert Path(config).name == path.name and for_command[1] == "--config"
    launcher = launch_command_parser().parse_args([*for_launcher, "--module", "mgpo"])
    assert (launcher.num_processes or 1) == count and (launcher.num_machines or 1) == -(-count // 8)
    named = re.search(r"^# (?:GPUs: |Written by: .*--gpus )(\d+x[\d.]+)", path.read_text(), re.MULTILINE)[1]
    update, rounds, _ = planned(path, [], Gpus.read(named).count)
    server = [word for pair in re.findall(r"(--vllm_server_host) (\S+)", command) for word in pair]
    now, now_rounds, lines = planned(path, own, count)
    assert now == update and (now_rounds == rounds or max(now_rounds, rounds) <= 1) and len(server) in (0, 2)
    assert not any(line.startswith("note: some updates mix") for line in lines)
    if launcher.config_file and launcher.config_file.endswith(
        "multi_gpu.yaml"
    ):  # every GPU holds all: as one GPU alone
        settings = yaml.safe_load(path.read_text()) | {own[i][2:]: int(own[i + 1]) for i in range(0, len(own), 2)}
        alone = dict(zip(own[::2], own[1::2]))
        steps = settings.get("steps_per_generation") or settings["gradient_accumulation_steps"]
        alone["--steps_per_generation"] = str(max(steps, -(-8 // settings["per_device_train_batch_size"])))
        lines = planned(path, [word for pair in alone.items() for word in pair], 1)[2]
    (line,) = (line for line in lines if "on each GPU at once" in line)
    assert float(re.search(r"should have ([\d.]+) GiB", line)[1]) <= Gpus.read(named).gib


def test_every_recipe_for_gpus_says_what_to_run_on_1_8_and_32():
    for path in RECIPES:
        text = path.read_text()
        if not path.stem.startswith("tiny"):
            on = {count for which, count, _ in COMMANDS if which == path}
            alone = re.search(r"^# (1 GPU: |mgpo train --config )", text, re.MULTILINE) or "On the serving node" in text
            assert on >= {8, 32} and alone, path.stem
        else:
            command = re.search(r"^# Two processes: (mgpo train .*)$", text, re.MULTILINE)[1]
            assert words_of(command)[1][:3] == ["train", "--use_cpu", "true"]
    assert len(COMMANDS) >= 2 * 15

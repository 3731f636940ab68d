"""A setting of the wrong type is one sentence with its name, in a recipe and on the command line."""

import dataclasses

import pytest
import yaml

from mgpo.config import DataArguments, MGPOConfig
from mgpo.recipes import names
from mgpo.training.run import parse, plain_settings

SHORT = ["--use_cpu", "true", "--bf16", "false"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('learning_rate: "1e-4x"', "learning_rate must be a number, not '1e-4x'."),
        ("max_steps: many", "max_steps must be a whole number, not 'many'."),
        ("max_steps: 3.0", "max_steps must be a whole number, not 3.0."),
        ("max_steps: true", "max_steps must be a whole number, not True."),
        ("max_pixels: 1.0e+6", "max_pixels must be a whole number, not 1000000.0."),
        ("max_steps:", "max_steps must be a whole number, not null."),
        ("temperature: [1]", "temperature must be a number, not [1]."),
        ("use_peft: perhaps", "use_peft must be true or false, not 'perhaps'."),
        ("bf16: 1", "bf16 must be true or false, not 1."),
        ("extra_reward_funcs: a.b", "extra_reward_funcs must be a list, such as [a, b], not 'a.b'."),
        ("reward_weights: [a]", "reward_weights must be a list, such as [a, b], not ['a']."),
        ("eval_strategy: sometimes", "eval_strategy must be one of no, steps, epoch, not 'sometimes'."),
        (
            "save_strategy: no",
            'not False. YAML reads no and yes as false and true: write save_strategy: "no", with quotes.',
        ),
    ],
)
def test_a_recipe_s_value(tmp_path, text, sentence):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as refused:
        parse(["--config", str(file)])
    assert str(refused.value).startswith(f"{file}: ") and sentence in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--max_steps", "many"], "max_steps must be a whole number, not 'many'."),
        (["--max_steps=many"], "max_steps must be a whole number, not 'many'."),
        (["--num-generations", "x"], "num_generations must be a whole number, not 'x'."),
        (["--max_steps", "1", "--max_steps", "x"], "not 'x'."),
        (["--max_steps"], "max_steps has no value: write --max_steps VALUE."),
        (["--use_peft", "perhaps"], "use_peft must be true or false, not 'perhaps'."),
        (["--lr_scheduler_type", "curved"], "lr_scheduler_type must be one of linear, cosine, "),
        (["--max_steps", "3", "4"], "'4' belongs to no setting."),
    ],
)
def test_a_value_of_the_command_line(capsys, argv, sentence):
    with pytest.raises(ValueError) as refused:
        parse(argv)
    assert sentence in str(refused.value)
    assert not any(capsys.readouterr()), "no page of usage"


def test_what_yaml_writes_in_another_way_is_taken(tmp_path):
    """YAML reads 1e-4 as text, and null is a value of a setting that may be left out."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "learning_rate: 1e-4\nmax_pixels: null\nreport_to: [tensorboard]\nreward_weights: [0, 1]\nuse_peft: 'yes'\n"
        "model_init_kwargs: {device_map: null}\nlogging_steps: 1\nscale_rewards: false\nwarmup_steps: 0.1\n"
    )
    data, config = parse(["--config", str(file), *SHORT])
    assert config.learning_rate == 1e-4 and config.max_pixels is None and data.use_peft is True
    assert config.reward_weights == [0, 1] and config.warmup_steps == 0.1


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_and_what_a_run_writes_of_it(tmp_path, name):
    """The `config.yaml` of a run folder is a recipe too."""
    data, config = parse(["--config", name, *SHORT])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain_settings(data, config)))
    again = parse(["--config", str(file)])
    assert plain_settings(*again) == plain_settings(data, config)


def test_null_is_taken_or_refused_by_name_for_every_setting(tmp_path):
    """The types decide; where TRL's type allows null and its code does not, a check of ours does."""
    file, refusals = tmp_path / "mine.yaml", 0
    for name in [field.name for way in (DataArguments, MGPOConfig) for field in dataclasses.fields(way) if field.init]:
        file.write_text(f"{name}: null\n")
        try:
            parse(["--config", str(file), *(SHORT if name != "output_dir" else ["--use_cpu"])])
        except ValueError as error:
            assert name in str(error)
            refusals += 1
    assert refusals > 100

"""Batches of rollouts hold whole groups: the refusal names settings that a user sets, and values that work."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpo.config import MGPOConfig
from mgpo.method.groups import refuse_split_groups


def made(tmp_path, **settings):
    return MGPOConfig(str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"per_device_train_batch_size": 30}, "30 per_device_train_batch_size x 1 gradient_accumulation_steps x 1 process = 30 rollouts"),
        ({"per_device_train_batch_size": 30}, "Set per_device_train_batch_size to 24 or 32, or num_generations to 6."),
        ({"per_device_train_batch_size": 3, "steps_per_generation": 4}, "3 per_device_train_batch_size x 4 steps_per_generation"),
        ({"per_device_train_batch_size": 5, "generation_batch_size": 30}, "Set generation_batch_size to 24 or 32"),
        ({"num_generations": None}, "num_generations=null: an advantage compares at least 2 rollouts"),
        ({"num_generations": 0}, "num_generations=0"),
        ({"num_generations": 1}, "num_generations=1"),
        (
            {"num_generations": 6, "per_device_train_batch_size": 6, "eval_strategy": "steps", "do_eval": True, "eval_steps": 1},
            "8 per_device_eval_batch_size x 1 process = 8 rollouts, which are no whole groups of num_generations=6. Set "
            "per_device_eval_batch_size to 12",
        ),
    ],
)  # fmt: skip
def test_a_batch_of_split_groups_is_a_sentence_with_the_settings(tmp_path, settings, sentence):
    with pytest.raises(ValueError) as refused:
        made(tmp_path, **settings)
    assert sentence in str(refused.value)


def test_other_errors_of_the_settings_stay_as_they_are(tmp_path):
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        made(tmp_path, load_best_model_at_end=True)


class Given:
    """Settings as given."""

    def __init__(self, size, accumulated, group):
        self.per_device_train_batch_size, self.gradient_accumulation_steps = size, accumulated
        self.num_generations, self.steps_per_generation, self.generation_batch_size = group, None, None


@given(st.integers(1, 64), st.integers(1, 8), st.integers(2, 16), st.integers(1, 8))
def test_every_value_that_is_proposed_works(size, accumulated, group, processes):
    settings = Given(size, accumulated, group)
    try:
        refuse_split_groups(settings, processes)
    except ValueError as error:
        told = str(error)
    else:
        assert size * accumulated * processes % group == 0
        return
    for value in map(int, re.findall(r"\d+", told.split("per_device_train_batch_size to ")[1].split(",")[0])):
        refuse_split_groups(Given(value, accumulated, group), processes)
    for value in map(int, re.findall(r"num_generations to (\d+)", told)):
        assert 2 <= value <= group
        refuse_split_groups(Given(size, accumulated, value), processes)


@pytest.mark.parametrize("batch", [1, 3, 6, 8])
def test_a_training_without_rollouts_takes_batches_of_any_size(batch, tmp_path):
    """Its batch holds questions: TRL's whole groups of rollouts do not concern it, nor does a batch of its evaluation."""
    few = {
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "use_cpu": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    config = MGPOConfig(str(tmp_path), method="sft", **few)
    assert config.per_device_train_batch_size == batch and config.gradient_accumulation_steps == 1
    if batch != 8:
        with pytest.raises(ValueError, match="no whole groups of num_generations=8"):
            MGPOConfig(str(tmp_path), method="mgpo", **few)

"""What makes a finished part of an experiment usable again, and what does not."""

from dataclasses import replace

import pytest

from mgpo.experiments.plan import Plan, read_mark, write_mark


def test_parts_of_another_plan_are_not_used(tmp_path):
    plan = Plan(tmp_path, (0, 1), 40, 100)
    for other in (replace(plan, steps=60), replace(plan, checkpoints=2), replace(plan, rates={"mgpo": 1e-4})):
        assert other.wanted("mgpo", True) != plan.wanted("mgpo", True)
    assert replace(plan, rates={"sft": 1e-4}).wanted("mgpo", True) == plan.wanted("mgpo", True)
    assert replace(plan, seeds=(0,), workers=1).measured == plan.measured
    for other in (replace(plan, questions=50), replace(plan, validation=50), replace(plan, methods=("mgpo",))):
        assert other.measured != plan.measured


def test_an_unknown_method_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="methods: 'ppo' is unknown. Choose among mgpo, grpo, direct, sft"):
        Plan(tmp_path, (0,), 40, 100, methods=("mgpo", "ppo"))


def test_a_mark_is_read_back(tmp_path):
    plan = Plan(tmp_path, (0,), 40, 100)
    assert read_mark(tmp_path) is None
    write_mark(tmp_path, plan.wanted("grpo", False))
    assert read_mark(tmp_path) == plan.wanted("grpo", False) != plan.wanted("grpo", True)

"""A step whose numbers are not finite changes nothing but a count, keeps its batch, and too many in a row end the run."""

import asyncio
import json
import math
import subprocess
import sys
import threading
import time

import pytest
import torch
from support import even_ids, make_trainer
from trl import GRPOTrainer

from mgpo.errors import NumbersError, RunError
from mgpo.runs.finite import replay, within


def infinite_in_the_second_step(completion_ids, trainer_state, **_):
    values = even_ids(completion_ids)
    return [math.inf if i == 0 and trainer_state.global_step == 1 else value for i, value in enumerate(values)]


def never_a_number(completion_ids, **_):
    return [math.nan] * len(completion_ids)


def hangs_in_the_second_step(completion_ids, trainer_state, **_):
    if trainer_state.global_step == 1:
        threading.Event().wait(20)
    return even_ids(completion_ids)


def in_second_step(trainer):
    return trainer.model.training and trainer.state.global_step == 1


def poison_loss(trainer, monkeypatch):
    compute = GRPOTrainer._compute_loss
    loss = lambda self, model, inputs: compute(self, model, inputs) * (math.inf if in_second_step(self) else 1)  # noqa: E731
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", loss)


def poison_gradient(trainer, monkeypatch):
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda grad: grad * math.nan if in_second_step(trainer) else grad)


def poison_logprobs(trainer, monkeypatch):
    score = type(trainer)._get_per_token_logps_and_entropies
    trainer.poisoned_step = trainer.num_iterations  # the first step of the second generation

    def spoilt(self, *args, **kwargs):
        logps, *rest = score(self, *args, **kwargs)
        if (
            self.state.global_step == self.poisoned_step and not torch.is_grad_enabled()
        ):  # those before the update: old, or of the reference
            logps = logps.clone()
            logps[0, 0] = math.nan
        return logps, *rest

    monkeypatch.setattr(type(trainer), "_get_per_token_logps_and_entropies", spoilt)


CASES = {
    "reward": ({"extra_reward_funcs": ["support.even_ids", "test_finite.infinite_in_the_second_step"]}, None, "the reward infinite_in_the_second_step is inf"),
    "hanging reward": ({"extra_reward_funcs": ["test_finite.hangs_in_the_second_step"], "reward_seconds": 0.5}, None, "took more than 0.5 seconds"),
    "loss": ({"extra_reward_funcs": ["support.even_ids"]}, poison_loss, "the loss is not finite"),
    "gradient": ({"extra_reward_funcs": ["support.even_ids"]}, poison_gradient, "the gradient is not finite"),
    "old log-probability": (
        {"extra_reward_funcs": ["support.even_ids"], "num_iterations": 2, "steps_per_generation": 1, "max_steps": 5},
        poison_logprobs,
        "old_per_token_logps is not finite",
    ),
    "reference log-probability": ({"extra_reward_funcs": ["support.even_ids"], "beta": 0.1}, poison_logprobs, "ref_per_token_logps is not finite"),
}  # fmt: skip


class Watch:
    """Weights after every step."""

    def __init__(self):
        from transformers import TrainerCallback

        class Kept(TrainerCallback):
            def on_step_end(_, args, state, control, model, **kwargs):
                self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

        self.weights, self.callback = [], Kept()

    def moved(self, one, other):
        return any(not torch.equal(self.weights[one][name], self.weights[other][name]) for name in self.weights[one])


@pytest.mark.parametrize("case", CASES)
def test_a_step_that_is_not_finite_is_skipped_counted_and_kept(case, random_tiny, rows, tmp_path, monkeypatch):
    """Weights and optimizer state stay as they were before the step, to the bit, and the steps after it learn."""
    changes, poison, told = CASES[case]
    watch = Watch()
    trainer = make_trainer(
        random_tiny, tmp_path, rows, callbacks=[watch.callback], **({"max_steps": 4, "weight_decay": 0.1} | changes)
    )
    if poison is not None:
        poison(trainer, monkeypatch)
    begun = time.monotonic()
    trainer.train()
    assert time.monotonic() - begun < 15
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    counted = [row["update/nonfinite_steps"] for row in lines if "loss" in row]
    skipped = [2, 3] if "num_iterations" in changes else [1]  # a generation serves two steps
    assert [step for step, share in enumerate(counted) if share] == skipped
    for step in range(1, len(counted)):
        assert watch.moved(step - 1, step) == (step not in skipped), step
    states = [state["step"].item() for state in trainer.optimizer.state.values()]
    assert set(states) == {len(counted) - len(skipped)}
    stem = f"step_{skipped[0] + 1:06d}_process_0"
    about = json.loads((tmp_path / "nonfinite" / f"{stem}.json").read_text())
    assert any(told in why for why in about["why"]) and about["step"] == skipped[0] + 1
    asked = {row["id"] for row in rows}
    assert about["question_ids"] and set(about["question_ids"]) <= asked
    losses = replay(trainer, tmp_path / "nonfinite" / f"{stem}.safetensors")
    assert len(losses) == 1 and math.isfinite(losses[0]) == (case in ("loss", "gradient"))


def test_too_many_in_a_row_end_the_run(random_tiny, rows, tmp_path):
    trainer = make_trainer(
        random_tiny,
        tmp_path,
        rows,
        max_steps=9,
        max_nonfinite_steps=3,
        extra_reward_funcs=["test_finite.never_a_number"],
    )
    with pytest.raises(NumbersError, match="3 steps in a row were skipped: the reward never_a_number is nan"):
        trainer.train()
    assert trainer.state.global_step == 2  # two were skipped, in the third the run ends
    assert len(list((tmp_path / "nonfinite").glob("*.json"))) == 3


def test_a_batch_is_replayed_to_the_same_loss(random_tiny, rows, tmp_path, monkeypatch):
    """What is kept of a step is all that its loss was computed from."""
    trainer = make_trainer(
        random_tiny, tmp_path, rows, max_steps=1, learning_rate=0.0, extra_reward_funcs=["support.even_ids"]
    )
    seen = []
    compute = type(trainer)._compute_loss
    monkeypatch.setattr(type(trainer), "_compute_loss", lambda *a: seen.append(compute(*a)) or seen[-1])
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda grad: grad * math.nan)
    trainer.train()
    assert replay(trainer, next((tmp_path / "nonfinite").glob("*.safetensors"))) == [seen[0].item()]


def noted():
    notes = {}
    return notes, notes.__setitem__


def test_numbers_pass_and_others_are_left_out():
    notes, distrust = noted()
    reward = within(lambda completions, **_: [1.0, None, math.nan, -math.inf, 0], 5, distrust)
    assert reward(completions=[""] * 5) == [1.0, None, None, None, 0]
    assert notes == {2: "the reward <lambda> is nan", 3: "the reward <lambda> is -inf"}


def test_what_hangs_is_left_in_time():
    def hangs(completions, **_):
        threading.Event().wait(10)

    notes, distrust = noted()
    begun = time.monotonic()
    assert within(hangs, 0.1, distrust)(completions=["", ""]) == [None, None]
    assert time.monotonic() - begun < 2 and set(notes) == {0, 1}
    assert notes[0] == "the reward hangs took more than 0.1 seconds"


def test_coroutines_are_bounded_too():
    async def slow(completions, **_):
        await asyncio.sleep(10)

    async def quick(completions, **_):
        return [1.0, math.nan]

    notes, distrust = noted()
    assert asyncio.run(within(slow, 0.05, distrust)(completions=[""])) == [None]
    assert asyncio.run(within(quick, 5, distrust)(completions=["", ""])) == [1.0, None]
    assert notes == {0: "the reward slow took more than 0.05 seconds", 1: "the reward quick is nan"}


def test_a_grader_may_use_signals_and_its_own_timeouts():
    """math-verify interrupts itself by SIGALRM, which only a main thread may set."""
    from math_verify import parse, verify

    def graded(completions, **_):
        return [float(verify(parse("1/2"), parse(text))) for text in completions]

    assert within(graded, 30, noted()[1])(completions=["0.5", "0.6"]) == [1.0, 0.0]

    async def impatient(completions, **_):
        raise TimeoutError("the judge's own")

    with pytest.raises(RunError, match="the judge's own"):
        asyncio.run(within(impatient, 5, noted()[1])(completions=[""]))


def test_what_computes_for_ever_is_interrupted_too():
    """A number without end, and code that catches everything it can."""

    def grows(completions, **_):
        number = 9
        while True:
            number = (number * number) % 10**4000

    def catches(completions, **_):
        while True:
            try:
                time.sleep(30)
            except Exception:
                continue

    for reward in (grows, catches):
        notes, distrust = noted()
        begun = time.monotonic()
        assert within(reward, 0.2, distrust)(completions=[""]) == [None] and notes
        assert time.monotonic() - begun < 5


def test_native_code_that_never_comes_back_ends_the_process_with_its_place():
    """Nothing in Python can stop it: the run ends at once instead of hanging, and goes on from its last checkpoint."""
    code = """
import re, mgpo.runs.finite as finite
finite.LEAST_GRACE = 1
def backtracks(completions, **_):
    re.fullmatch("(a+)+b", "a" * 60)
finite.within(backtracks, 0.5, print)(completions=[""])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1 and "Timeout" in ran.stderr and "in backtracks" in ran.stderr


def test_an_object_with_a_coroutine_is_one():
    class Judge:
        async def __call__(self, completions, **_):
            return [1.0]

    assert asyncio.run(within(Judge(), 5, noted()[1])(completions=[""])) == [1.0]


def test_an_error_of_a_reward_is_its_own():
    def wrong(completions, **_):
        raise KeyError("answer")

    def words(completions, **_):
        return ["good"]

    with pytest.raises(
        RunError, match="The reward function wrong failed: KeyError: 'answer' .*test_finite.py, line"
    ) as told:
        within(wrong, 5, noted()[1])(completions=[""])
    assert isinstance(told.value.__cause__, KeyError) and within(wrong, 5, noted()[1]).__name__ == "wrong"
    with pytest.raises(RunError, match="words failed: TypeError: .* must return a number or None for each"):
        within(words, 5, noted()[1])(completions=[""])


def test_a_policy_that_has_diverged_is_told(random_tiny, rows, tmp_path):
    """Sampling itself fails then, which no skipped step would mend."""
    trainer = make_trainer(random_tiny, tmp_path, rows, max_steps=2)
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(NumbersError, match="training has diverged"):
        trainer.train()

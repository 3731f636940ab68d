"""Two processes that each hold half of the weights (FSDP 2, ZeRO-3) are one: prompts are shared, and nothing waits for ever.

Of the second process all boxes are invalid and all rollouts silent; it samples shorter turns, and needs fewer packs.
"""

import importlib.util
import json

import pytest
import torch
from sharded import CASES, GIVEN_UP
from test_distributed import HERE, logged, questions, start  # noqa: F401
from transformers import Qwen2_5_VLForConditionalGeneration

SAMPLED = [name for name in CASES if name.startswith("sampled")]
UPDATED = [name for name in CASES if name not in SAMPLED]
EXACT = {"bf16": 3e-2}
"""Relative errors that are allowed: sharded training computes in bfloat16 where autocast computes in float32."""

NOT_SAVED = ("bf16", "lora")
"""Cases whose folder has no whole weights in float32: DeepSpeed saves 16 bits, and LoRA its own."""

ZERO_3 = pytest.param(
    "zero3",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
    ],
)


@pytest.fixture(scope="module")
def one(random_tiny, questions, tmp_path_factory):  # noqa: F811
    """Folder of the run in one process."""
    return ran("one", random_tiny, questions, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module", params=["fsdp2", ZERO_3])
def two(request, random_tiny, questions, tmp_path_factory):  # noqa: F811
    """Folder of the run in two processes."""
    return ran(request.param, random_tiny, questions, tmp_path_factory.mktemp(request.param))


def ran(how, model, questions, folder):  # noqa: F811
    done = start(HERE / "sharded.py", how, model, questions, folder, processes=1 if how == "one" else 2)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "Timeout" not in said, f"a process waited for {GIVEN_UP} seconds: {said[-4000:]}"
    return folder


def told(folder, processes=2):
    return [json.loads((folder / f"process_{i}.json").read_text()) for i in range(processes)]


def weights(folder):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("case", UPDATED)
def test_losses_and_gradients_are_the_same(case, one, two):
    before, after = logged(one / case), logged(two / case)
    assert len(before) == len(after) == 2 and all(row["grad_norm"] > 0.05 for row in before)
    assert {row["grounding/valid_share"] for row in before + after} == {0.5}
    for key in ("loss", "grad_norm", "reward", "reward_std"):
        expected = pytest.approx([row[key] for row in before], rel=EXACT.get(case, 1e-5), abs=1e-6)
        assert [row[key] for row in after] == expected, key


@pytest.mark.parametrize("case", [case for case in UPDATED if case not in NOT_SAVED])
def test_weights_are_the_same(case, one, two, random_tiny):
    """The error is relative to the distance that a tensor has moved."""
    began, before, after = (weights(folder) for folder in (random_tiny, one / case, two / case))
    moved = [name for name in before if (before[name] - began[name]).norm() > 1e-5]
    assert len(moved) > 40
    for name in moved:
        error, way = (after[name] - before[name]).norm(), (before[name] - began[name]).norm()
        assert error < 1e-4 * way + 1e-7 * before[name].norm(), name
    assert all(torch.equal(before[name], began[name]) == torch.equal(after[name], began[name]) for name in before)


@pytest.mark.parametrize("case", CASES)
def test_processes_run_their_layers_equally_often(case, one, two):
    """One process alone can need fewer packs: those of two are filled from fewer rollouts each."""
    first, second = (of["calls"] for of in told(two / case))
    assert first == second and all(first.values())
    assert all(told(one / case, 1)[0]["calls"][name] <= number for name, number in first.items())


@pytest.mark.parametrize("case", SAMPLED)
def test_turns_are_those_of_one_process(case, one, two):
    """Although the processes need different numbers of steps to sample them."""
    (alone,), (first, second) = told(one / case, 1), told(two / case)
    assert [a + b for a, b in zip(first["said"], second["said"], strict=True)] == alone["said"]
    assert len(alone["said"]) == 4
    lengths = [[max(map(len, turns)) for turns in of["said"]] for of in (first, second)]
    assert lengths[0] != lengths[1]


def test_the_second_process_has_no_signal_and_fewer_packs(two):
    """What the cases are there for."""
    assert {row["update/rollouts_skipped"] for row in logged(two / "silent")} == {(2 / 4 + 3 / 4) / 2}
    calls = {case: told(two / case)[1]["calls"] for case in ("reference", "cut")}
    assert calls["cut"] == calls["reference"]  # its rollouts were all cut off: alone it would need one pack per pass

"""What a step is said to need is what goes through the model, in the first step and in later ones."""

from dataclasses import replace

import pytest

from benchmarks import phases
from benchmarks.phases import Seconds, shares, works
from benchmarks.step import Counts
from benchmarks.workload import SHAPES, begin_step, make_rows, make_trainer, set_boxes


@pytest.fixture(scope="module", params=[True, False], ids=["tower frozen", "tower trained"])
def steps(request, tmp_path_factory):
    """Two steps over the same questions: what was counted, what is needed, and the shares."""
    shape = replace(SHAPES[0], questions=2, frozen=request.param)
    folder = tmp_path_factory.mktemp("phases")
    rows = make_rows(shape, folder)
    trainer = make_trainer(shape, rows, True, folder / "run")
    spent, counts, found = Seconds(trainer), Counts(trainer.model), []
    for seed in range(2):
        begin_step(trainer, seed)
        spent.clear()
        with set_boxes(seed):
            inputs = trainer._prepare_inputs(rows)
        rollout = counts.take()
        spent.update(trainer, inputs)
        found.append((rollout, counts.take(), works(trainer, inputs, request.param), shares(trainer, inputs, spent)))
    return found


def test_what_is_needed_is_what_is_computed(steps):
    for (prefilled, encoded), (updated, encoded_again), need, _ in steps:
        assert need["prefill"].tokens == prefilled and 0 < need["prefill"].patches <= encoded
        if not encoded_again:  # a trained tower encodes an overview again that is shown again after a rejected box
            assert need["prefill"].patches == encoded
        assert need["update"].tokens == updated and need["update"].patches == encoded_again
        assert 0 < need["update"].scored == need["sampling"].tokens < need["update"].tokens


def test_every_phase_has_a_share(steps):
    for *_, found in steps:
        assert found.keys() == {*phases.PHASES, "update", "matmul_gflops"} and all(one > 0 for one in found.values())
        ahead, back = found["update_forward"], found["update_backward"]
        assert min(ahead, back) <= found["update"] <= max(ahead, back)

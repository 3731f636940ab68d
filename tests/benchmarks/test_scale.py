"""The simulator: its operations are those of the counted steps, held-out steps are met, and no change has the wrong sign."""

import json
import re
import runpy
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support import make_rows

from benchmarks import flops, scale, work
from benchmarks.calibrate import Machine, Need, calibrated, errors, fit, machine, needs, points, seconds, whole
from benchmarks.machines import GPUS, Cluster
from benchmarks.published import PUBLISHED, slowdown
from benchmarks.simulate import PAPER, Assumed, Run, exchange, running, step
from benchmarks.work import Operations, ahead, back, config_of, prefilled, sampled, updated
from mgpo.images.imaging import PixelBudget
from mgpo.planning.estimate import GIB
from mgpo.planning.gpus import Gpus
from mgpo.planning.sizes import SIZES
from mgpo.planning.validate import validate_recipe

ROOT = Path(__file__).parents[2]
H100 = Cluster(4, 8, "H100")
CLAIMED = {"step": 0.1, "prefill": 0.15, "update_forward": 0.15, "update_backward": 0.15, "sampling": 0.3}
"""Mean of absolute errors on held-out steps: what docs/scaling.md shows, rounded up."""


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "docs/write_scaling.py"))


def test_operations_from_mean_lengths_are_those_that_a_step_needed():
    """`benchmarks.phases` counted them token by token in the measured steps."""
    for point in points():
        for name, counted in point.operations.items():
            assert needs(point)[name].operations.total == pytest.approx(counted, rel=0.06), (point.name, name)


def test_held_out_steps_are_met():
    chosen = [point for point in points() if point.held_out]
    assert len(chosen) >= 4 and max(p.size.parameters for p in chosen) > max(
        p.size.parameters for p in points() if not p.held_out
    )
    found = errors(chosen, calibrated())
    for name, most in CLAIMED.items():
        assert statistics.mean(map(abs, found[name])) < most, name


def test_held_out_steps_do_not_decide_the_factors():
    assert fit(point for point in points() if not point.held_out) == calibrated() != fit(points()[:3])
    assert 0 < max(calibrated().products, calibrated().memory, calibrated().attention) <= 1


def test_work_is_a_sum_of_the_same_counts_as_in_flops():
    """Two turns of 3 and 4 tokens after a prompt of 20, with 10 more in between; two rollouts."""
    config = config_of(SIZES["Qwen2.5-VL-3B"])
    episode = work.Episode(question=16, overview=4, reply=6, crop=4, said=(3, 4), longest=(3, 4))
    shown = flops.image(config, (4, 4))
    assert work.image(config, 4) == shown
    assert prefilled(config, episode, 2) == shown * 3 + flops.continued(0, 19) + flops.continued(22, 10) * 2
    turns = flops.continued(19, 3, range(3)) + flops.continued(32, 4, range(4))
    assert sampled(episode, 2) == turns * 2
    update = updated(config, episode, 2, 1, frozen=True)
    assert update.tokens == 19 + 2 * 17 and update.scored == 2 * 7 and update.patches == 0
    assert update.scored_pairs == turns.scored_pairs * 2
    assert updated(config, episode, 2, 1, False).patches == 3 * shown.patches
    repeated = updated(config, episode, 2, 1, True, shared=False)
    assert repeated.tokens == repeated.scored == 2 * 37 and repeated.pairs > update.pairs
    whole_pass = flops.forward(config, update)
    assert ahead(config, update).total == whole_pass and back(config, update, True).total == 2 * whole_pass


def test_weights_read_for_a_token_are_the_model_s_linear_weights():
    size = SIZES["Qwen2.5-VL-7B"]
    assert work.read_weights(config_of(size)) == size.text_linear + size.hidden * size.vocabulary


@pytest.mark.parametrize("model", ["Qwen2.5-VL-7B", "Qwen2.5-VL-72B"])
@pytest.mark.parametrize("name", ["H100", "A100", "H200"])
def test_more_gpus_are_never_slower_and_never_cheaper(model, name):
    """At fixed work, on machines of eight."""
    times = [step(Run(model, parallel=8), Cluster(nodes, 8, name)).seconds for nodes in (1, 2, 4, 8, 16, 64)]
    assert times == sorted(times, reverse=True)
    hours = [nodes * spent for nodes, spent in zip((1, 2, 4, 8, 16, 64), times)]
    assert all(more >= 0.98 * less for less, more in zip(hours, hours[1:])), (
        "not faster than by as many GPUs as were added"
    )


@pytest.mark.parametrize(
    "less, more",
    [
        (Run(rollouts=4), Run()),
        (Run(questions=128), Run()),
        (Run(old=False), Run()),
        (Run(checkpointing=False), Run()),
        (Run(frozen=True), Run()),
        (Run(), Run(shared=False)),
        (Run(reference=False, silent=0.5), Run(reference=False)),
        (Run(batch=8), Run()),
        (Run("Qwen2.5-VL-3B"), Run()),
        (Run("Qwen2.5-VL-32B", parallel=8), Run("Qwen2.5-VL-72B", parallel=8)),
        (Run(), Run(episode=scale.episode_of(1280, 3))),
        (Run(episode=scale.episode_of(640, 2)), Run(episode=scale.episode_of(1280, 2))),
        (Run(), Run(episode=replace(PAPER, longest=(256, 4096)))),
    ],
)
def test_what_is_less_work_takes_less_time(less, more):
    assert step(less, H100).seconds < step(more, H100).seconds


def test_better_links_and_memory_are_never_slower(monkeypatch):
    before = step(Run(), H100)
    for field in ("operations", "bandwidth", "link", "network"):
        monkeypatch.setitem(GPUS, "H100", replace(GPUS["H200"], **{field: 10 * getattr(GPUS["H100"], field)}))
        assert step(Run(), H100).seconds <= before.seconds
        monkeypatch.setitem(GPUS, "H100", replace(GPUS["H200"], bandwidth=3.35e12, gb=80))
    monkeypatch.setitem(GPUS, "H100", replace(GPUS["H200"], network=5e7, link=5e7))
    assert step(Run(), H100).bottleneck[1] == "network"


def test_exchanges_take_what_the_slowest_link_takes():
    assert exchange(Cluster(1, 1, "H100"), 1e12, Assumed()) == 0
    one = exchange(Cluster(1, 8, "H100"), 450e9 * 8 / 7, Assumed(network=1))
    assert one == pytest.approx(1.0), "seven eighths come from the others, at 450 GB/s"
    four = exchange(Cluster(4, 8, "H100"), 400e9 * 4 / 3, Assumed(network=1))
    assert four == pytest.approx(max(1.0, 400e9 * 4 / 3 * 7 / 8 / 450e9))


def test_a_phase_takes_the_longest_of_its_parts():
    need = Need(Operations(4e9, 1e9), read=2e9, network=0.5, layers=100)
    factors = replace(calibrated(), products=0.5, attention=0.5, memory=0.5, layer_call=1e-3)
    cpu, gpu = Machine(1e10, 1e10), Machine(1e10, 1e10, asynchronous=True)
    assert seconds(need, cpu, factors) == pytest.approx({"compute": 1.0, "memory": 0.4, "network": 0.5, "calls": 0.1})
    assert whole(seconds(need, cpu, factors), cpu) == pytest.approx(1.1), "a CPU does nothing else during its calls"
    assert whole(seconds(need, gpu, factors), gpu) == pytest.approx(1.0)
    assert 1e10 < machine().rate < 1e12 and 1e9 < machine().bandwidth < 1e12, (
        "operations and bytes per second of a core"
    )


def test_vllm_runs_as_many_rollouts_as_its_share_has_caches_for():
    few, many = (running(Run(engine=share), H100) for share in (0.3, 0.6))
    assert many - few == pytest.approx(0.3 * 79 * GIB / ((1430 / 8 + 1110) * SIZES["Qwen2.5-VL-7B"].cache_bytes))
    assert running(Run("Qwen2.5-VL-72B"), H100) == 1.0, "its weights alone do not fit: no division by what is not there"
    assert running(Run(engine=None), H100) == float("inf")


RECIPES = [p for p in sorted((ROOT / "src/mgpo/recipes").glob("qwen2_5*.yaml")) if "server" not in p.stem]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_s_run_needs_the_memory_that_validate_prints(path):
    text = path.read_text()
    gpus = Gpus.read(re.search(r"^# GPUs: (\S+)", text, re.MULTILINE).group(1)).count
    cluster = Cluster(max(1, gpus // 8), min(8, gpus), "H100")
    run = scale.run_of(yaml.safe_load(text), gpus)
    (line,) = (line for line in validate_recipe(path, ["--num_gpus", str(gpus)]) if "on each GPU at once" in line)
    assert scale.memory(run, cluster).needed / GIB == pytest.approx(
        float(re.search(r"have ([\d.]+) GiB", line).group(1)), abs=0.1
    )
    assert step(run, cluster).seconds > 0


def test_the_paper_s_recipe_is_the_paper_s_run():
    recipe = yaml.safe_load((ROOT / "src/mgpo/recipes/qwen2_5_vl_7b_mgpo.yaml").read_text())
    assert scale.run_of(recipe, 32) == Run()
    with pytest.raises(ValueError, match="Qwen3-VL-2B-Instruct is not simulated; only Qwen2.5-VL-3B"):
        scale.run_of(recipe | {"model_name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}, 8)


def test_the_paper_s_run_is_printed_with_what_is_assumed(capsys):
    scale.main([])
    said = capsys.readouterr().out
    assert "Qwen2.5-VL-7B on 4x8xH100: 512 questions x 8 rollouts per step, 80 steps (1.9 epochs)" in said
    for part in (
        "bottleneck: update_backward",
        "GPU hours simulated (a lower bound)",
        "was measured on a GPU",
        "peak: 0.7",
        "held-out",
    ):
        assert part in said
    scale.main(["--json", "--model", "Qwen2.5-VL-3B", "--cluster", "2x8xA100", "--turns", "3", "--visual", "640"])
    told = json.loads(capsys.readouterr().out)
    assert told["measured_on_gpu"] is False and told["gpus"] == 16 and len(told["assumed"]["episode"]["said"]) == 3
    assert told["step_seconds"] == pytest.approx(sum(told["seconds"].values()))
    assert told["gpu_hours"] == pytest.approx(80 * told["step_seconds"] * 16 / 3600)
    low, high = told["gpu_hours_by_published_steps"]
    assert told["gpu_hours"] < low < high and 0 < told["share_of_peak"] < 0.7


def test_a_data_set_says_how_large_its_overviews_are(tmp_path, capsys):
    rows = make_rows(tmp_path)
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    count, tokens = scale.overviews(str(tmp_path / "my.jsonl"), PixelBudget())
    assert count == len(rows) and 256 <= tokens <= 1280
    scale.main(["--json", "--data", str(tmp_path / "my.jsonl")])
    told = json.loads(capsys.readouterr().out)
    assert told["assumed"]["episode"]["overview"] == tokens and told["epochs"] == 80 * 512 / count


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cluster", "8 H100"], "write machines x GPUs x name, such as 4x8xH100. Known GPUs: H200"),
        (["--cluster", "8xV100"], "Known GPUs"),
        (["--model", "Qwen3-VL-2B"], "only Qwen2.5-VL-3B"),
        (["--recipe", "no.yaml"], "no.yaml does not exist"),
    ],
)
def test_what_cannot_be_simulated_is_a_sentence(arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        scale.main(arguments)


def test_clusters_are_read():
    assert Cluster.read("8xH100") == Cluster(1, 8, "H100") and Cluster.read("4x8xA100").gpus == 32
    assert str(Cluster.read("4x8xA100")) == "4x8xA100"


def test_published_steps_were_slower_than_simulated_ones():
    """The simulation is called a lower bound."""
    low, high = slowdown()
    assert 1 < low < high < 6 and len(PUBLISHED) == 5


def test_the_tables_of_the_page_are_what_its_script_writes(script):
    """Else: python docs/write_scaling.py"""
    page = (ROOT / "docs/scaling.md").read_text()
    assert script["page"](page) == page
    for number in (PAPER.prompt, PAPER.own, PAPER.prompt + 8 * PAPER.own, 8 * (PAPER.prompt + PAPER.own), 8 * 220):
        assert f"{number:,}" in page

"""Whatever a model writes, reading its box raises nothing, takes no time, and ends in a reason that is counted."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hostile_texts import FRAME, RULES, SECONDS, assert_total, least_seconds, texts
from hypothesis import HealthCheck, example, given, settings
from support import Script, box, make_trainer, rollouts

from mgpo.method.boxes import BoxStatus
from mgpo.method.grounding import read_grounding
from mgpo.method.rewards import boxed, chosen_letter

EXAMPLES = 10_000


def test_ten_thousand_hostile_texts():
    seen = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(text=texts)
    @example(text='[{"bbox_2d": [true, 0, 100, 100], "label": "a"}]')  # the rarest reasons: ten thousand may miss them
    @example(text='```json\n{"bbox_2d": [0, 0, 100, 100], "label": "a"}\n```')
    @example(text='[{"bbox_2d": [0, 0, 1, 1], "label": "a"}]')
    @example(text='[{"bbox_2d": [0, 0, 2000, 100], "label": "a"}]')
    def read(text):
        seen[assert_total(text, RULES[len(text) % 2])] += 1

    read()
    assert sum(seen.values()) >= EXAMPLES
    # Those two need a longer image than this, or several of them.
    assert set(seen) == set(BoxStatus) - {BoxStatus.TOO_NARROW, BoxStatus.NO_IMAGE}, seen


@settings(max_examples=1_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(text=texts)
def test_the_reward_reads_them_too(text):
    given_answer = boxed(text)
    assert given_answer is None or chosen_letter(given_answer, ("red", "blue")) in (None, "A", "B")


@pytest.mark.parametrize("digits", [10**4, 10**7, pytest.param(10**9, marks=pytest.mark.slow)])
def test_endless_numbers_cost_nothing(digits):
    text = '```json\n[{"bbox_2d": [0, 0, 100, ' + "9" * digits + '], "label": "a"}]\n```'
    assert read_grounding(text, FRAME).status is BoxStatus.TOO_LONG
    assert least_seconds(read_grounding, text, FRAME) < SECONDS


HOSTILE = (
    "",
    "```json\n[{" * 50,
    box((5, 5, 300, 90)),
    box((90, 90, 5, 5)),
    box((-5, 0, 50, 50)),
    '[{"bbox_2d": [NaN]}]',
)


def test_every_reason_is_counted(random_tiny, rows, tmp_path, monkeypatch):
    """Shares of valid boxes and of all reasons add up to one, whatever was written."""
    Script((HOSTILE, ("\\boxed{A}",) * 6)).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows, per_device_train_batch_size=6, max_grounding_tokens=400)
    trainer._generate_and_score_completions(rollouts(rows, 3))
    shares = {
        name: sum(values) / len(values)
        for name, values in trainer._metrics["train"].items()
        if name.startswith("grounding/rejected_") or name == "grounding/valid_share"
    }
    assert len(shares) == len(BoxStatus) and sum(shares.values()) == pytest.approx(1)
    assert shares["grounding/rejected_no_json"] == pytest.approx(1 / 6)
    assert shares["grounding/rejected_inverted"] == pytest.approx(1 / 6)


@pytest.mark.slow
def test_coverage_guided_fuzzing_finds_nothing(tmp_path):
    """atheris: 200,000 inputs that are mutated towards new branches of the parser."""
    pytest.importorskip("atheris")
    script = Path(__file__).with_name("fuzz_grounding.py")
    # No limit of memory: Linux hands this process' own peak on to what it starts, and a billion digits were in it.
    limits = ["-runs=200000", "-max_len=6000", "-seed=1", "-rss_limit_mb=0"]
    command = [sys.executable, str(script), f"-artifact_prefix={tmp_path}/", *limits]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=script.parent, timeout=280)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "Done 200000 runs" in ran.stderr, ran.stderr[-3000:]
    reached = {line.split()[-1] for line in ran.stderr.splitlines() if line.startswith("reached: ")}
    assert {str(status) for status in BoxStatus} - reached <= {"too_narrow"}, reached

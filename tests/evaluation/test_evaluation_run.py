"""`mgpo eval`: a run that is killed and started again leaves the same results as one that is not."""

import io
import json
import shutil
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mgpo.cli import app
from mgpo.evaluation import batches
from mgpo.evaluation.request import EvaluationRequest
from mgpo.evaluation.results import read_records
from mgpo.evaluation.run import run_evaluation
from mgpo.method.episode import End
from mgpo.method.lenient import Answers
from mgpo.method.protocol import Method

QUIET = Console(quiet=True)


@pytest.fixture
def request_of(random_tiny, tmp_path):
    def make(**changes):
        base = EvaluationRequest(
            str(random_tiny), ("needle",), tmp_path / "out", n=7, batch_size=3, grounding_tokens=6, answer_tokens=6,
            sampled=True,
        )  # fmt: skip
        return replace(base, **changes)

    return make


def without_time(file):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_records(file)]


@pytest.mark.parametrize("survives", [1, 2])
def test_a_killed_run_goes_on_to_the_same_results(request_of, tmp_path, monkeypatch, survives):
    run_evaluation(request_of(out=tmp_path / "whole"), QUIET)
    written, real = [], batches.append

    def dies(file, records):
        if len(written) == survives:
            with file.open("a") as out:
                out.write('{"id": "half a li')
            raise KeyboardInterrupt
        written.append(real(file, records))

    monkeypatch.setattr(batches, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(request_of(out=tmp_path / "killed"), QUIET)
    monkeypatch.setattr(batches, "append", real)
    run_evaluation(request_of(out=tmp_path / "killed"), QUIET)
    assert without_time(tmp_path / "killed/needle.jsonl") == without_time(tmp_path / "whole/needle.jsonl")
    killed, whole = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("killed", "whole"))
    for row in (*killed, *whole):
        row.pop("seconds_per_question")
    assert killed == whole and whole[0]["n"] == 7 and whole[0]["boxes"] == "sampled"


def test_a_longer_run_takes_up_the_shorter_one(request_of, tmp_path):
    run_evaluation(request_of(n=4), QUIET)
    run_evaluation(request_of(), QUIET)
    run_evaluation(request_of(out=tmp_path / "whole"), QUIET)
    assert without_time(tmp_path / "out/needle.jsonl") == without_time(tmp_path / "whole/needle.jsonl")


def test_other_data_or_settings_are_refused(request_of, rows, tmp_path):
    from mgpo.data.convert import convert

    convert(iter(rows), "jsonl", tmp_path / "data", "test")
    asked = request_of(tasks=("vstar",), data={"vstar": str(tmp_path / "data")}, n=4)
    (row,) = run_evaluation(asked, QUIET)
    assert row["n"] == 4 and row["task"] == "vstar" and row["boxes"] == "sampled"
    convert(iter(rows[::-1]), "jsonl", tmp_path / "data", "test", overwrite=True)
    with pytest.raises(ValueError, match="was made from other data"):
        run_evaluation(asked, QUIET)
    with pytest.raises(ValueError, match="pixel_budget: .* -> 7840"):
        run_evaluation(replace(asked, max_pixels=7840), QUIET)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "data/test.jsonl").open("a").write('{"image": "gone.png", "question": "?", "answer": "x"}\n')
    with pytest.raises(ValueError, match="row 7: its image .*gone.png does not exist"):
        run_evaluation(asked, QUIET)
    assert not (tmp_path / "out").exists(), "bad rows are told before anything is written"


@pytest.mark.parametrize("protocol", ["mgpo", "grpo", "direct", "adaptive"])
def test_every_protocol_runs(request_of, tmp_path, protocol):
    (row,) = run_evaluation(request_of(protocol=protocol, n=2, sampled=False), QUIET)
    assert row["protocol"] == protocol and row["boxes"] == "greedy"
    (first, _) = read_records(tmp_path / "out/needle.jsonl")
    assert first["end"] in list(End) and first["source"] == "" and first["seconds"] > 0
    assert (first["valid_box"] is None) == (protocol == Method.DIRECT)


def test_the_command_line_prints_a_table(random_tiny, tmp_path):
    args = ["eval", "--model", str(random_tiny), "--tasks", "needle", "--n", "2", "--answer-tokens", "4",
            "--grounding-tokens", "4", "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "needle" in done.output and "chance" in done.output and "25.0" in done.output
    both = CliRunner().invoke(app, ["compare", str(tmp_path / "out"), str(tmp_path / "out")])
    assert both.exit_code == 0 and "+0.0" in both.output


def test_without_out_the_same_model_on_other_data_takes_another_folder(random_tiny, rows, tmp_path, monkeypatch):
    """Two files of one name, as in train/questions.jsonl and test/questions.jsonl; then fewer questions of the second."""
    from mgpo.data.convert import convert

    monkeypatch.chdir(tmp_path)
    for place, some in (("one", rows[:2]), ("two", rows[2:])):
        convert(iter(some), "jsonl", tmp_path / place, "test")
    [file] = [file.name for file in (tmp_path / "one").glob("*.jsonl")]
    name = random_tiny.name
    for place, limit, out, said in (
        ("one", "4", f"{name}-direct-ownpx", "results:"),
        ("two", "4", f"{name}-direct-ownpx-2", "so these go into"),
        ("./two", "1", f"{name}-direct-ownpx-2", "summary.json keeps its row over more questions"),
    ):
        args = ["eval", "--model", str(random_tiny), "--tasks", f"{place}/{file}", "--protocol", "direct", "--limit", limit,
                "--answer-tokens", "4"]  # fmt: skip
        done = CliRunner().invoke(app, args)
        assert done.exit_code == 0, done.output
        assert f"results: runs/eval/{out}\n" in done.output and said in done.output
    [row] = json.loads((tmp_path / "runs/eval" / out / "summary.json").read_text())
    assert row["n"] == 4 == len(read_records(tmp_path / "runs/eval" / out / file))


def test_a_world_in_vstars_layout_has_the_scores_of_the_world(request_of, tmp_path):
    from mgpo.data.convert import convert
    from mgpo.worlds.needle import needle_rows

    convert(needle_rows("test", 1, 6), "vstar", tmp_path / "vstar", "test")
    run_evaluation(request_of(n=6), QUIET)
    run_evaluation(
        request_of(n=6, tasks=("vstar",), data={"vstar": str(tmp_path / "vstar")}, out=tmp_path / "v"), QUIET
    )
    world, layout = without_time(tmp_path / "out/needle.jsonl"), without_time(tmp_path / "v/vstar.jsonl")
    for one, other in zip(world, layout, strict=True):
        for key in one.keys() - {"source", "overview", "turns", "images_digest"}:
            assert one[key] == other[key], key
        assert [turn["text"] for turn in one["turns"]] == [turn["text"] for turn in other["turns"]]


def test_answers_without_a_box_are_read_if_asked_for_beside_the_strict_score(request_of, rows, tmp_path, monkeypatch):
    """Every reply is "The answer is B." of which the strict score reads nothing; the strict score is the same either way."""
    from mgpo.data.convert import convert
    from mgpo.policies.local import LocalPolicy

    says, real = "The answer is B.", LocalPolicy.say

    def say(policy, conversations, *args, **kwargs):
        return [replace(said, text=says, truncated=False) for said in real(policy, conversations, *args, **kwargs)]

    monkeypatch.setattr(LocalPolicy, "say", say)
    convert(iter(rows), "jsonl", tmp_path / "data", "test")
    asked = request_of(tasks=("vstar",), data={"vstar": str(tmp_path / "data")}, n=6, sampled=False, protocol="direct")
    (strict,) = run_evaluation(asked, QUIET)
    assert strict["accuracy"] == 0 and "lenient_accuracy" not in strict
    shown = Console(record=True, width=160, file=io.StringIO())
    (lenient,) = run_evaluation(replace(asked, answers=Answers.LENIENT), shown)  # the same results, read again
    expected = sum(row["answer"] == "B" for row in rows) / len(rows)
    assert (lenient["accuracy"], lenient["lenient_accuracy"], lenient["unboxed"]) == (0, expected, 6) and expected > 0
    text = shown.export_text()
    assert "leniently" in text and f"{100 * expected:.1f}" in text
    says = f"\\boxed{{{'B'}}}"
    (boxed,) = run_evaluation(replace(asked, answers=Answers.LENIENT, out=tmp_path / "boxed"), QUIET)
    assert boxed["accuracy"] == boxed["lenient_accuracy"] == expected and boxed["unboxed"] == 0


def test_the_table_says_of_how_many_questions_a_share_is_and_what_was_cut_off(request_of, rows, tmp_path):
    from mgpo.data.convert import convert

    some = [row | {"category": "x" if place else "y"} for place, row in enumerate(rows)]
    some[0] |= {"gold_boxes": [[0, 0, 4, 4]]}
    for row in some[1:]:
        row.pop("gold_boxes", None)
    convert(iter(some), "jsonl", tmp_path / "data", "test")
    [file] = (tmp_path / "data").glob("*.jsonl")
    shown = Console(record=True, width=80, file=io.StringIO())
    asked = request_of(tasks=(str(file),), n=6, sampled=False, protocol="direct", answer_tokens=1)
    [row] = run_evaluation(replace(asked, protocol="mgpo", grounding_tokens=1), shown)
    text = " ".join(shown.export_text().split())
    assert row["hit_n"] == 1 and "hit and IoU are of the 1 question with gold boxes" in text
    assert row["cut_off_answers"] == row["cut_off_grounding"] == 6
    assert "6 last turns were cut off at their token limit, which --answer-tokens raises" in text
    assert "6 earlier turns were cut off at their token limit, which --grounding-tokens raises" in text
    assert row["by_category_n"] == {"y": 1, "x": 5} and " x 5 " in text

"""`mgpo view`: a page for a training and for an evaluation, with pictures, and nothing taken from data as markup."""

import json

import pytest
from rich.console import Console
from support import make_rows

from mgpo.data.convert import convert
from mgpo.evaluation.request import EvaluationRequest
from mgpo.evaluation.run import run_evaluation
from mgpo.pages.viewing import write_view


@pytest.fixture
def evaluated(random_tiny, tmp_path):
    rows = make_rows(tmp_path, 4)
    rows[0]["question"] += " <script>alert(1)</script>"
    convert(iter(rows), "jsonl", tmp_path / "data", "test")
    request = EvaluationRequest(
        str(random_tiny), ("vstar",), tmp_path / "out", {"vstar": str(tmp_path / "data")}, grounding_tokens=4,
        answer_tokens=4, pictures=3, batch_size=2,
    )  # fmt: skip
    run_evaluation(request, Console(quiet=True))
    return tmp_path / "out"


def test_an_evaluation_becomes_a_page(evaluated):
    page = write_view(evaluated).read_text()
    assert page.count('<article class="card"') == 4 and page.count("Overview image of") == 3
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert " % of 4 questions right" in page and "data-answer=" in page and 'src="http' not in page
    record = json.loads((evaluated / "vstar.jsonl").read_text().splitlines()[0])
    assert (evaluated / record["overview"]).is_file() and (evaluated / record["turns"][0]["shown"]).is_file()


def test_a_training_becomes_a_page(evaluated, tmp_path):
    run = tmp_path / "run"
    (run / "trajectories").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.6}\n')
    lines = (evaluated / "vstar.jsonl").read_text()
    for step in (0, 20):
        (run / "trajectories" / f"step_{step:06d}.jsonl").write_text(lines)
    page = write_view(run, tmp_path / "page.html").read_text()
    assert "Learning curves" in page and "step 20" in page and page.count('<article class="card"') == 4


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither metrics.jsonl"):
        write_view(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        write_view(tmp_path / "none")

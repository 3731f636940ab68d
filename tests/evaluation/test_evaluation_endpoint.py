"""`mgpo eval` of a model that a server runs: what happens when it refuses a question or ends."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("openai")
from plain_chat import answering, completion, serving  # noqa: E402

from mgpo.evaluation.request import EvaluationRequest  # noqa: E402
from mgpo.evaluation.results import read_records  # noqa: E402
from mgpo.evaluation.run import run_evaluation  # noqa: E402

QUIET = Console(quiet=True)


@pytest.fixture
def request_to(tmp_path):
    """Twelve questions in batches of four, asked directly of the server at an address."""

    def request(url):
        return EvaluationRequest(
            "tiny", ("needle",), tmp_path / "out", n=12, protocol="direct", batch_size=4, endpoint=url, pictures=0
        )

    return request


def refusing(numbers):
    """Chat completions of a server that refuses the requests with these numbers, counted from 1."""
    asked = []

    def complete(body):
        asked.append(body)
        number = len(asked) - 4  # before the questions it is asked about three grey images and a text
        if number in numbers:
            raise fastapi.HTTPException(400, "This model's maximum context length is 2048 tokens.")
        return completion("\\boxed{A}")

    return complete


def test_a_refused_question_stops_and_names_the_questions_or_counts_as_wrong(request_to):
    with serving(answering(["tiny"], refusing({6}))) as url:
        with pytest.raises(ConnectionError) as stopped:
            run_evaluation(request_to(url), QUIET)
    told = str(stopped.value)
    assert "refused a request (400 This model's maximum context length is 2048 tokens.)" in told
    assert "It was asked questions 5 to 8 of needle" in told and "--refused-is-wrong" in told
    assert "4 answers are kept" in told
    shown = Console(record=True, width=160, file=io.StringIO())
    with serving(answering(["tiny"], refusing({6}))) as url:  # at another address; question 5 to 8 are asked again
        again = replace(request_to(url), refused_is_wrong=True)
        with pytest.raises(ValueError, match="add --endpoint-moved"):
            run_evaluation(again, QUIET)
        [row] = run_evaluation(replace(again, moved=True), shown)
    text = shown.export_text()
    assert "skipping 4 of 12" in text and "1 question was refused by the server" in text
    records = read_records(request_to(url).out / "needle.jsonl")
    assert row["refused"] == 1 and [bool(record["refused"]) for record in records].count(True) == 1
    assert all(
        record["refused"].count("2048") == 1 and not record["correct"] for record in records if record["refused"]
    )
    right = sum(record["answer"] == "A" and not record["refused"] for record in records)
    assert row["accuracy"] == right / 12


def test_a_server_that_refuses_everything_is_no_wrong_answer(request_to):
    with (
        serving(answering(["tiny"], refusing(range(1, 99)))) as url,
        pytest.raises(ConnectionError, match="questions (1 to 4|5 to 8) of needle.*--answer-tokens\\.$"),
    ):
        run_evaluation(replace(request_to(url), refused_is_wrong=True), QUIET)


def test_the_question_with_the_crop_alone_can_be_left_out(request_to, tmp_path):
    counts = []
    for crop_alone in (True, False):
        seen = []

        def complete(body, seen=seen):
            seen.append(body)
            return completion("[]")

        with serving(answering(["tiny"], complete)) as url:
            asked = replace(
                request_to(url),
                protocol="mgpo",
                coordinates="relative_1000",
                crop_alone=crop_alone,
                out=tmp_path / str(crop_alone),
            )
            [row] = run_evaluation(asked, QUIET)
        assert (row["crop_only_accuracy"] is None) == (not crop_alone)
        counts.append(len(seen) - 4)
    assert counts == [36, 24]


def test_a_right_answer_after_a_refused_first_turn_is_wrong(request_to):
    with serving(answering(["tiny"], refusing(range(2, 13)))) as url:
        asked = replace(
            request_to(url), protocol="mgpo", coordinates="relative_1000", batch_size=12, refused_is_wrong=True
        )
        [row] = run_evaluation(replace(asked, crop_alone=False), QUIET)
    records = read_records(asked.out / "needle.jsonl")
    refused = [record for record in records if record["refused"]]
    assert len(refused) == row["refused"] == 11 and not any(record["correct"] for record in refused)
    assert any(record["given"] == record["answer"] for record in refused)

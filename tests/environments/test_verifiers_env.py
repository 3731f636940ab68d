"""The environment inside verifiers itself: `make test-verifiers` sets up its own Python; skipped where it is missing."""

import asyncio
import base64
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import fastapi
import pytest

vf = pytest.importorskip("verifiers.v1")

import datasets  # noqa: E402
from PIL import Image  # noqa: E402
from plain_chat import chat_app, completion, serving  # noqa: E402
from rich.console import Console  # noqa: E402
from support import WIDE, box, several  # noqa: E402

import mgpo_verifiers  # noqa: E402
from mgpo.environments.verifiers_env import GroundingData, GroundingHarness, GroundingTask, load_environment  # noqa: E402
from mgpo.evaluation.request import EvaluationRequest  # noqa: E402
from mgpo.evaluation.run import run_evaluation  # noqa: E402
from mgpo.images.photograph import Photograph  # noqa: E402
from mgpo.jsonl import read_jsonl  # noqa: E402
from mgpo.method.prompts import SHOW_AGAIN, SHOW_CROP  # noqa: E402
from mgpo.method.question import Question  # noqa: E402
from mgpo.policies.local import LocalPolicy  # noqa: E402
from mgpo.tiny.views import BUDGET  # noqa: E402

TINY = {"coordinates": "absolute", "min_pixels": BUDGET.min_pixels, "max_pixels": BUDGET.max_pixels}
LIMITS = {"grounding_tokens": 64, "answer_tokens": 16}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """verifiers writes a folder for each rollout into its cache."""
    monkeypatch.setenv("HOME", str(tmp_path))


def rollouts(env, url, each=1, tasks=None, model="tiny"):
    """Run a batch of rollouts, several at once, as verifiers' own evaluation does."""
    client = vf.EvalClientConfig(base_url=url, api_key_var="NO_SUCH_KEY")
    context = vf.ModelContext(model, client, vf.SamplingConfig(temperature=0.0))

    async def run():
        async with env.serving():
            slots = [slot for task in (tasks or list(env.taskset)) for slot in env.slots(task, each)]
            return await asyncio.gather(*(env.run_slot(slot, context) for slot in slots))

    return asyncio.run(run())


def sent_to_a_worker(env, task):
    """A task as verifiers' workers build it, from its data as JSON."""
    data = GroundingData.model_validate(json.loads(task.data.model_dump_json()))
    return GroundingTask(data, env.config.taskset.task)


def test_two_batches_score_as_mgpo_eval(tmp_path):
    """mgpo-tiny behind plain chat completions, asked by verifiers and by `mgpo eval`: the same turns, scores and metrics."""
    policy, seen = LocalPolicy.load("mgpo-tiny"), []
    policy.set_budget(BUDGET)
    env = load_environment("needle", "test", seed=5, size=6, **TINY, **LIMITS)
    tasks = list(env.taskset)
    tasks[3:] = [sent_to_a_worker(env, task) for task in tasks[3:]]
    with serving(chat_app(policy, seen)) as url:
        first, second = rollouts(env, url, 2, tasks[:3]), rollouts(env, url, 2, tasks[3:])
        request = EvaluationRequest(
            "tiny", ("needle",), tmp_path, split="test", seed=5, n=6, endpoint=url, batch_size=6, **TINY, **LIMITS
        )
        run_evaluation(request, Console(quiet=True))
    records, _ = read_jsonl(tmp_path / "needle.jsonl")
    episodes = [*first, *second]
    assert len(episodes) == 12 and all(episode.ok for episode in episodes)
    assert {record["correct"] for record in records} == {True, False}
    for number, episode in enumerate(episodes):
        record, (trace,) = records[number // 2], episode.traces
        assert trace.task.data.id == record["id"] and trace.reward == record["correct"]
        assert [m.content for m in trace.assistant_messages] == [turn["text"].strip() for turn in record["turns"]]
        assert trace.metrics["grounding/valid_share"] == record["valid_box"]
        assert trace.metrics.get("grounding/hit_rate") == record["hit"]


class Server:
    """Replies by turn and question; requests are kept."""

    def __init__(self, *turns):
        self.turns, self.seen, self.app = turns, [], fastapi.FastAPI()

        @self.app.post("/v1/chat/completions")
        def chat(body: dict):
            self.seen.append(body)
            said = self.turns[len(body["messages"]) // 2]
            if isinstance(said, int):
                raise fastapi.HTTPException(said, "no such model")
            return completion(*said) if isinstance(said, tuple) else completion(said)


def asked(server, rows, tmp_path, **task):
    """The one trace of the first row, and its episode."""
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    env = load_environment(str(file), **TINY | task)
    with serving(server.app) as url:
        (episode,) = rollouts(env, url)
    (trace,) = episode.traces
    return trace, episode


def image_in(message):
    (url,) = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_a_region_is_cut_from_the_original(rows, tmp_path):
    server = Server(box(WIDE), "I see it. \\boxed{A}")
    trace, episode = asked(server, rows, tmp_path, **LIMITS)
    assert episode.ok and trace.reward == 1.0 and trace.num_turns == 2
    first, last = server.seen
    assert (first["max_tokens"], last["max_tokens"], last["temperature"]) == (64, 16, 0)
    assert [message["role"] for message in last["messages"]] == ["user", "assistant", "user"]
    photograph = Photograph(rows[0]["image"])
    shown = photograph.overview(BUDGET)
    assert image_in(first["messages"][0]).tobytes() == shown.tobytes()
    scale = [original / given for original, given in zip(photograph.size, shown.size)] * 2
    x1, y1, x2, y2 = (side * by for side, by in zip(WIDE, scale))
    region = (int(x1), int(y1), -int(-x2 // 1), -int(-y2 // 1))
    assert image_in(last["messages"][2]).tobytes() == photograph.crop(region, BUDGET).tobytes()
    assert SHOW_CROP in last["messages"][2]["content"][-1]["text"]
    assert "H" not in first["messages"][0]["content"][-1]["text"].replace("Here", ""), "choices are withheld"
    assert trace.metrics["grounding/valid_share"] == 1 and trace.metrics["turns/2_truncated"] == 0


def test_an_invalid_box_shows_the_image_again(rows, tmp_path):
    server = Server(box((10, 10, 5000, 60)), ("It is", "length"))
    trace, episode = asked(server, rows, tmp_path)
    assert episode.ok and trace.reward == 0.0
    again = server.seen[1]["messages"][2]
    assert SHOW_AGAIN in again["content"][-1]["text"]
    assert image_in(again).tobytes() == image_in(server.seen[0]["messages"][0]).tobytes()
    assert trace.metrics["grounding/rejected_outside"] == 1 and trace.metrics["turns/2_truncated"] == 1


def test_when_an_answer_counts(rows, tmp_path):
    """In `mgpo`, turn 1 is no answer, not even where verifiers stops the rollout after it; in `adaptive` it may be one."""
    trace, _ = asked(Server("\\boxed{A}", "\\boxed{B}"), rows, tmp_path)
    assert (trace.num_turns, trace.reward) == (2, 0.0)
    trace, _ = asked(Server("\\boxed{A}"), rows, tmp_path, method="adaptive")
    assert (trace.num_turns, trace.reward) == (1, 1.0)
    trace, _ = asked(Server("\\boxed{A}"), rows, tmp_path, method="direct")
    assert (trace.num_turns, trace.reward) == (1, 1.0)
    trace, _ = asked(Server(box(WIDE), box(WIDE), "\\boxed{A}"), rows, tmp_path, max_turns=3)
    assert (trace.num_turns, trace.reward) == (3, 1.0)


def test_a_limit_of_verifiers_ends_a_rollout_without_an_answer(rows, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    env = load_environment(str(file), **TINY)
    env._agent_specs["agent"].max_turns = env.config.agent.max_turns = 1
    with serving(Server("\\boxed{A}", "\\boxed{A}").app) as url:
        (episode,) = rollouts(env, url)
    (trace,) = episode.traces
    assert (trace.num_turns, trace.reward, trace.stop_condition) == (1, 0.0, "max_turns")


def test_a_failure_is_on_the_record_and_scores_nothing(rows, tmp_path):
    trace, episode = asked(Server(box(WIDE), 404), rows, tmp_path)
    assert not episode.ok and trace.rewards == {} and trace.last_error.type == "ProviderError"
    assert "no such model" in trace.last_error.message


def test_a_model_of_an_unknown_family_needs_coordinates(rows, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    with serving(Server("x").app) as url:
        (episode,) = rollouts(load_environment(str(file)), url)
    assert not episode.ok and "Set coordinates" in episode.last_error.message
    (task,) = load_environment(str(file)).taskset
    known = task.protocol("Qwen/Qwen3-VL-4B-Instruct")
    assert known.box.form.coordinates == "relative_1000" and known.budget.factor == 32


def test_tasks_survive_the_wire(rows, tmp_path):
    """verifiers sends a task's data to its workers as JSON: paths, files inside a table, and several images."""
    (tmp_path / "paths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several(rows)))
    column = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    column.to_parquet(tmp_path / "inside.parquet")
    for name in ("paths.jsonl", "inside.parquet"):
        env = load_environment(str(tmp_path / name), **TINY)
        for task, row in zip(env.taskset, several(rows) if name == "paths.jsonl" else rows, strict=True):
            heard, question = sent_to_a_worker(env, task).asked, Question.from_row(row)
            for key in ("question", "choices", "answer", "gold_boxes_px_original", "gold_image", "category", "id"):
                assert getattr(heard, key) == getattr(question, key)
            pixels = [[Photograph(one).image.tobytes() for one in asked.images] for asked in (heard, question)]
            assert pixels[0] == pixels[1]


def test_a_row_that_cannot_be_used_is_named(rows, tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1] | {"answer": "Z"}) + "\n")
    with pytest.raises(ValueError, match="bad.jsonl row 2"):
        list(load_environment(str(tmp_path / "bad.jsonl")).taskset)
    with pytest.raises(ValueError, match="max_turn"):
        load_environment(max_turn=3)


def test_verifiers_command_line_finds_it(rows, tmp_path):
    """`vf-eval`, with the harness and the env that the package brings."""
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    server = Server(box(WIDE), "\\boxed{A}")
    with serving(server.app) as url:
        command = [sys.executable, "-c", "from verifiers.v1.cli.eval.main import main; main()", "mgpo-verifiers",
                   "--env.taskset.data", "mine.jsonl", "--env.taskset.task.coordinates", "absolute", "--model", "tiny",
                   "--client.base-url", url, "--client.api-key-var", "NO_SUCH_KEY", "--no-push", "--no-rich",
                   "--output-dir", "out", "--sampling.temperature", "0"]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=280)
    (file,) = (tmp_path / "out").rglob("traces.jsonl")
    episodes = [json.loads(line) for line in file.read_text().splitlines()]
    assert done.returncode == 0 and len(episodes) == 2, done.stderr[-2000:]
    scores = {e["task"]["data"]["id"]: e["traces"][0]["rewards"]["accuracy"]["score"] for e in episodes}
    assert scores == {"q0": 1.0, "q1": 0.0}


def test_the_package_brings_one_of_each():
    from verifiers.v1.utils import loaders

    assert loaders.environment_class("mgpo-verifiers") is mgpo_verifiers.GroundingEnv
    assert loaders.taskset_class("mgpo-verifiers") is mgpo_verifiers.GroundingTaskset
    assert loaders.harness_class(loaders.default_harness_id("mgpo-verifiers")) is GroundingHarness


def test_the_example_runs_as_it_is(rows, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    example = Path(__file__).parents[2] / "examples/verifiers_environment.py"
    with serving(Server(box(WIDE), "It is \\boxed{A}").app) as url:
        words = ["tiny", str(tmp_path / "mine.jsonl"), "--url", url, "--coordinates", "absolute", "--rollouts", "2"]
        monkeypatch.setattr(sys, "argv", [example.name, *words])
        runpy.run_path(str(example), run_name="__main__")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "q0  1  'It is \\\\boxed{A}'" and out[2].startswith("q1  0")
    assert out[-1] == "4 of 4 rollouts ended, mean score 0.500"


def test_the_example_asks_whether_a_server_runs(rows, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.jsonl").write_text(json.dumps(rows[0]) + "\n")
    example = Path(__file__).parents[2] / "examples/verifiers_environment.py"
    words = ["tiny", str(tmp_path / "mine.jsonl"), "--url", "http://127.0.0.1:9/v1", "--coordinates", "absolute"]
    monkeypatch.setattr(sys, "argv", [example.name, *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(example), run_name="__main__")
    assert stop.value.code == 2 and "Does a server run at http://127.0.0.1:9/v1?" in capsys.readouterr().err

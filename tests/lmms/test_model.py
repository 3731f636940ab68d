"""The two-turn policy inside lmms-eval itself: `make test-lmms` sets up its environment; skipped where it is missing."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval_task import write_task  # noqa: E402
from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402

from mgpo.evaluation.request import EvaluationRequest  # noqa: E402
from mgpo.evaluation.run import run_evaluation  # noqa: E402
from mgpo.lmms.model import MGPO, _final_answer  # noqa: E402
from mgpo.method.question import LETTERS  # noqa: E402

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_the_entry_point_is_found_and_fits_the_base_class():
    from lmms_eval.api.model import lmms
    from lmms_eval.models import get_model

    assert get_model("mgpo") is MGPO and issubclass(MGPO, lmms) and not MGPO.__abstractmethods__


def test_the_command_line_gives_the_accuracy_of_mgpo_eval(tmp_path):
    folder = write_task(tmp_path / "tasks", 24)
    command = [sys.executable, "-m", "lmms_eval", "--model", "mgpo", "--model_args", "pretrained=mgpo-tiny", "--tasks",
               "needle_local", "--include_path", str(folder), "--output_path", str(tmp_path / "out"), "--batch_size", "8",
               "--log_samples"]  # fmt: skip
    env = os.environ | OFFLINE | {"HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    found = list((tmp_path / "out").rglob("*_results.json"))
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    theirs = json.loads(found[0].read_text())["results"]["needle_local"]["acc,none"]
    request = EvaluationRequest("mgpo-tiny", ("needle",), tmp_path / "ours", n=24, seed=5, batch_size=8)
    (row,) = run_evaluation(request, Console(quiet=True))
    assert theirs == pytest.approx(row["accuracy"]) and 0 < theirs


def request_for(images, context="Which?\n(A) red\n(B) blue\nAnswer."):
    return SimpleNamespace(args=(context, {"max_new_tokens": 8}, lambda doc: images, 0, "t", "test"))


@pytest.fixture(scope="module")
def model():
    made = MGPO(batch_size="2")
    made.task_dict["t"] = {"test": [{}]}
    return made


def test_choices_are_withheld_until_turn_two(model):
    episode, letters = model._episode(request_for([Image.new("RGB", (300, 200))]))
    assert letters == ["A", "B"]
    assert episode.question.choices == ("red", "blue") and episode.question.question == "Which?"
    assert "red" not in episode.opening().text
    assert len(model.generate_until([request_for([Image.new("RGB", (300, 200))])] * 3)) == 3


REALWORLD = (
    "What is the plate? The choices are listed below:\n{}\nSelect the best answer to the above multiple-choice question "
    "based on the image. Respond with only the letter (A, B, C, D, or E) of the correct option.\nThe best answer is: "
)
"""How lmms-eval 0.7.3 asks MME-RealWorld (`tasks/mme_realworld/utils.py`)."""


@pytest.mark.parametrize("form", ["({}) {}", "（{}） {}", "{}. {}", "{}.{}"])
def test_options_of_mme_realworld_are_withheld(model, form):
    options = [form.format(letter, text) for letter, text in zip("ABCDE", ("27", "37", "47", "57", "not there"))]
    episode, letters = model._episode(request_for([Image.new("RGB", (300, 200))], REALWORLD.format("\n".join(options))))
    assert episode.question.question == "What is the plate?" and letters == list("ABCDE")
    assert episode.question.choices == ("27", "37", "47", "57", "not there")
    assert "27" not in episode.opening().text


@pytest.mark.parametrize(
    ("labels", "texts"),
    [("ABCD", ["red", "blue", "red", "green"]), ("ABCDDE", list("uvwxyz")), ("ABCDEFGHIJ", list("qrstuvwxyz"))],
    ids=["equal options", "a letter that comes twice", "ten options"],
)
def test_the_answer_has_the_task_s_own_letter(model, labels, texts):
    context = "Which?\n" + "\n".join(f"({letter}) {text}" for letter, text in zip(labels, texts)) + "\nAnswer."
    for position, wanted in enumerate(labels):
        episode, letters = model._episode(request_for([Image.new("RGB", (300, 200))], context))
        assert episode.question.choices == tuple(texts)
        episode.opening()
        episode.reply("no box")
        episode.reply(f"\\boxed{{{LETTERS[position]}}}")
        assert _final_answer(episode, letters) == wanted


def test_more_options_than_letters_are_asked_as_they_stand(model):
    context = "Which?\n" + "\n".join(f"({letter}) {letter}" for letter in LETTERS) + "\n(Z) again"
    assert model._episode(request_for([Image.new("RGB", (300, 200))], context))[0].question.choices == ()


def test_several_images_are_one_question(model):
    images = [Image.new("RGB", (60 + n, 60)) for n in range(3)]
    episode, _ = model._episode(request_for(images, "Which is older?\n(A) left\n(B) right\nAnswer."))
    assert [image.size for image in episode.question.images] == [(60, 60), (61, 60), (62, 60)]
    assert len(episode.opening().images) == 3 and len(model.generate_until([request_for(images)])) == 1


def test_what_cannot_be_asked_is_a_sentence(model):
    for count in (0, 9):
        with pytest.raises(ValueError, match=f"has {count} images; the model mgpo takes 1 to 8"):
            model.generate_until([request_for([Image.new("RGB", (60, 60))] * count)])
    with pytest.raises(ValueError, match="does not take pretraind"):
        MGPO(pretraind="x")
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])

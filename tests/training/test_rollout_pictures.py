"""Pictures of rollouts reach each tracker of `report_to`; TensorBoard for real where it is installed."""

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support import MIXED, Script, make_trainer, rollouts
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_callback import PrinterCallback

from mgpo.asking.picture import BOX_COLOUR
from mgpo.training import rollout_pictures
from mgpo.training.rollout_pictures import MOST, report_pictures


class Tracker:
    """What `wandb` and `trackio` have in common: `Image` and `log`."""

    def __init__(self):
        self.logged = []

    def Image(self, picture, caption):  # noqa: N802 (their name)
        return SimpleNamespace(picture=picture, caption=caption)

    def log(self, row):
        self.logged.append(row)


class Writer:
    """A `SummaryWriter`."""

    def __init__(self):
        self.images = {}

    def add_image(self, tag, array, step, dataformats):
        self.images[tag] = (array, step, dataformats)


def tracker(kind, name=None):
    """A callback of transformers as it is when its library is installed, with a stand-in for the library."""
    made = kind.__new__(kind)
    setattr(made, name or "tb_writer", Tracker() if name else Writer())
    return made


@pytest.fixture
def trainer(random_tiny, rows, tmp_path, monkeypatch):
    made = make_trainer(random_tiny, tmp_path, rows, trajectories_every=1)
    Script(MIXED).install(monkeypatch)
    return made


def test_each_tracker_gets_the_rollouts_that_are_saved_with_their_rewards(trainer, rows):
    tensorboard, wandb, trackio = (
        tracker(TensorBoardCallback), tracker(WandbCallback, "_wandb"), tracker(TrackioCallback, "_trackio")
    )  # fmt: skip
    trainer.callback_handler.callbacks += [tensorboard, wandb, trackio]
    trainer.state.global_step = 3
    asked = rollouts(rows)
    for row in asked[2:]:
        row["answer"] = "C"
    trainer._generate_and_score_completions(asked)
    # the first rollout of each question: right with a wide box, wrong with a tall one
    for library in (wandb._wandb, trackio._trackio):
        (logged,) = library.logged
        assert set(logged) == {"rollouts/1", "rollouts/2", "train/global_step"} and logged["train/global_step"] == 4
        first, second = logged["rollouts/1"], logged["rollouts/2"]
        assert first.caption.endswith("(reward 1)") and second.caption.endswith("(reward 0)")
        assert rows[0]["question"] in first.caption
    array, step, order = tensorboard.tb_writer.images["rollouts/1"]
    assert (step, order, array.dtype) == (4, "HWC", np.uint8) and array.shape[2] == 3
    assert np.array_equal(array, np.asarray(first.picture))
    assert (array == BOX_COLOUR).all(2).sum() > 100, "the predicted box is drawn"


def test_nothing_is_drawn_without_a_tracker(monkeypatch):
    monkeypatch.setattr(rollout_pictures, "draw_episode", lambda *args: pytest.fail("drawn"))
    report_pictures([PrinterCallback()], [object()], [1.0], 0)


def test_a_few_and_a_reward_that_is_not_known(monkeypatch):
    monkeypatch.setattr(rollout_pictures, "draw_episode", lambda episode, reward, budget: reward)
    wandb = tracker(WandbCallback, "_wandb")
    episode = SimpleNamespace(question=SimpleNamespace(id="q", question="Which?"))
    report_pictures([wandb], [episode] * 9, [math.nan] + [0.5] * 8, 0)
    (row,) = wandb._wandb.logged
    shown = [row[f"rollouts/{number}"].caption for number in range(1, MOST + 1)]
    assert shown == ["q: Which?"] + ["q: Which? (reward 0.5)"] * (MOST - 1) and len(row) == MOST + 1


def test_tensorboard_reads_them_back(random_tiny, rows, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(random_tiny, tmp_path, rows, trajectories_every=1, report_to="tensorboard")
    trainer.train()
    (file,) = (file for file in tmp_path.rglob("events*"))
    found = EventAccumulator(str(file))
    found.Reload()
    assert found.Tags()["images"] == ["rollouts/1", "rollouts/2"] and "train/reward" in found.Tags()["scalars"]
    (event,) = found.Images("rollouts/1")
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        assert picture.height > 640


def test_a_training_prints_lines_and_no_dictionary(random_tiny, rows, tmp_path, capsys):
    """In place of upstream's callbacks, whatever `disable_tqdm` says."""
    for silent in (True, False):
        trainer = make_trainer(
            random_tiny, tmp_path / str(silent), rows, disable_tqdm=silent, save_strategy="steps", save_steps=1
        )
        trainer.train()
        told = [line for line in capsys.readouterr().out.splitlines() if line]
        assert [line.partition(" | ")[0] for line in told] == ["step 1/1"] * 2
        assert told[0].startswith("step 1/1 | reward ") and told[1].endswith("checkpoint-1")

"""Pictures of rollouts in the trackers of `report_to`: where the model looked, what it saw there, its answer, and the reward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from mgpo.asking.picture import draw_episode
from mgpo.method.episode import Episode
from mgpo.runs.trajectories import THUMBNAIL_BUDGET

MOST = 4
"""Pictures each time."""
TAG = "rollouts"
AXIS = "train/global_step"
"""The axis on which transformers puts all that it logs to wandb and trackio."""


def report_pictures(callbacks: Sequence[Any], episodes: Sequence[Episode], rewards: Sequence[float], step: int) -> None:
    """Hand pictures of the first episodes to each tracker that takes pictures; without one, nothing is drawn.

    Args:
        callbacks: the trainer's; transformers has made one for each entry of `report_to`.
        episodes: finished ones.
        rewards: their rewards; NaN where a reward function gave none.
        step: the step that learns from them, as in the metrics.
    """
    trackers = [one for one in callbacks if isinstance(one, (TensorBoardCallback, TrackioCallback, WandbCallback))]
    if not trackers:
        return
    drawn = list(_drawn(episodes[:MOST], rewards))
    for tracker in trackers:
        if isinstance(tracker, TensorBoardCallback):
            for number, (picture, _) in enumerate(drawn, 1):
                if tracker.tb_writer is not None:
                    tracker.tb_writer.add_image(f"{TAG}/{number}", np.asarray(picture), step, dataformats="HWC")
        else:
            library = tracker._wandb if isinstance(tracker, WandbCallback) else tracker._trackio
            shown = {f"{TAG}/{n}": library.Image(picture, caption=words) for n, (picture, words) in enumerate(drawn, 1)}
            library.log(shown | {AXIS: step})


def _drawn(episodes: Sequence[Episode], rewards: Sequence[float]) -> Iterator[tuple[Image.Image, str]]:
    for episode, reward in zip(episodes, rewards):
        known = None if math.isnan(reward) else reward
        words = f"{episode.question.id}: {episode.question.question}"
        yield (
            draw_episode(episode, known, THUMBNAIL_BUDGET),
            words if known is None else f"{words} (reward {known:.3g})",
        )

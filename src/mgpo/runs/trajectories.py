"""Saves rollouts to disk, one JSON line per episode with thumbnails beside it, for reports and for reading.

step_000021.jsonl
images/step_000021_0_overview.jpg, images/step_000021_0_turn1.jpg
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mgpo.files import write_whole
from mgpo.images.imaging import PixelBudget
from mgpo.method.episode import Episode
from mgpo.method.rewards import boxed, chosen_letter, is_correct

THUMBNAIL = 512
THUMBNAIL_BUDGET = PixelBudget(784, 600 * 784)
"""Size at which a photograph is decoded for its thumbnail, if the model was shown a smaller one."""


def trajectory(episode: Episode) -> dict[str, Any]:
    """An episode as plain data, without images. Boxes are in pixels of the original image."""
    question = episode.question
    last = episode.model_turns[-1].text
    given = boxed(last)
    turns = [
        {
            "text": turn.text,
            "status": str(turn.grounding.status) if turn.grounding else None,
            "box_px_original": list(turn.grounding.box_px_original)
            if turn.grounding and turn.grounding.box_px_original
            else None,
            "truncated": turn.truncated,
            "shown_size": list(image.size) if (image := shown.image) else None,
        }
        | ({"image": turn.grounding.image_number} if turn.grounding and len(question.images) > 1 else {})
        for turn, shown in zip(episode.model_turns, episode.user_turns)
    ]
    return {
        "id": question.id,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
        "category": question.category,
        "gold_boxes": [list(box) for box in question.gold_boxes_px_original],
        **episode.sizes,
        **({"looked_at": looked_at(episode), "gold_image": question.gold_image} if len(question.images) > 1 else {}),
        "turns": turns,
        "given": given,
        "chosen": chosen_letter(given, question.choices) if given and question.choices else None,
        "correct": is_correct(last, question.choices, question.answer),
        "end": str(episode.end),
    }


def looked_at(episode: Episode) -> int:
    """Number of the image that turn 1 looks at; the first one where it asks for no box."""
    return episode.first_grounding.image_number if episode.first_grounding else 1


def save_trajectories(episodes: Sequence[Episode], file: Path, step: int | None = None) -> None:
    """Write episodes to `file` (JSON lines) and their pictures to `images/` beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, episode in enumerate(episodes):
        row = {"step": step} | with_pictures(trajectory(episode), episode, file.parent, f"{file.stem}_{number}")
        lines.append(json.dumps(row, ensure_ascii=False))
    write_whole(file, "\n".join(lines) + "\n")


def with_pictures(row: dict[str, Any], episode: Episode, folder: Path, stem: str) -> dict[str, Any]:
    """Write an episode's thumbnails to `images/` in the folder, named by `stem`; returns its row with their paths.

    Of several photographs, the overview is the one that turn 1 looks at.
    """
    images = folder / "images"
    images.mkdir(exist_ok=True)
    turns = []
    for number, said in enumerate(row["turns"], 1):
        later = episode.user_turns[number : number + 1]
        shown = _thumbnail(later[0].image, images / f"{stem}_turn{number}.jpg") if later else None
        turns.append(said | {"shown": shown})
    number = looked_at(episode)
    shown = episode.user_turns[0].images[number - 1]
    large = shown if max(shown.size) >= THUMBNAIL else episode.originals[number - 1].overview(THUMBNAIL_BUDGET)
    overview = _thumbnail(large, images / f"{stem}_overview.jpg")
    return row | {"overview": overview, "turns": turns}


def _thumbnail(image: Image.Image, file: Path) -> str:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.save(file, quality=85)
    return f"images/{file.name}"

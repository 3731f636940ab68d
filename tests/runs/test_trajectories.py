"""Rollouts on disk: what a report shows of a question about several images."""

import json
from dataclasses import replace

from PIL import Image
from several import IMAGES, QUESTION, named, opened

from mgpo.pages.report import write_report
from mgpo.runs.trajectories import save_trajectories


def saved(folder, number):
    run = opened()
    run.reply(named(number))
    run.reply("\\boxed{B}")
    file = folder / f"step_{number:06d}.jsonl"
    save_trajectories([run], file)
    return file, json.loads(file.read_text()), run


def test_the_image_that_was_looked_at_is_shown(tmp_path):
    """With its own size, and with gold boxes only where they are in it."""
    for number, gold in ((2, 0), (3, 1)):
        file, row, run = saved(tmp_path, number)
        assert row["looked_at"] == number and row["gold_image"] == 3 and row["turns"][0]["image"] == number
        assert row["image_size"] == list(IMAGES[0].size) and row["image_sizes"][number - 1] == list(
            IMAGES[number - 1].size
        )
        width, height = Image.open(tmp_path / row["overview"]).size
        assert abs(width / height - IMAGES[number - 1].width / IMAGES[number - 1].height) < 0.05
        page = write_report(tmp_path / f"{number}.html", "t", {}, [], {}, [("now", file)], 4).read_text()
        assert f'viewBox="0 0 {IMAGES[number - 1].width} {IMAGES[number - 1].height}"' in page
        assert f"1 predicted and {gold} gold boxes" in page
        assert run.question is QUESTION


def test_of_one_image_nothing_is_added(tmp_path):
    run = opened(replace(QUESTION, more_images=(), gold_image=1))
    run.reply(named(None))
    run.reply("\\boxed{B}")
    save_trajectories([run], tmp_path / "a.jsonl")
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert not {"looked_at", "gold_image", "image_sizes"} & set(row) and "image" not in row["turns"][0]

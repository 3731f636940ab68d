"""Draws docs/episode.png: one episode of a trained model on a question of `needle`.

python docs/draw_episode.py [MODEL]    # mgpo-tiny-mgpo by default
"""

import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from mgpo import GroundedVQA  # noqa: E402
from mgpo.method.episode import Episode  # noqa: E402
from mgpo.method.rewards import is_correct  # noqa: E402
from mgpo.worlds.needle import make_question  # noqa: E402
from mgpo.worlds.render import render  # noqa: E402

OUT = Path(__file__).parent / "episode.png"
SPLIT, SEED, INDEX = "test", 0, 8
"""Which question: one whose answer is fine print."""
USER, MODEL, BOX, INK = "#eef2f7", "#fdf0e1", "#e11d48", "#18181b"


def main(model: str, out: Path = OUT) -> int:
    """Draw the episode; returns its reward."""
    question, scene = make_question(SPLIT, SEED, INDEX)
    found = GroundedVQA.from_pretrained(model).ask(render(scene), question.question, question.choices)
    return draw(found.episode, question.answer, out)


def draw(episode: Episode, answer: str, out: Path) -> int:
    """Four columns in the order in which they happen: what the user shows and the model says, twice."""
    (overview, again), (named, answered) = episode.user_turns, episode.model_turns
    asked, original = episode.question, episode.originals[0]
    x1, y1, x2, y2 = box = named.grounding.box_px_original
    figure, axes = plt.subplots(1, 4, figsize=(13, 4.2), width_ratios=(1.15, 0.95, 1.15, 0.7), facecolor="white")
    figure.subplots_adjust(wspace=0.05)
    shown, crop = overview.image.size, again.image.size
    column(axes[0], f"1  User: the picture, shrunk from\n{pixels(original.size)} to {pixels(shown)}", overview.image,
           f"{asked.question}\nWhich region do you need to see?")  # fmt: skip
    column(axes[1], "2  Model: the box of that region\n", None, named.text.replace(', "label"', ',\n  "label"'))
    column(axes[2], f"3  User: {pixels((x2 - x1, y2 - y1))} cut from the\noriginal, shown as {pixels(crop)}", again.image,
           asked.question + "\n" + "   ".join(f"{letter}. {text}" for letter, text in zip("ABCD", asked.choices)))  # fmt: skip
    column(axes[3], "4  Model: the answer\n", None, answered.text)
    reward = int(is_correct(answered.text, asked.choices, answer))
    axes[3].text(0.5, 0.2, f"reward {reward}", ha="center", fontsize=17, weight="bold", transform=axes[3].transAxes)
    axes[3].text(0.5, 0.12, f"(right is {answer})", ha="center", fontsize=10, transform=axes[3].transAxes)
    mark(axes[0], box, original.size, shown)
    figure.savefig(out, dpi=110, bbox_inches="tight")
    return reward


def pixels(size: tuple[int, int]) -> str:
    """Width and height as people write them."""
    return f"{size[0]} × {size[1]} px"


def column(axis: plt.Axes, title: str, image: Image.Image | None, text: str) -> None:
    """One turn; a turn of the user shows an image above its text."""
    axis.set_title(title, fontsize=10.5, loc="left", color=INK)
    axis.set_facecolor(USER if image else MODEL)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)
    lines = "\n".join(
        wrapped for line in text.strip().splitlines() for wrapped in textwrap.wrap(line, 38 if image else 34)
    )
    if image is None:
        axis.text(
            0.05,
            0.95,
            lines,
            va="top",
            family="monospace",
            fontsize=8,
            linespacing=1.5,
            transform=axis.transAxes,
            color=INK,
        )
        return
    place = axis.inset_axes((0.04, 0.27, 0.92, 0.69))
    place.imshow(image)
    place.set(xticks=[], yticks=[])
    axis.text(0.05, 0.22, lines, va="top", fontsize=9.5, linespacing=1.5, transform=axis.transAxes, color=INK)


def mark(
    axis: plt.Axes, box_px_original: tuple[int, int, int, int], original: tuple[int, int], shown: tuple[int, int]
) -> None:
    """Draw the box into the overview of a column."""
    x, y = shown[0] / original[0], shown[1] / original[1]
    left, top, right, bottom = box_px_original
    corner, size = (left * x, top * y), ((right - left) * x, (bottom - top) * y)
    axis.child_axes[0].add_patch(plt.Rectangle(corner, *size, fill=False, edgecolor=BOX, linewidth=2.5))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mgpo-tiny-mgpo")

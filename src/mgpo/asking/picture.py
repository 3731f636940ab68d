"""Draws an episode: the overviews with their boxes, the crops beside them, the answer below."""

from __future__ import annotations

import string
import textwrap

from PIL import Image, ImageDraw, ImageFont

from mgpo.images.imaging import PixelBudget
from mgpo.method.episode import Episode
from mgpo.method.rewards import boxed

HEIGHT, MARGIN = 640, 24
BOX_COLOUR, INK, PAPER = (225, 29, 72), (24, 24, 27), (250, 250, 249)


def draw_episode(episode: Episode, reward: float | None = None, budget: PixelBudget | None = None) -> Image.Image:
    """One RGB picture of a finished episode.

    Args:
        episode: finished.
        reward: written below, with the right answer, where it is known.
        budget: decode photographs at this size at most; None: whole.
    """
    panels = [
        _fitted(original.image if budget is None else original.overview(budget)) for original in episode.originals
    ]
    for turn, said in enumerate(episode.model_turns):
        box = said.grounding.box_px_original if said.grounding else None
        if box is None:
            continue
        overview = panels[said.grounding.image_number - 1]
        scale = overview.width / episode.original_of(said.grounding).width
        corners = tuple(round(v * scale) for v in box)
        ImageDraw.Draw(overview).rectangle(corners, outline=BOX_COLOUR, width=max(3, HEIGHT // 160))
        if turn + 1 < len(episode.user_turns):
            panels.append(_fitted(episode.user_turns[turn + 1].image))
    width = sum(panel.width for panel in panels) + MARGIN * (len(panels) + 1)
    lines = _caption(episode, width, reward)
    font = ImageFont.load_default(22)
    sheet = Image.new("RGB", (width, HEIGHT + 3 * MARGIN + 30 * len(lines)), PAPER)
    left = MARGIN
    for panel in panels:
        sheet.paste(panel, (left, MARGIN))
        left += panel.width + MARGIN
    ink = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        ink.text((MARGIN, HEIGHT + 2 * MARGIN + 30 * number), line, fill=INK, font=font)
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    return image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT), Image.Resampling.BICUBIC)


def _caption(episode: Episode, width: int, reward: float | None) -> list[str]:
    question, last = episode.question, episode.model_turns[-1].text
    grounding = episode.first_grounding
    looked = "" if grounding is None else f"box: {grounding.status}"
    if grounding is not None and grounding.box_px_original and len(episode.originals) > 1:
        looked += f" in image {grounding.image_number}"
    if grounding is not None and grounding.label:
        looked += f" ({grounding.label})"
    choices = "  ".join(f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, question.choices))
    answer = f"answer: {boxed(last) or '(none in a box)'}"
    if reward is not None:
        answer += f", right: {question.answer}, reward: {reward:.3g}"
    text = [question.question, choices, answer, looked]
    return [line for part in text if part for line in textwrap.wrap(part, max(20, width // 12))]

"""Controls of an evaluation: would the answer have been as good without the look, or after looking elsewhere?

    mgpo eval --model runs/mine --tasks vstar --controls direct,random_crop,black_crop,gold_crop

A model that zooms may still answer from the overview, or from habit. Each control asks the same questions again and
changes one thing. It decodes greedily, like the accuracy that it is compared with:

- `direct`: one turn with the overview and the question; the model is shown no region.
- `black_crop`: turn 1 stays as the model wrote it, but the crop that it is shown is black.
- `random_crop`: turn 1 names a box of the size that the model chose (a third of each side if it chose none) at a random
  place (of the image that the model chose, or of any), and the model is shown that region.
- `gold_crop`: turn 1 names the gold box (the box around all of them), and the model is shown that region.
- `resampled_box`: turn 1 is sampled at temperature 1 until its box is valid, up to 16 times, and the model is shown
  that region.
- `forced_box`: if the greedy turn 1 has no valid box, the model writes turn 1 again, as a continuation of the opening
  of a box.
- `crop_only`: one turn with only the region that the model chose. It is measured in every evaluation.

`resampled_box` and `forced_box` separate *whether* a model looks from *where* it looks: a training that only makes the
model look more often gains nothing over the untrained model with a box forced.

With more than two turns the control replaces the first look only. Published doubts that such models use their crops:
arXiv 2602.01334, 2605.26380, 2606.02357.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np
from PIL import Image

from mgpo.evaluation.comparing import bootstrap_interval, drawn_together, mcnemar
from mgpo.method.boxes import BoxForm, BoxRules, BoxStatus, Coordinates, Frame
from mgpo.method.episode import Episode, UserTurn
from mgpo.method.grounding import read_grounding
from mgpo.method.protocol import Method, Protocol
from mgpo.method.rewards import is_correct
from mgpo.method.thinking import spoken
from mgpo.policies.turn_loop import GivenFirst, Policy, Said, TurnLimits, run_episodes

TRIES = 16
"""Largest number of tries of `resampled_box`."""
LABEL = "what is there"
"""Label of a box that a control writes in place of the model; the words are those of the prompt's own example."""
Box = tuple[float, float, float, float]


class Control(StrEnum):
    """The controls; the module's docstring explains each of them."""

    DIRECT = "direct"
    BLACK_CROP = "black_crop"
    RANDOM_CROP = "random_crop"
    GOLD_CROP = "gold_crop"
    RESAMPLED_BOX = "resampled_box"
    FORCED_BOX = "forced_box"
    CROP_ONLY = "crop_only"


def refuse_unknown_controls(names: Sequence[str]) -> None:
    """Refuse a name that is no control's; it is said before a model is loaded."""
    unknown = [name for name in names if name not in list(Control)]
    if unknown:
        raise ValueError(f"--controls: {unknown[0]!r} is unknown. Choose among {', '.join(Control)}.")


def chosen_controls(names: Sequence[str], protocol: Protocol, policy: Policy) -> list[Control]:
    """Controls by name.

    Raises:
        ValueError: a name is unknown, the protocol shows no region that could be controlled, or the policy cannot
            continue a turn that was begun for it.
    """
    refuse_unknown_controls(names)
    if names and not protocol.looks_again:
        raise ValueError(
            f"--controls needs a protocol in which the model looks again (mgpo or adaptive), not {protocol.method}."
        )
    if Control.FORCED_BOX in names and not hasattr(policy, "go_on"):
        raise ValueError(
            "--controls forced_box needs the model in this process: an endpoint cannot continue a partly written turn."
        )
    return [Control(name) for name in dict.fromkeys(names)]


def run_control(
    control: Control, policy: Policy, done: Sequence[Episode], said: Sequence[Said], limits: TurnLimits, seed: int
) -> list[bool | None]:
    """Whether each question is answered correctly under a control; None where the control does not apply.

    Args:
        control: any but `crop_only`, which `mgpo.evaluation.evaluate` measures itself.
        policy: the policy that answers.
        done: finished greedy episodes of a protocol that looks again.
        said: the model's first turn in each of them.
        limits: token limits of the turns.
        seed: seed of the random boxes and of resampling; a question's random box depends only on it and on the
            question.
    """
    if control is Control.DIRECT:
        asked = [Episode(e.question, e.originals, replace(e.protocol, method=Method.DIRECT)) for e in done]
        return _answers(policy, asked, list(range(len(done))), limits)
    first = _first_turns(control, policy, done, said, limits, seed)
    which = [number for number, turn in enumerate(first) if turn is not None]
    asked = [_again(done[number], black=control is Control.BLACK_CROP) for number in which]
    return _answers(GivenFirst(policy, [first[n] for n in which]), asked, which, limits, len(done))


def _first_turns(
    control: Control, policy: Policy, done: Sequence[Episode], said: Sequence[Said], limits: TurnLimits, seed: int
) -> list[Said | None]:
    """Turn 1 under a control, None where the control does not apply; arguments as in `run_control`."""
    if control is Control.RESAMPLED_BOX:
        return _resampled(policy, done, limits, seed)
    if control is Control.FORCED_BOX:
        return _forced(policy, done, said, limits)
    return [_first_turn(control, policy, episode, own, seed) for episode, own in zip(done, said, strict=True)]


def _resampled(policy: Policy, done: Sequence[Episode], limits: TurnLimits, seed: int) -> list[Said | None]:
    """First turns, each sampled until its box is valid; the last try if none was."""
    key = f"{seed}\n{done[0].question.id}\n{done[0].question.question}" if done else ""
    import torch

    torch.manual_seed(_number(key) % 2**63)
    found: list[Said | None] = [None] * len(done)
    waiting = list(range(len(done)))
    for _ in range(TRIES):
        asked = [_again(done[number], black=False) for number in waiting]
        tried = run_episodes(policy, asked, limits, temperature=1.0, turns=1)
        for number, turns in zip(waiting, tried):
            found[number] = turns[0]
        waiting = [number for number, e in zip(waiting, asked) if not _valid(e)]
        if not waiting:
            break
    return found


def _forced(policy: Policy, done: Sequence[Episode], said: Sequence[Said], limits: TurnLimits) -> list[Said | None]:
    """The model's own greedy turn where its box is valid; else a turn that it continues from the opening of a box."""
    form = done[0].protocol.box.form
    alone = box_opening([spoken(own.text) for own, e in zip(said, done) if _valid(e) and len(e.originals) == 1], form)
    found: list[Said | None] = list(said)
    for several, opening in ((False, alone), (True, form.numbered_example.partition("number")[0])):
        waiting = [n for n, e in enumerate(done) if not _valid(e) and (len(e.originals) > 1) is several]
        if waiting:
            conversations = [policy.open(done[number].user_turns[0]) for number in waiting]
            begun = policy.go_on(conversations, opening, limits.grounding)
            for number, turn in zip(waiting, begun, strict=True):
                found[number] = turn
    return found


def box_opening(texts: Sequence[str], form: BoxForm) -> str:
    """The commonest text before the first coordinate in turns with a box, else that of the prompt's example."""
    openings = Counter(
        opening for text in texts if (opening := re.split(r"(?<=\[)\s*-?\d", text, maxsplit=1)[0]) != text
    )
    return openings.most_common(1)[0][0] if openings else re.split("[xy]1", form.example)[0]


def _valid(episode: Episode) -> bool:
    return episode.first_grounding is not None and episode.first_grounding.status is BoxStatus.VALID


def naming(box_px_original: Box, frame: Frame, rules: BoxRules, numbered: bool = False) -> str | None:
    """A turn that names a region of the original in the family's own coordinates; None if no valid box can contain it.

    A region that is too small is enlarged around its centre until its box is valid. With `numbered`, the turn also names
    the image of the frame.
    """
    x1, y1, x2, y2 = frame.to_input(box_px_original)
    width, height = frame.input_size
    least = int(rules.min_side_px) + 3  # rounding may take one pixel or thousandth at each end
    if rules.form.coordinates is not Coordinates.ABSOLUTE:
        least += -(-max(width, height) // 500)
    sides = [_span(low, high, least, limit) for low, high, limit in ((x1, x2, width), (y1, y2, height))]
    box = (sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    text = rules.form.written(box, frame.input_size, LABEL, frame.image_number if numbered else None)
    return text if read_grounding(text, frame, rules).status is BoxStatus.VALID else None


def _span(low: float, high: float, least: float, limit: float) -> tuple[float, float]:
    """An interval widened to at least the length `least`, around the same centre where the limits allow it."""
    length = min(limit, max(least, high - low))
    start = min(max(0.0, (low + high - length) / 2), limit - length)
    return start, start + length


def _first_turn(control: Control, policy: Policy, episode: Episode, own: Said, seed: int) -> Said | None:
    found = episode.first_grounding
    named = found.box_px_original if found else None
    if control is Control.BLACK_CROP:
        return own if named else None
    if control is Control.GOLD_CROP:
        gold = np.array(episode.question.gold_boxes_px_original).reshape(-1, 4)
        if not len(gold):
            return None
        number = episode.question.gold_image
        box = (*gold[:, :2].min(0).tolist(), *gold[:, 2:].max(0).tolist())
    else:
        number, box = _random_box(episode, found.image_number if found and named else None, named, seed)
    text = naming(box, episode.overviews[number - 1], episode.protocol.box, numbered=len(episode.originals) > 1)
    return policy.write(text) if text else None


def _random_box(episode: Episode, chosen: int | None, named: Box | None, seed: int) -> tuple[int, Box]:
    """A random place for a box of the size that was named: the number of its image, the one that was chosen or any, and it."""
    rng = np.random.default_rng(_number(f"{seed}\n{episode.question.id}\n{episode.question.question}"))
    several = len(episode.originals) > 1
    number = chosen or (int(rng.integers(1, len(episode.originals) + 1)) if several else 1)
    width, height = episode.originals[number - 1].size
    x1, y1, x2, y2 = named or (0, 0, width / 3, height / 3)
    left, top = rng.uniform(0, width - (x2 - x1)), rng.uniform(0, height - (y2 - y1))
    return number, (left, top, left + x2 - x1, top + y2 - y1)


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


class _Blackened(Episode):
    """An episode in which the first crop is replaced by a black image of the same size."""

    def reply(self, text: str, truncated: bool = False) -> UserTurn | None:
        turn = super().reply(text, truncated)
        if turn is None or len(self.user_turns) > 2 or turn.image is None:
            return turn
        self.user_turns[-1] = replace(turn, images=(Image.new("RGB", turn.image.size),))
        return self.user_turns[-1]


def _again(done: Episode, black: bool) -> Episode:
    episode = (_Blackened if black else Episode)(done.question, done.originals, done.protocol)
    episode.opening(done.user_turns[0].images)
    return episode


def _answers(
    policy: Any, asked: list[Episode], which: Sequence[int], limits: TurnLimits, n: int | None = None
) -> list[bool | None]:
    found: list[bool | None] = [None] * (len(which) if n is None else n)
    if asked:
        run_episodes(policy, asked, limits)
    for number, e in zip(which, asked, strict=True):
        found[number] = is_correct(e.model_turns[-1].text, e.question.choices, e.question.answer)
    return found


def beside(right: Sequence[bool], controlled: Sequence[bool | None], groups: Sequence[Any]) -> dict[str, Any] | None:
    """Compare a control with the accuracy on the same questions, in pairs.

    Args:
        right: whether each question was answered correctly with the look.
        controlled: whether it was under the control; None where it does not apply.
        groups: questions of an equal key are resampled together (see `mgpo.evaluation.comparing`).

    Returns:
        None if the control applied to no question. Else `n`, both accuracies, `gained` (right only with the look),
        `harmed` (right only under the control), `difference` with its 95 % bootstrap interval, and McNemar's exact p.
    """
    pairs = [(a, b, g) for a, b, g in zip(right, controlled, groups, strict=True) if b is not None]
    if not pairs:
        return None
    ours, theirs = np.array([(a, b) for a, b, _ in pairs], float).T
    difference = ours - theirs
    gained, harmed = int((difference > 0).sum()), int((difference < 0).sum())
    return {
        "n": len(pairs), "accuracy": float(theirs.mean()), "with_look": float(ours.mean()), "gained": gained,
        "harmed": harmed, "difference": float(difference.mean()),
        "ci95": list(bootstrap_interval(difference, [g for *_, g in pairs])), "p": mcnemar(gained, harmed),
    }  # fmt: skip


def controls_beside(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """`beside` for every control in the records of a results file."""
    right, groups = [record["correct"] for record in records], [drawn_together(record) for record in records]
    names = list(records[0].get("controls", {})) if records else []
    return {name: beside(right, [record["controls"][name] for record in records], groups) for name in names}

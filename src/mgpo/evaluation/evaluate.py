"""Evaluation of a policy: greedy accuracy, and how well it grounds.

    mgpo eval --model mgpo-tiny --tasks needle --split test --seed 1 --n 500 --out runs/eval/mine

Each question gets one greedy episode (accuracy) and one turn with only the image that the greedy episode looked at
(crop-only accuracy, paper Table 5; without a valid box that is the shrunk original). On request it also gets one first
turn sampled at temperature 1. Boxes are measured in the sampled turn if there is one, else in the greedy episode.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mgpo.evaluation.controls import Control, run_control
from mgpo.images.identity import images_digest
from mgpo.images.photograph import Photograph
from mgpo.method.boxes import BoxStatus
from mgpo.method.episode import Episode
from mgpo.method.lenient import is_correct_leniently
from mgpo.method.metrics import episode_metrics
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.method.rewards import is_correct
from mgpo.policies.turn_loop import Policy, TurnLimits, run_episodes
from mgpo.runs.trajectories import trajectory

BOX_SHARES = ("grounding/valid_share", "grounding/hit_rate")


@dataclass
class Result:
    """The measurements of one question; None where one does not apply.

    Attributes:
        rejected: the reason why the measured first turn had no usable box, if it had none.
        iou: best overlap with a gold box.
        crop_area: share of the photograph's pixels, for a valid box.
        letters: right letters, empty for an open question.
        refused: why a server did not let the model speak, if it did not: the answer is wrong then.
        greedy_valid_box, greedy_hit: of the greedy episode, where `valid_box` and `hit` are of a sampled turn.
        controls: whether it was answered correctly under each requested control (`mgpo.evaluation.controls`).
        seconds: the question's share of its batch.
    """

    id: str
    category: str
    correct: bool
    crop_only_correct: bool | None
    valid_box: bool | None
    hit: bool | None
    chance: float
    rejected: str | None = None
    iou: float | None = None
    crop_area: float | None = None
    letters: str = ""
    refused: str = ""
    greedy_valid_box: bool | None = None
    greedy_hit: bool | None = None
    controls: dict[str, bool | None] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)
    episode: Episode | None = field(default=None, repr=False)

    def record(self) -> dict[str, Any]:
        """One line of a results file: the episode's turns and all measurements."""
        assert self.episode is not None
        measured = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "episode"}
        question = self.episode.question
        asked = {"source": question.source, "images_digest": images_digest(question.images)}
        return trajectory(self.episode) | asked | measured

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Result:
        """Read what `record` wrote, without the episode."""
        return cls(**{f.name: record[f.name] for f in fields(cls) if f.name in record})


def evaluate(
    policy: Policy,
    questions: Iterable[Question],
    protocol: Protocol,
    limits: TurnLimits = TurnLimits(),
    batch_size: int = 50,
    seed: int = 0,
    keep_episodes: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> list[Result]:
    """Evaluate a policy on questions; boxes are measured in a sampled first turn.

    Args:
        policy: the policy that answers.
        questions: they are read in batches; images are opened one batch at a time.
        protocol: how they are asked.
        limits: token limits of the turns.
        batch_size: questions per batch.
        seed: seed of the sampled turns, see `evaluate_batches`.
        keep_episodes: keep the greedy episodes of the first so many questions in the results.
        on_batch: called with the number of questions of each finished batch, for progress.

    Returns:
        One result per question, in order.
    """
    results: list[Result] = []
    for batch in evaluate_batches(policy, questions, protocol, limits, batch_size, seed):
        for result in batch:
            result.episode = result.episode if len(results) < keep_episodes else None
            results.append(result)
        if on_batch is not None:
            on_batch(len(batch))
    return results


def evaluate_batches(
    policy: Policy,
    questions: Iterable[Question],
    protocol: Protocol,
    limits: TurnLimits = TurnLimits(),
    batch_size: int = 50,
    seed: int = 0,
    sampled: bool = True,
    controls: Sequence[Control] = (),
) -> Iterator[list[Result]]:
    """Evaluate batch by batch: all turns of a batch's questions are generated together.

    Args:
        policy: the policy that answers.
        questions: they are read in batches; images are opened one batch at a time.
        protocol: how they are asked.
        limits: token limits of the turns.
        batch_size: questions per batch.
        seed: seed of the sampled turns; each batch starts from its own seed, so results do not depend on what ran
            before.
        sampled: measure boxes in a first turn sampled at temperature 1; else in the greedy episode.
        controls: controls to run on the greedy episodes (`mgpo.evaluation.controls`); they do not change the other
            measurements.

    Yields:
        The results of a batch, in order, with their episodes.
    """
    for number, batch in enumerate(_batched(questions, batch_size)):
        yield evaluate_batch(policy, batch, protocol, limits, number, seed, sampled, controls)


def evaluate_batch(
    policy: Policy,
    batch: Sequence[Question],
    protocol: Protocol,
    limits: TurnLimits,
    number: int,
    seed: int = 0,
    sampled: bool = True,
    controls: Sequence[Control] = (),
    crop_alone: bool = True,
) -> list[Result]:
    """Evaluate one batch of questions; its results depend on its questions, its `number` and the seed alone.

    With `crop_alone`, each question is also asked with the image alone that the model looked at. Other arguments and the results are
    as in `evaluate_batches`.
    """
    import torch  # here, since it takes seconds; before the pictures, which it resizes if it is there (`mgpo.images.resizing`)

    start = time.perf_counter()
    greedy = [Episode(question, tuple(map(Photograph, question.images)), protocol) for question in batch]
    heard = run_episodes(policy, greedy, limits)
    needed = crop_alone or Control.CROP_ONLY in controls
    alone = _crop_only(policy, greedy, limits) if needed else [None] * len(greedy)
    measured = greedy
    if sampled and protocol.method is not Method.DIRECT:
        torch.manual_seed(seed * 100_003 + number)
        measured = [Episode(done.question, done.originals, protocol) for done in greedy]
        for episode, done in zip(measured, greedy):
            episode.opening(done.user_turns[0].images)
        run_episodes(policy, measured, limits, temperature=1.0, turns=1)
    results = [_result(*parts) for parts in zip(greedy, alone, measured)]
    for result, turns in zip(results, heard):
        result.refused = next((turn.refused for turn in turns if turn.refused), "")
        result.correct = result.correct and not result.refused
    for control in controls:
        if control is Control.CROP_ONLY:
            answered = [result.crop_only_correct for result in results]
        else:
            answered = run_control(control, policy, greedy, [turns[0] for turns in heard], limits, seed)
        for result, right in zip(results, answered):
            result.controls[str(control)] = right
    for result in results:
        result.seconds = round((time.perf_counter() - start) / len(batch), 4)
    return results


def summarise(results: list[Result], protocol: Protocol, **named: Any) -> dict[str, Any]:
    """A row of a result table: shares, with a Wilson interval (95 %) of accuracy; `named` adds method, split, seed."""
    n = len(results)
    right = sum(result.correct for result in results)
    return {
        **named,
        "protocol": str(protocol.method),
        "n": n,
        "accuracy": right / n,
        "ci95": list(wilson(right, n)),
        "valid_box_rate": _share([result.valid_box for result in results]),
        "hit_rate": _share([result.hit for result in results]),
        "hit_n": sum(result.hit is not None for result in results),
        "hit_given_valid": _share([result.hit for result in results if result.valid_box]),
        "greedy_valid_box_rate": _share([result.greedy_valid_box for result in results]),
        "greedy_hit_given_valid": _share([result.greedy_hit for result in results if result.greedy_valid_box]),
        "iou": _share([result.iou for result in results]),
        "crop_area": _share([result.crop_area for result in results]),
        "crop_only_accuracy": _share([result.crop_only_correct for result in results]),
        "chance": sum(result.chance for result in results) / n,
        "majority": majority(results),
        "min_pixels": protocol.budget.min_pixels,
        "pixel_budget": protocol.budget.max_pixels,
        "rejected": rejected(results),
        "by_category": {
            category or "none": _share([r.correct for r in results if r.category == category])
            for category in sorted({result.category for result in results})
        },
        "by_category_n": dict(Counter(result.category or "none" for result in results)),
    }


def lenient_share(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The accuracy if answers without a box are read as well, and how many of them there are. What a judge accepted stays right.

    Args:
        records: lines of a results file (`Result.record`).
    """
    right = sum(
        record["correct"] or is_correct_leniently(record["turns"][-1]["text"], record["choices"], record["answer"])
        for record in records
    )
    unboxed = sum(record["given"] is None for record in records)
    return {
        "lenient_accuracy": right / len(records),
        "lenient_ci95": list(wilson(right, len(records))),
        "unboxed": unboxed,
    }


def adaptive_shares(records: list[dict[str, Any]]) -> dict[str, float]:
    """For a model that may answer at once: the share of questions with a look; boxes and hits of those and of all.

    Args:
        records: lines of a results file (`Result.record`). Hits are shares of questions with gold boxes.
    """
    shares = {"looked, of all questions": _share([record["valid_box"] is not None for record in records])}
    for name, key, asked in (
        ("valid box", "valid_box", records),
        ("hit", "hit", [record for record in records if record["gold_boxes"]]),
    ):
        shares[f"{name}, of those that looked"] = _share([record[key] for record in asked])
        shares[f"{name}, of all questions"] = _share([bool(record[key]) for record in asked])
    return {name: share for name, share in shares.items() if share is not None}


def majority(results: list[Result]) -> float:
    """Accuracy of always giving the same letter, the one that is right most often; open questions count as wrong."""
    letters = Counter(letter for result in results for letter in result.letters.split("|") if letter)
    return max(letters.values(), default=0) / len(results)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson's score)."""
    share, scale = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def _crop_only(policy: Policy, episodes: list[Episode], limits: TurnLimits) -> list[bool | None]:
    """Whether the image that each episode looked at is enough to answer; None for `direct`."""
    protocol = episodes[0].protocol
    if protocol.method is Method.DIRECT:
        return [None] * len(episodes)
    alone = []
    for episode in episodes:
        if protocol.looks_again:  # adaptive may have answered at once, from the overview
            shown = episode.user_turns[min(1, len(episode.user_turns) - 1)].images
        else:
            named = episode.first_grounding
            box = named.box_px_original
            shown = (episode.original_of(named).crop(box, protocol.budget),) if box else episode.user_turns[0].images
        question = replace(episode.question, image=shown[0], more_images=shown[1:], gold_image=1)
        single = Episode(question, shown, replace(protocol, method=Method.DIRECT))
        single.opening(shown)
        alone.append(single)
    heard = run_episodes(policy, alone, limits)
    right = [is_correct(e.model_turns[-1].text, e.question.choices, e.question.answer) for e in alone]
    return [None if turns[-1].refused else answer for answer, turns in zip(right, heard)]


def _result(episode: Episode, suffices: bool | None, measured: Episode) -> Result:
    question = episode.question
    found = episode_metrics(measured)
    status = measured.first_grounding.status if measured.first_grounding else None
    greedy = found if measured is episode else episode_metrics(episode)
    (valid, hit), (greedy_valid, greedy_hit) = (
        [None if (share := of.get(name)) is None else bool(share) for name in BOX_SHARES] for of in (found, greedy)
    )
    return Result(
        id=question.id,
        category=question.category,
        correct=is_correct(episode.model_turns[-1].text, question.choices, question.answer),
        crop_only_correct=suffices,
        valid_box=valid,
        hit=hit,
        chance=question.chance,
        rejected=str(status) if status not in (None, BoxStatus.VALID) else None,
        iou=found.get("grounding/iou"),
        crop_area=found.get("grounding/crop_area"),
        letters=question.answer if question.choices else "",
        greedy_valid_box=greedy_valid,
        greedy_hit=greedy_hit,
        episode=episode,
    )


def rejected(results: list[Result]) -> dict[str, int]:
    """How often the measured first turn had no usable box, by reason."""
    reasons = [result.rejected for result in results if result.rejected is not None]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def _share(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _batched(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    batch: list[Question] = []
    for question in questions:
        batch.append(question)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

"""Checks each row before the first step, and admits it or refuses it by file, row and reason.

Otherwise a photograph that is cut off, or a question that does not fit, would stop a run after hours. Every image is
decoded once, as training will decode it (JPEGs at a reduced scale, in threads); several processes share the work.
`mgpo data check` and `mgpo train` both ask `Admission`, by `examined`, about the rows of `mgpo.data.loading`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from PIL import Image
from rich.progress import track

from mgpo.data.beyond import beyond, beyond_note
from mgpo.data.loading import Loaded, refused
from mgpo.data.reading import BadRow
from mgpo.files import write_whole
from mgpo.images.imaging import PixelBudget
from mgpo.images.photograph import Photograph
from mgpo.method.prompts import user_texts
from mgpo.method.protocol import Protocol
from mgpo.method.question import MAX_IMAGES, Question

Facts = TypeVar("Facts")

AT_ONCE = min(8, os.cpu_count() or 1)
MANY = 200
"""With more rows than this, a progress bar is shown."""
LOOK = PixelBudget(4 * 784, 16 * 784)
"""Size at which images are decoded where there is no policy: JPEGs at an eighth of their scale."""


@dataclass(frozen=True)
class Shown:
    """An image of a row that was admitted: its upright size in pixels, and its overview (None if it was not decoded)."""

    size: tuple[int, int]
    overview: Image.Image | None


class Admission:
    """The checks that a question must pass for this policy.

    Args:
        protocol: how the question is asked and, by its pixel budget, how its image is shown.
        text_tokens: tokens that a user turn with this text takes without its images: (text, whether it is the first turn,
            how many images it shows). None where no policy is known, so that no text is too long.
        most_text_tokens: `max_reply_tokens`, None for no limit.
        decode: decode each image; otherwise only its header is read.
        most_images: `max_images`.
    """

    def __init__(
        self, protocol: Protocol, text_tokens: Callable[[str, bool, int], int] | None, most_text_tokens: int | None, decode: bool,
        most_images: int = 1,
    ) -> None:  # fmt: skip
        self.protocol, self.text_tokens, self.most = protocol, text_tokens, most_text_tokens
        self.decode, self.most_images, self._one_at_a_time = decode, most_images, Lock()
        self.frame = max(text_tokens("", opening, 1) for opening in (True, False)) if text_tokens else 0

    @classmethod
    def without_policy(cls) -> Admission:
        """All checks but the two that need a policy's settings: `max_reply_tokens` and `max_images`."""
        return cls(Protocol(budget=LOOK), None, None, decode=True, most_images=MAX_IMAGES)

    def __call__(self, row: dict[str, Any]) -> list[Shown]:
        """Check one row.

        Returns:
            What it shows, in order.

        Raises:
            ValueError: it cannot be trained on; the message says why.
        """
        question = Question.from_row(row)
        images = len(question.images)
        if images > self.most_images:
            raise ValueError(
                f"it shows {images} images, more than max_images={self.most_images}: set max_images to {images}"
            )
        for number, text in enumerate(user_texts(question, self.protocol)):
            self._check_text(text, number == 0, images if number == 0 else 1)
        shown = []
        for image in question.images:
            photograph = Photograph(image)
            self.protocol.budget.fit(photograph.size)
            overview = photograph.overview(self.protocol.budget) if self.decode else None
            photograph.drop()
            shown.append(Shown(photograph.size, overview))
        return shown

    def _check_text(self, text: str, opening: bool, images: int) -> None:
        # No token is shorter than a byte. The label of an image and what delimits it have at most 12.
        labels = 12 * images if images > 1 else 0
        if self.most is None or self.text_tokens is None or self.frame + labels + len(text.encode()) <= self.most:
            return
        with self._one_at_a_time:  # tokenizers are not thread-safe
            tokens = self.text_tokens(text, opening, images)
        if tokens > self.most:
            raise ValueError(
                f"its text takes {tokens} tokens in a user turn, more than max_reply_tokens={self.most}: raise the limit "
                "or shorten the question"
            )


def admitted(
    loaded: Loaded, name: str, admission: Admission, on_bad_row: str, share: Any = None
) -> tuple[Any, list[BadRow]]:
    """The dataset without the rows that cannot be trained on, and a list of those rows, in order.

    Args:
        loaded: the rows that were read.
        name: name of the dataset, for messages.
        admission: the checks that a row must pass.
        on_bad_row: `fail`: an error if there is any; `skip`: bad rows are left out.
        share: (this process, processes, gather a list from all) where several share the work.

    Raises:
        ValueError: there are bad rows, and they are not to be skipped; or no row is left.
    """
    rank, processes, gather = share or (0, 1, list)

    def boxes_beyond(row: dict[str, Any]) -> str:
        return beyond(Question.from_row(row), [shown.size for shown in admission(row)])

    mine = range(rank, len(loaded.places), processes)
    found = dict(gather([(number, what) for number, what in examined(loaded, mine, boxes_beyond) if what]))
    refusals = {number: what for number, what in found.items() if isinstance(what, BadRow)}
    if rank == 0:
        notes = [f"{loaded.places[number]}: {found[number]}" for number in sorted(found) if number not in refusals]
        print(*beyond_note(notes), sep="\n", end="\n" if notes else "")
    bad = in_order([*loaded.bad, *refusals.values()])
    if not bad:
        return loaded.questions, []
    left = len(loaded.places) - len(refusals)
    if not left:
        raise refused(bad, left, name)
    if on_bad_row == "fail":
        raise ValueError(
            f"{refused(bad, left, name)}\nTo train without them, set --on_bad_row skip, which lists them in a file."
        )
    kept = sorted(set(range(len(loaded.places))) - set(refusals))
    return loaded.questions.select(kept), bad


def in_order(bad: Iterable[BadRow]) -> list[BadRow]:
    """Rows that cannot be used, by file and row number."""
    return sorted(
        bad, key=lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)$", row.where)[:2]]
    )


def write_listing(bad: Sequence[BadRow], file: Path) -> None:
    """Write place and reason of each row that was left out, as JSON lines; without such rows, no file remains."""
    file.unlink(missing_ok=True)  # left by an earlier start
    if bad:
        write_whole(file, "".join(json.dumps({"where": row.where, "why": row.reason}) + "\n" for row in bad))
        print(f"{len(bad)} rows are skipped; {file} lists them.")


def examined(
    loaded: Loaded, numbers: Sequence[int], examine: Callable[[dict[str, Any]], Facts]
) -> Iterator[tuple[int, Facts | BadRow]]:
    """Each of these rows, by number and in order, with what `examine` found out, or why it cannot be used.

    Args:
        loaded: the rows.
        numbers: which of them, counted from 0.
        examine: asks an `Admission` about a row, in one of several threads.
    """

    def ask(number: int) -> tuple[int, Facts | BadRow]:
        try:
            return number, examine(loaded.questions[number])
        except (ValueError, TypeError, OSError, MemoryError) as error:  # a MemoryError has no message
            return number, BadRow(loaded.places[number], str(error) or type(error).__name__)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found: Iterable[tuple[int, Facts | BadRow]] = pool.map(ask, numbers)
        if len(numbers) > MANY:
            found = track(found, "checking rows", total=len(numbers), transient=True)
        yield from found

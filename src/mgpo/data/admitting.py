"""Checks each row before the first step, and admits it or refuses it by file, row and reason.

Otherwise a photograph that is cut off, or a question that does not fit, would stop a run after hours. Every image is
decoded once, as training will decode it (JPEGs at a reduced scale, in threads); several processes share the work.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from rich.progress import track

from mgpo.data.loading import Loaded, refused
from mgpo.data.reading import BadRow
from mgpo.files import write_whole
from mgpo.images.photograph import Photograph
from mgpo.method.prompts import user_texts
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question

AT_ONCE = min(8, os.cpu_count() or 1)
MANY = 200
"""With more rows than this, a progress bar is shown."""


class Admission:
    """The checks that a question must pass for this policy.

    Args:
        protocol: how the question is asked and, by its pixel budget, how its image is shown.
        text_tokens: tokens that a user turn with this text takes without its images: (text, whether it is the first turn,
            how many images it shows).
        most_text_tokens: `max_reply_tokens`, None for no limit.
        decode: decode each image; otherwise only its header is read.
        most_images: `max_images`.
    """

    def __init__(
        self, protocol: Protocol, text_tokens: Callable[[str, bool, int], int], most_text_tokens: int | None, decode: bool,
        most_images: int = 1,
    ) -> None:  # fmt: skip
        self.protocol, self.text_tokens, self.most = protocol, text_tokens, most_text_tokens
        self.decode, self.most_images, self._one_at_a_time = decode, most_images, Lock()
        self.frame = max(text_tokens("", opening, 1) for opening in (True, False))

    def __call__(self, row: dict[str, Any]) -> None:
        """Check one row.

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
        for image in question.images:
            photograph = Photograph(image)
            self.protocol.budget.fit(photograph.size)
            if self.decode:
                photograph.overview(self.protocol.budget)
                photograph.drop()

    def _check_text(self, text: str, opening: bool, images: int) -> None:
        # No token is shorter than a byte. The label of an image and what delimits it have at most 12.
        labels = 12 * images if images > 1 else 0
        if self.most is None or self.frame + labels + len(text.encode()) <= self.most:
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
    mine = range(rank, len(loaded.places), processes)
    found = gather(_look(loaded, mine, admission))
    bad = loaded.bad + [BadRow(loaded.places[number], why) for number, why in sorted(found)]
    if not bad:
        return loaded.questions, []
    bad.sort(key=lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)$", row.where)[:2]])
    left = len(loaded.places) - len(found)
    if not left:
        raise refused(bad, left, name)
    if on_bad_row == "fail":
        raise ValueError(
            f"{refused(bad, left, name)}\nTo train without them, set --on_bad_row skip, which lists them in a file."
        )
    kept = sorted(set(range(len(loaded.places))) - {number for number, _ in found})
    return loaded.questions.select(kept), bad


def write_listing(bad: Sequence[BadRow], file: Path) -> None:
    """Write place and reason of each row that was left out, as JSON lines; without such rows, no file remains."""
    file.unlink(missing_ok=True)  # left by an earlier start
    if bad:
        write_whole(file, "".join(json.dumps({"where": row.where, "why": row.reason}) + "\n" for row in bad))
        print(f"{len(bad)} rows are skipped; {file} lists them.")


def _look(loaded: Loaded, numbers: Sequence[int], admission: Admission) -> list[tuple[int, str]]:
    """The rows among these numbers that cannot be trained on, and why."""

    def why(number: int) -> tuple[int, str] | None:
        try:
            admission(loaded.questions[number])
        except (ValueError, TypeError, OSError, MemoryError) as error:
            return number, str(error) or type(error).__name__  # a MemoryError has no message
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        looked: Iterable[tuple[int, str] | None] = pool.map(why, numbers)
        if len(numbers) > MANY:
            looked = track(looked, "checking rows", total=len(numbers), transient=True)
        return [found for found in looked if found is not None]

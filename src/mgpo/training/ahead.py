"""The photographs of a training, opened while the step before is sampled and updated.

`Trainer` asks for the batches of a step before it makes the step. `look` takes one batch more, whose rows say which
photographs come next. Threads open them, make their overviews, and decode them whole where a model will ask for regions.
Only time changes: what a rollout sees, the order of the rows and all random numbers are the same. A photograph that cannot
be opened is left as it is, and opened again, with the same error, by the step that needs it.

Decoded pictures take at most `config.decoded_bytes` together. Those of this step may take all of that until its rollouts have
been sampled; then `release` gives their room to the next step's, which are decoded while the model is updated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

from PIL import Image

from mgpo.images.identity import image_key
from mgpo.images.imaging import ImageError, PixelBudget
from mgpo.images.photograph import Photograph, in_background, keep_at_most

NOTHING = object()


class Opened:
    """A photograph as the rollouts of its questions share it.

    Attributes:
        photograph: the original.
        shown: its overview.
        same: the images of all rows that show it.
        wanted: whether rollouts still need it, or will.
    """

    photograph: Photograph
    shown: Image.Image

    def __init__(self, image: Any) -> None:
        self.image = image
        self.same = [image]  # kept, so that no other object gets the id of one of them
        self.wanted = True
        self._lock, self._ready = Lock(), False

    def open(self, budget: PixelBudget, ahead: bool = False) -> None:
        """Open it and make its overview, unless that is done; `ahead` of time only if no other picture has to go for it.

        Raises:
            ImageError: it cannot be used.
        """
        with self._lock:
            if self._ready:
                return
            if not hasattr(self, "photograph"):
                self.photograph = Photograph(self.image)
            shown = self.photograph.overview_if_room(budget) if ahead else self.photograph.overview(budget)
            if shown is not None:
                self.shown, self._ready = shown, True


class PicturesAhead:
    """Opens the photographs of a batch of rollouts, and before that those of the next one.

    Args:
        budget: the pixel budget of overviews.
        regions: whether regions will be cut, so that photographs are decoded whole.
        decoded_bytes: bound of the memory that decoded pictures take in this process.
    """

    def __init__(self, budget: PixelBudget, regions: bool, decoded_bytes: int) -> None:
        self.budget, self.regions = budget, regions
        self._now: dict[Any, Opened] = {}
        self._next: list[tuple[Any, dict[Any, Opened]]] = []
        self._changing = Lock()  # rollouts may be sampled in another thread than the one that looks ahead
        self._batches: tuple[Any, Iterator[Any]] | None = None
        self._last_step = False
        self._seconds = 0.0
        keep_at_most(decoded_bytes)

    def look(self, batches: Iterator[Any], last_step: bool) -> Iterator[Any]:
        """The batches of an epoch, the same ones, of which one more than is taken has been seen.

        Args:
            batches: the epoch's iterator; call again with the same one for its later batches.
            last_step: no step comes after the one that takes batches now.
        """
        if self._batches is None or self._batches[0] is not batches:
            self._batches = batches, self._one_ahead(batches)
        self._last_step = last_step
        return self._batches[1]

    def begin(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rollouts of these rows will be sampled now; what was opened for rows that were passed over is let go."""
        with self._changing:
            for number, (_, batch) in enumerate(self._next):
                if all(id(image) in batch for row in rows for image in _images(row)):
                    for _, passed in self._next[:number]:
                        _let_go(passed)
                    self._now, self._next = batch, self._next[number + 1 :]
                    return
        self._now = _opened_by(rows)
        self._work_on(self._now)

    def open(self, image: Any, question: str) -> Opened:
        """The photograph of a row for which `begin` was called.

        Raises:
            ImageError: it cannot be used; the message names the question.
        """
        start = time.perf_counter()
        try:
            if id(image) not in self._now:
                self._now[id(image)] = Opened(image)
            opened = self._now[id(image)]
            opened.open(self.budget)
        except ImageError as error:
            raise type(error)(f"Question {question!r}: {error}") from error
        finally:
            self._seconds += time.perf_counter() - start
        return opened

    def release(self) -> float:
        """The rollouts have been sampled: give the room of their pictures to those of the next batch.

        Returns:
            The seconds for which sampling waited for pictures: to be opened and shrunk, and for the pixels of regions.
        """
        seconds, self._seconds = self._seconds + _let_go(self._now), 0.0
        self._now = {}
        with self._changing:
            following = [batch for _, batch in self._next]
        for batch in following:
            self._work_on(batch)
        return seconds

    @property
    def next_rows(self) -> list[dict[str, Any]] | None:
        """The rows of the batch that will be sampled next, where it has been seen."""
        with self._changing:
            return self._next[0][0] if self._next else None

    def _one_ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        batch = next(batches, NOTHING)
        self._expect(batch)
        while batch is not NOTHING:
            following = next(batches, NOTHING)
            if not self._last_step and not _same_questions(following, batch):  # TRL repeats a batch for each update
                self._expect(following)
            yield batch
            batch = following

    def _expect(self, rows: Any) -> None:
        if isinstance(rows, list):
            opened = _opened_by(rows)
            with self._changing:
                self._next.append((rows, opened))
            self._work_on(opened)

    def _work_on(self, batch: dict[Any, Opened]) -> None:
        for opened in _each(batch):
            in_background(self._open_ahead, opened)

    def _open_ahead(self, opened: Opened) -> None:
        try:
            if opened.wanted:
                opened.open(self.budget, ahead=True)
                if self.regions and opened.photograph.reducible:  # others have been decoded whole for the overview
                    in_background(_decode_ahead, opened)  # after the overviews of the batch
        except Exception:  # raised again by `open`, in the step that needs the picture
            pass


def _decode_ahead(opened: Opened) -> None:
    if opened.wanted:
        opened.photograph.decode_if_room()


def _opened_by(rows: Sequence[dict[str, Any]]) -> dict[Any, Opened]:
    """One `Opened` for each photograph, by the ids of the images that show it: comparing their pixels takes time."""
    by_key: dict[Any, Opened] = {}
    by_id: dict[Any, Opened] = {}
    for image in (image for row in rows for image in _images(row)):
        if id(image) not in by_id:
            try:
                opened = by_id[id(image)] = by_key.setdefault(image_key(image), Opened(image))
                opened.same.append(image)
            except Exception:  # no image at all: the step that uses the row will say so
                continue
    return by_id


def _images(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("image"), *(row.get("more_images") or ())


def _each(batch: dict[Any, Opened]) -> list[Opened]:
    return list({id(opened): opened for opened in batch.values()}.values())


def _let_go(batch: dict[Any, Opened]) -> float:
    """Let the decoded pictures of a batch be dropped for others. Returns the seconds for which regions of them waited."""
    seconds = 0.0
    for opened in _each(batch):
        opened.wanted = False
        if hasattr(opened, "photograph"):
            seconds += opened.photograph.seconds_waited
            opened.photograph.done_with = True
    return seconds


def _same_questions(rows: Any, others: Any) -> bool:
    if not (isinstance(rows, list) and isinstance(others, list) and len(rows) == len(others)):
        return False
    columns = ("id", "question", "answer")
    return all(row.get(column) == other.get(column) for row, other in zip(rows, others) for column in columns)

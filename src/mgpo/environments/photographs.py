"""The rollouts of a question share its photographs: each file is opened once, as long as a rollout uses it."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from mgpo.images.identity import image_key
from mgpo.images.photograph import Photograph
from mgpo.method.question import Question


class SharedPhotographs:
    """Photographs by what they show; one that no rollout holds any more is forgotten."""

    def __init__(self) -> None:
        self._open: WeakValueDictionary[Any, Photograph] = WeakValueDictionary()

    def of(self, question: Question) -> tuple[Photograph, ...]:
        """The photographs of a question, in order.

        Raises:
            ImageError: one cannot be used.
        """
        return tuple(map(self._one, question.images))

    def _one(self, image: Any) -> Photograph:
        key = image_key(image)
        photograph = self._open.get(key)
        if photograph is None:
            photograph = self._open[key] = Photograph(image)
        return photograph

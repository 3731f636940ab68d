"""The rollouts of a question share its photographs and overviews: each is made once, as long as a rollout uses it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from PIL import Image

from mgpo.images.identity import image_key
from mgpo.images.imaging import PixelBudget
from mgpo.images.photograph import Photograph
from mgpo.method.episode import Episode
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question


class SharedPhotographs:
    """Photographs by what they show; one that no rollout holds any more is forgotten, its overviews with it."""

    def __init__(self) -> None:
        self._open: WeakValueDictionary[Any, Photograph] = WeakValueDictionary()
        self._shown: WeakKeyDictionary[Photograph, dict[PixelBudget, Image.Image]] = WeakKeyDictionary()

    def begin(self, question: Question, protocol: Protocol) -> Episode:
        """An episode of a question, opened.

        Raises:
            ImageError: an image cannot be used.
        """
        photographs = tuple(map(self._photograph, question.images))
        episode = Episode(question, photographs, protocol)
        episode.opening([self._overview(photograph, protocol.budget) for photograph in photographs])
        return episode

    def _photograph(self, image: Any) -> Photograph:
        key = image_key(image)
        photograph = self._open.get(key)
        if photograph is None:
            photograph = self._open[key] = Photograph(image)
        return photograph

    def _overview(self, photograph: Photograph, budget: PixelBudget) -> Image.Image:
        shown = self._shown.setdefault(photograph, {})
        if budget not in shown:
            shown[budget] = photograph.overview(budget)
        return shown[budget]

"""Ask a trained policy about photographs, from Python.

from mgpo import GroundedVQA

vqa = GroundedVQA.from_pretrained("runs/mine")
found = vqa.ask("street.jpg", "Which number is on the bus?", choices=["14", "41"])
found.answer, found.turns[0].box_px_original, found.turns[0].crop
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mgpo.asking.settings import limits_for, load_policy, protocol_for
from mgpo.images.imaging import DEFAULT_MAX_IMAGE_PIXELS
from mgpo.images.photograph import Photograph
from mgpo.method.episode import Episode
from mgpo.method.protocol import Protocol, method_named
from mgpo.method.question import LETTERS, Question
from mgpo.method.rewards import boxed, chosen_letter
from mgpo.policies.turn_loop import Policy, TurnLimits, run_episodes


@dataclass(frozen=True)
class Turn:
    """One turn of the model.

    Attributes:
        text: what the model said.
        status: `valid`, or why its box could not be cropped; None where no box was asked for.
        box_px_original: x1, y1, x2, y2 in pixels of the photograph as a person sees it.
        image_number: number of the photograph that the box is in, from 1.
        crop: the image that the model was shown next, if its box was valid.
        seconds: from the start of the turn to its end; turns of a batch end together.
    """

    text: str
    status: str | None
    box_px_original: tuple[int, int, int, int] | None
    crop: Image.Image | None = field(repr=False)
    seconds: float
    truncated: bool
    image_number: int = 1


@dataclass(frozen=True)
class Answer:
    """The answer to one question, with the turns that led to it.

    Attributes:
        answer: the text of the chosen choice, or the boxed text; None if the model gave no answer in the requested
            form.
        letter: letter of the chosen choice, if there were choices.
        text: the whole text of the last turn.
        turns: all turns of the model.
        seconds: total time, with decoding and cropping.
        episode: the whole conversation, for drawing and records.
    """

    answer: str | None
    letter: str | None
    text: str
    turns: tuple[Turn, ...]
    seconds: float
    episode: Episode = field(repr=False)

    @property
    def box_px_original(self) -> tuple[int, int, int, int] | None:
        """The first region that was looked at."""
        return next((turn.box_px_original for turn in self.turns if turn.box_px_original), None)


class GroundedVQA:
    """A policy with its turn protocol.

    Args:
        policy: the policy that answers (see `mgpo.policies.turn_loop.Policy`).
        protocol: how it is asked.
        limits: token limits of its turns.
        max_image_pixels: larger photographs are refused.
    """

    def __init__(
        self,
        policy: Policy,
        protocol: Protocol,
        limits: TurnLimits = TurnLimits(),
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
    ) -> None:
        self.policy, self.protocol, self.limits, self.max_image_pixels = policy, protocol, limits, max_image_pixels

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        engine: str = "transformers",
        endpoint: str | None = None,
        protocol: str | None = "mgpo",
        max_turns: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        coordinates: str | None = None,
        thinking: bool | None = None,
        grounding_tokens: int | None = None,
        answer_tokens: int | None = None,
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
    ) -> GroundedVQA:
        """Load a policy. A setting that is None is as in the policy's training run, else the paper's.

        Args:
            model: `mgpo-tiny`, a run folder, a hub id; with `endpoint`, the model's name on the server.
            engine: see `mgpo.asking.settings.load_policy`.
            endpoint: base URL of an OpenAI-compatible server that generates the turns.
            min_pixels: pixel budget of every image: smaller ones are enlarged.
            max_pixels: larger ones are shrunk.
            thinking: whether the chat template lets the model think first (`enable_thinking`).
            coordinates: how the model writes boxes, needed for unknown families only: see `BoxForm.parse`.
        """
        from mgpo.policies.names import trained_with

        if protocol is not None:
            method_named(protocol)  # before the model is loaded
        policy, trained = load_policy(model, engine, endpoint, thinking), trained_with(model)
        way = protocol_for(policy, protocol, max_turns, min_pixels, max_pixels, coordinates, trained)
        return cls(policy, way, limits_for(trained, way, grounding_tokens, answer_tokens), max_image_pixels)

    def ask(self, image: Any, question: str, choices: Sequence[str] | None = None) -> Answer:
        """Ask one question.

        Args:
            image: a path, bytes, or a PIL image; or a list of 2 to 8, for a question about several images.
            question: what to ask.
            choices: 2 to 26 texts, lettered A to Z; none for an open question.

        Raises:
            ImageError: the image cannot be used; the message says why.
            ValueError: the question has no text, or a wrong number of choices.
        """
        return self.ask_many([(image, question, choices)])[0]

    def ask_many(
        self,
        asked: Sequence[tuple[Any, str, Sequence[str] | None]],
        on_turn: Callable[[int, Episode], None] | None = None,
    ) -> list[Answer]:
        """Ask several questions as one batch.

        Args:
            asked: (image, question, choices) of each.
            on_turn: called with a question's index and episode after each of the model's turns.
        """
        return self.answer(
            [self.episode(image, question, choices) for image, question, choices in asked], on_turn=on_turn
        )

    def episode(self, image: Any, question: str, choices: Sequence[str] | None = None) -> Episode:
        """An episode that is ready to run: headers of the images (or `Photograph`s) are read and the overviews made."""
        images = tuple(image) if isinstance(image, (list, tuple)) else (image,)
        if not images:
            raise ValueError("The question has no image.")
        asked = Question(images[0], question, tuple(choices or ()), more_images=images[1:])
        photographs = tuple(
            one if isinstance(one, Photograph) else Photograph(one, self.max_image_pixels) for one in images
        )
        episode = Episode(asked, photographs, self.protocol)
        episode.opening()
        if self.protocol.looks_again:
            for photograph in photographs:
                photograph.decode_ahead()  # after the overviews, which are needed first, and while the model reads them
        return episode

    def answer(
        self,
        episodes: list[Episode],
        temperature: float = 0.0,
        answer_tokens: int | None = None,
        on_turn: Callable[[int, Episode], None] | None = None,
    ) -> list[Answer]:
        """Run episodes to their end as one batch."""
        if not episodes:
            return []
        ends: list[list[float]] = [[] for _ in episodes]
        start = time.perf_counter()

        def note(index: int) -> None:
            ends[index].append(time.perf_counter())
            if on_turn is not None:
                on_turn(index, episodes[index])

        limits = TurnLimits(self.limits.grounding, answer_tokens or self.limits.answer)
        run_episodes(self.policy, episodes, limits, temperature, on_turn=note)
        seconds = time.perf_counter() - start
        return [_answer(episode, start, at, seconds) for episode, at in zip(episodes, ends)]


def turns_of(episode: Episode, seconds: Sequence[float] = ()) -> tuple[Turn, ...]:
    """The model's turns so far, each with the crop that it was shown in reply."""
    turns = []
    for number, said in enumerate(episode.model_turns):
        box = said.grounding.box_px_original if said.grounding else None
        later = episode.user_turns[number + 1 : number + 2]
        crop = later[0].image if box and later else None
        took = seconds[number] if number < len(seconds) else 0.0
        status = str(said.grounding.status) if said.grounding else None
        where = said.grounding.image_number if said.grounding else 1
        turns.append(Turn(said.text.strip(), status, box, crop, round(took, 4), said.truncated, where))
    return tuple(turns)


def _answer(episode: Episode, start: float, ends: list[float], seconds: float) -> Answer:
    text, choices = episode.model_turns[-1].text, episode.question.choices
    given = boxed(text)
    letter = chosen_letter(given, choices) if given and choices else None
    answer = choices[LETTERS.index(letter)] if letter else given
    took = [end - begin for begin, end in zip([start, *ends], ends)]
    return Answer(answer, letter, text.strip(), turns_of(episode, took), round(seconds, 4), episode)

"""What `mgpo-tiny` can do before any training, for its model card: able, but not elicited.

    python -m mgpo.tiny.measure --n 500

- plain grounding: asked "Give the box of the red sign as JSON.", is the sign's centre in the box?
- reading: the question of a gold crop alone, greedy, is the answer right?
- elicited: the first turn of MGPO's dialogue, sampled: what kinds of reply come, how often is the right sign in the box?
- overview: questions that the overview answers, asked directly.
- guess: fine print asked of the overview alone: should be chance (0.25).
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from rich.console import Console

from mgpo.data.question import Question
from mgpo.engines.loading import TINY, budget_of
from mgpo.engines.local import Conversation, LocalPolicy
from mgpo.grounding import Frame, holds_centre, read_grounding
from mgpo.imaging import crop, overview
from mgpo.protocol import Episode, Method, Protocol, UserTurn
from mgpo.rewards import is_correct
from mgpo.rollout import TurnLimits, run_episodes
from mgpo.tiny.tokenizer import PLAIN_BOX
from mgpo.worlds.needle import make_question, references
from mgpo.worlds.render import render

LIMITS = TurnLimits(28, 12)
BATCH = 50


def measure(policy: LocalPolicy, n: int, seed: int) -> dict[str, float]:
    """All shares over `n` questions of the split `test`."""
    protocol = Protocol(budget=budget_of(policy.processor))
    counts: Counter[str] = Counter()
    torch.manual_seed(seed)
    for first in range(0, n, BATCH):
        drawn = [make_question("test", seed, i) for i in range(first, min(n, first + BATCH))]
        images = [render(scene) for _, scene in drawn]
        _plain_boxes(policy, protocol, drawn, images, counts)
        _answers(policy, protocol, [question for question, _ in drawn], images, counts)
        _first_turns(policy, protocol, [question for question, _ in drawn], images, counts)
    names = sorted({name.partition("/")[0] for name in counts})
    return {name: counts[f"{name}/yes"] / counts[f"{name}/all"] for name in names}


def _count(counts: Counter[str], name: str, yes: bool) -> None:
    counts[f"{name}/all"] += 1
    counts[f"{name}/yes"] += bool(yes)


def _plain_boxes(policy: LocalPolicy, protocol: Protocol, drawn: list, images: list, counts: Counter[str]) -> None:
    asked, conversations = [], []
    for (_, scene), image in zip(drawn, images):
        shown = overview(image, protocol.budget)
        for kind, pick in (("colour", 0), ("place", 1)):
            named = [(s, references(scene, s)[pick]) for s in scene.signs if len(references(scene, s)) > pick]
            if named:
                sign, name = named[scene.key[2] % len(named)]
                turn = UserTurn(f"{PLAIN_BOX} {name} as JSON.", shown, Frame(shown.size, (0, 0, *image.size)))
                asked.append((kind, sign, turn))
                conversations.append(Conversation(policy.tokens.opening(turn), [shown]))
    for (kind, sign, turn), said in zip(asked, policy.say(conversations, LIMITS.grounding), strict=True):
        box = read_grounding(said.text, turn.frame, protocol.box).box_px_original
        _count(counts, f"plain grounding by {kind}", box is not None and holds_centre(box, sign.box_px_original))


def _answers(
    policy: LocalPolicy, protocol: Protocol, questions: list[Question], images: list, counts: Counter[str]
) -> None:
    direct = Protocol(Method.DIRECT, budget=protocol.budget)
    episodes, names = [], []
    for question, image in zip(questions, images):
        episodes.append(Episode(question, image, direct))
        names.append("guess fine print from overview" if question.gold_boxes_px_original else "overview questions")
        if question.gold_boxes_px_original:
            region = crop(image, question.gold_boxes_px_original[0], protocol.budget)
            episodes.append(Episode(question, region, direct))
            names.append("reading a gold crop")
    run_episodes(policy, episodes, LIMITS)
    for name, episode in zip(names, episodes, strict=True):
        question = episode.question
        _count(counts, name, is_correct(episode.model_turns[-1].text, question.choices, question.answer))


def _first_turns(
    policy: LocalPolicy, protocol: Protocol, questions: list[Question], images: list, counts: Counter[str]
) -> None:
    episodes = [Episode(question, image, protocol) for question, image in zip(questions, images)]
    run_episodes(policy, episodes, LIMITS, temperature=1.0, turns=1)
    for episode in episodes:
        box, gold = episode.first_grounding.box_px_original, episode.question.gold_boxes_px_original
        _count(counts, "elicited: valid box", box is not None)
        if gold:
            _count(counts, "elicited: on the right sign", box is not None and holds_centre(box, gold[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TINY)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=31)
    args = parser.parse_args()
    for name, share in measure(LocalPolicy.load(args.model, dtype="float32"), args.n, args.seed).items():
        Console().print(f"{name:<36} {share:.3f}", highlight=False)


if __name__ == "__main__":
    main()

"""What `mgpo-tiny` can do before any training, for its model card: every skill of MGPO, and none of it joined up.

    python -m mgpo.tiny.measure --n 500

- plain grounding: asked "Give the box of the red sign as JSON.", is the sign's centre in the box?
- reading: the question of a gold crop alone, greedy, is the answer right?
- opening: the first turn of MGPO's dialogue. How often is there a valid box, and given one, is it on the right sign? Sampled
  at temperature 1 and greedy.
- overview: questions that the overview answers, asked directly.
- guess: fine print asked of the overview alone: should be chance (0.25).
- ban: the accuracy that the best ban of a single token gains, of the 30 likeliest first tokens of turn 1. A base that only
  has to be made to look would gain much.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import torch
from rich.console import Console

from mgpo.images.imaging import crop, overview
from mgpo.method.boxes import Frame, holds_centre
from mgpo.method.episode import Episode, UserTurn
from mgpo.method.grounding import read_grounding
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.method.rewards import is_correct
from mgpo.policies.loading import budget_of
from mgpo.policies.local import Conversation, LocalPolicy
from mgpo.policies.shipped import TINY
from mgpo.policies.turn_loop import GivenFirst, TurnLimits, run_episodes
from mgpo.tiny.tokenizer import PLAIN_BOX
from mgpo.worlds.needle import make_question, references
from mgpo.worlds.render import render

LIMITS = TurnLimits(32, 12)
BATCH = 50
FIRST_TOKENS = 30


def measure(policy: LocalPolicy, n: int, seed: int) -> dict[str, float]:
    """All shares over `n` questions of the split `test`."""
    protocol = Protocol(budget=budget_of(policy.processor))
    counts: Counter[str] = Counter()
    torch.manual_seed(seed)
    for first in range(0, n, BATCH):
        drawn = [make_question("test", seed, i) for i in range(first, min(n, first + BATCH))]
        images = [render(scene) for _, scene in drawn]
        questions = [question for question, _ in drawn]
        _plain_boxes(policy, protocol, drawn, images, counts)
        _answers(policy, protocol, questions, images, counts)
        for way, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            _first_turns(policy, protocol, questions, images, counts, way, temperature)
    names = sorted({name.partition("/")[0] for name in counts})
    return {name: counts[f"{name}/yes"] / counts[f"{name}/all"] for name in names}


def ban_gains(policy: LocalPolicy, n: int, seed: int) -> dict[str, float]:
    """What greedy accuracy gains where one token may not be said in turn 1, for each of the likeliest first tokens.

    Only episodes whose first turn holds the token are run again: a greedy turn without it stays as it is.
    """
    protocol = Protocol(budget=budget_of(policy.processor))
    drawn = [make_question("test", seed, i) for i in range(n)]
    episodes = [Episode(question, render(scene), protocol) for question, scene in drawn]
    said = [turns[0] for turns in run_episodes(policy, episodes, LIMITS)]
    right = [_right(episode) for episode in episodes]
    gains = {}
    for token in likeliest_first_tokens(policy, episodes):
        touched = [number for number, turn in enumerate(said) if token in turn.ids]
        again = [Episode(episodes[i].question, episodes[i].originals, protocol) for i in touched]
        if again:
            _run_without(policy, again, token)
        change = sum(_right(episode) - right[i] for i, episode in zip(touched, again))
        gains[policy.tokens.tokenizer.decode([token])] = change / n
    return gains


def likeliest_first_tokens(policy: LocalPolicy, episodes: Sequence[Episode], count: int = FIRST_TOKENS) -> list[int]:
    """The tokens that turn 1 begins with most often, by mean probability over opened episodes; banned ones left out."""
    total: torch.Tensor | float = 0.0
    for episode in episodes:
        turn = episode.user_turns[0]
        ids = torch.tensor([policy.tokens.opening(turn)])
        with torch.no_grad():
            logits = policy.model(
                input_ids=ids, mm_token_type_ids=(ids == policy.tokens.image_token_id).int(),
                **policy.tokens.pixels([turn.image]),
            ).logits[0, -1]  # fmt: skip
        total = total + logits.float().softmax(-1)
    assert isinstance(total, torch.Tensor)
    total[policy.tokens.banned_ids()] = 0
    return total.topk(count).indices.tolist()


def _run_without(policy: LocalPolicy, episodes: list[Episode], token: int) -> None:
    """Greedy episodes in whose first turn one token may not be said."""
    allowed = policy.banned_ids
    policy.banned_ids = [*allowed, token]
    try:
        first = policy.say([policy.open(episode.opening()) for episode in episodes], LIMITS.grounding)
    finally:
        policy.banned_ids = allowed
    run_episodes(GivenFirst(policy, first), episodes, LIMITS)


def _right(episode: Episode) -> bool:
    return is_correct(episode.model_turns[-1].text, episode.question.choices, episode.question.answer)


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
                turn = UserTurn(f"{PLAIN_BOX} {name} as JSON.", (shown,), (Frame(shown.size, (0, 0, *image.size)),))
                asked.append((kind, sign, turn))
                conversations.append(Conversation(policy.tokens.opening(turn), [shown]))
    for (kind, sign, turn), said in zip(asked, policy.say(conversations, LIMITS.grounding), strict=True):
        box = read_grounding(said.text, turn.frames[0], protocol.box).box_px_original
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
        _count(counts, name, _right(episode))


def _first_turns(
    policy: LocalPolicy, protocol: Protocol, questions: list[Question], images: list, counts: Counter[str], way: str,
    temperature: float,
) -> None:  # fmt: skip
    episodes = [Episode(question, image, protocol) for question, image in zip(questions, images)]
    run_episodes(policy, episodes, LIMITS, temperature=temperature, turns=1)
    for episode in episodes:
        box, gold = episode.first_grounding.box_px_original, episode.question.gold_boxes_px_original
        _count(counts, f"opening, {way}: valid box", box is not None)
        if gold and box is not None:
            _count(counts, f"opening, {way}: right sign, given a valid box", holds_centre(box, gold[0]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TINY)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=31)
    args = parser.parse_args()
    policy = LocalPolicy.load(args.model, dtype="float32")
    shares = measure(policy, args.n, args.seed)
    gains = ban_gains(policy, args.n, args.seed)
    token = max(gains, key=gains.__getitem__)
    shares[f"largest gain from banning one token ({token!r})"] = gains[token]
    for name, share in shares.items():
        Console().print(f"{name:<52} {share:.3f}", highlight=False, markup=False)


if __name__ == "__main__":
    main()

"""Asks a server, before any question, whether it serves the model and leaves its images as they are sent.

A server that shrinks or enlarges images reads other pixels than the protocol says, and a model that writes boxes in pixels of what it
was shown then means another region: nothing fails, and the score is wrong.
"""

from __future__ import annotations

import math
import warnings

from PIL import Image

from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import Coordinates
from mgpo.method.episode import UserTurn
from mgpo.method.protocol import Method, Protocol
from mgpo.policies.client import Refused
from mgpo.policies.endpoint import IS_MGPO_SERVE, EndpointPolicy

EXACT, SHARE = 2, 0.2
"""By how many visual tokens, or by what share, an image may differ from what its pixels suggest: where the family is known, its grid
is; elsewhere sides are rounded otherwise."""


def check_model(policy: EndpointPolicy) -> None:
    """Warn about a model that the server does not list: some serve more names than they list.

    Raises:
        ValueError: the server is `mgpo serve`.
        ConnectionError: it cannot be reached, or refuses access.
    """
    served = policy.served()
    if any(getattr(one, "owned_by", None) == "mgpo" for one in served):
        raise ValueError(IS_MGPO_SERVE.format(policy.address))
    names = [one.id for one in served]
    if names and policy.model not in names:
        few = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        warnings.warn(f"The endpoint {policy.address} does not list {policy.model}; it lists {few}.", stacklevel=2)


def check_pixels(policy: EndpointPolicy, protocol: Protocol) -> None:
    """Compare the prompt tokens of a small, a middle and a large image of the budget: they must grow as the pixels do.

    A server that does not count the tokens of images, or refuses so short a request, is warned about.

    Raises:
        ValueError: it resizes images, and the model writes boxes in pixels of what it was shown.
        ConnectionError: the server fails.
    """
    if policy.family is not None and policy.family.factor is None:
        return  # such families cut images into tiles: their tokens do not grow with the pixels
    images = [Image.new("RGB", size, "grey") for size in sizes_within(protocol.budget)]
    try:
        counts = [_prompt_tokens(policy, (image,)) for image in images]
        text = _prompt_tokens(policy, ())
    except Refused as refused:
        warnings.warn(f"Whether the server resizes images could not be checked: {refused}", stacklevel=2)
        return
    tokens = [count for count in counts if count is not None]
    if len(tokens) < len(images) or text is None or max(tokens) <= text + EXACT:
        warnings.warn(
            f"Whether the server at {policy.address} resizes images could not be checked: it counts no prompt tokens of images.",
            stacklevel=2,
        )
        return
    areas = [image.width * image.height for image in images]
    if grow_alike(tokens, areas, protocol.budget.factor, policy.family is not None):
        return
    told = (
        f"The server at {policy.address} resizes images: it reads {tokens[0]}, {tokens[1]} and {tokens[2]} prompt tokens where it is sent images "
        f"of {areas[0]:,}, {areas[1]:,} and {areas[2]:,} pixels. Give its own limits by --min-pixels and --max-pixels, or start it with wider "
        f'ones, e.g. vllm serve --mm-processor-kwargs \'{{"min_pixels": {areas[0]}, "max_pixels": {protocol.budget.max_pixels}}}\'.'
    )
    if protocol.box.form.coordinates is Coordinates.ABSOLUTE and protocol.method is not Method.DIRECT:
        raise ValueError(f"{told} Else boxes in pixels of the image that was sent would be read in the wrong place.")
    warnings.warn(told, stacklevel=2)


def _prompt_tokens(policy: EndpointPolicy, images: tuple[Image.Image, ...]) -> int | None:
    usage = policy.request(policy.open(UserTurn("?", images)), 1).usage
    return getattr(usage, "prompt_tokens", None)


def sizes_within(budget: PixelBudget) -> list[tuple[int, int]]:
    """(width, height) of a small, a middle and a large image that the budget leaves as they are."""
    unit = budget.factor**2
    fewest, most = math.ceil(budget.min_pixels / unit), budget.max_pixels // unit
    found = []
    for tokens in (fewest, (fewest + most) // 2, most):
        rows = max(1, math.isqrt(tokens))
        columns = math.ceil(tokens / rows) if tokens == fewest else tokens // rows
        found.append((columns * budget.factor, rows * budget.factor))
    return found


def grow_alike(tokens: list[int], areas: list[int], factor: int, known: bool) -> bool:
    """Whether three counts of prompt tokens grow as the areas of their images do, in pixels.

    Args:
        tokens, areas: of a small, a middle and a large image.
        factor: side of the square that a visual token shows, in pixels.
        known: whether the model's family is known to have this factor; else only the proportion of both steps counts.
    """
    steps = [(areas[1] - areas[0]) / factor**2, (areas[2] - areas[1]) / factor**2]
    grown = [tokens[1] - tokens[0], tokens[2] - tokens[1]]
    if sum(steps) == 0:
        return True
    if known:
        return all(abs(g - s) <= EXACT for g, s in zip(grown, steps))
    share = sum(grown) / sum(steps)
    return share >= SHARE and all(abs(g - share * s) <= max(EXACT, SHARE * share * s) for g, s in zip(grown, steps))

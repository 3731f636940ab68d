"""Makes a vision tower encode each image once.

In a step, the overview of a question occurs in every one of its G rollouts, in both turns and in the update.
`remember_images(tower)` makes the tower identify images by the hash of their pixels. A frozen tower caches features
from call to call and encodes only new images; the cache is bounded, and the least recently used images are dropped. A
tower that is trained encodes each unique image of a call once, and the image's gradient is the sum over its
occurrences.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import xxhash
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mgpo.policies.families import shares_prompts
from mgpo.policies.shared.ranks import Calls, alone

MEMORY_TOKENS = 200_000
"""Largest number of cached visual tokens: 0.13 GB for `mgpo-tiny`, 1.4 GB in bfloat16 for a hidden size of 3584."""

TOWERS = ("visual", "vision_tower", "vision_model")
"""Names of vision towers; the last is that of Idefics 3 and SmolVLM, and of a part of other families' towers."""


def towers(model: Any) -> list[torch.nn.Module]:
    """The vision towers of a model."""
    return [module for name, module in model.named_modules() if name.split(".")[-1] in TOWERS]


def remember_towers(model: Any, calls: Calls = alone) -> None:
    """Apply `remember_images` to every tower of a model, if it is of a family whose tower returns features only."""
    if shares_prompts(model.config.model_type):
        for tower in towers(model):
            remember_images(tower, calls=calls)


def remember_images(visual: Any, memory_tokens: int = MEMORY_TOKENS, calls: Calls = alone) -> None:
    """Make a vision tower encode each unique image once: per call while it is trained, for good while frozen.

    DeepStack features, which Qwen3-VL's tower also returns for its first language layers, are cached like the others.

    Args:
        visual: the tower; its forward takes patches (sum of patches, values) and `grid_thw` (images, 3).
        memory_tokens: bound of the cache, in merged tokens.
        calls: how often all processes run a frozen tower, given whether this one has new images (1) or none (0).
    """
    if getattr(visual, "remembers_images", False):
        return
    visual.remembers_images = True
    encode = visual.forward
    seen: OrderedDict[bytes, list[torch.Tensor]] = OrderedDict()
    kept_tokens, kind = 0, BaseModelOutputWithPooling

    def forward(hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        nonlocal kept_tokens, kind
        images = hidden_states.split(grid_thw.prod(-1).tolist())
        if any(p.requires_grad for p in visual.parameters()) or hidden_states.requires_grad:
            return _encode_unique(encode, images, grid_thw, visual.config.spatial_merge_size**2, kwargs)
        weights = list(visual.parameters())
        state = repr((weights[0].dtype, str(weights[0].device), [p._version for p in weights])).encode()
        keys = [image_key(patches, grid) + state for patches, grid in zip(images, grid_thw.tolist())]
        new = {key: i for i, key in enumerate(keys) if key not in seen}
        if calls(min(len(new), 1)):
            at = list(new.values()) or [0]  # only another process has a new image: any image will do
            with torch.no_grad():
                out = encode(torch.cat([images[i] for i in at]), grid_thw[at], **kwargs)
            kind = type(out)
            for key, features in zip(new, _by_image(out, grid_thw[at], visual.config.spatial_merge_size**2)):
                seen[key] = [one.clone() for one in features]
                kept_tokens += sum(map(len, features))
        for key in keys:
            seen.move_to_end(key)
        found = _joined(kind, [seen[key] for key in keys])
        while kept_tokens > memory_tokens and len(seen) > 1:
            kept_tokens -= sum(map(len, seen.popitem(last=False)[1]))
        return found

    visual.forward = forward


def _encode_unique(encode: Any, images: Any, grid_thw: torch.Tensor, merge: int, kwargs: dict[str, Any]) -> Any:
    """Features of all images in order, with their gradient; equal images go through the tower once."""
    places: dict[bytes, int] = {}
    numbers = [places.setdefault(image_key(i, grid), len(places)) for i, grid in zip(images, grid_thw.tolist())]
    first = [numbers.index(number) for number in range(len(places))]
    out = encode(torch.cat([images[i] for i in first]), grid_thw[first], **kwargs)
    if len(first) == len(images):
        return out
    features = _by_image(out, grid_thw[first], merge)
    return _joined(type(out), [features[number] for number in numbers])


def _by_image(out: Any, grid_thw: torch.Tensor, merge: int) -> list[list[torch.Tensor]]:
    """For each image, the tower's features, then its DeepStack features layer by layer."""
    sizes = (grid_thw.prod(-1) // merge).tolist()
    layers = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
    return [list(features) for features in zip(*(layer.split(sizes) for layer in layers))]


def _joined(kind: type, images: list[list[torch.Tensor]]) -> Any:
    """What the tower returns for these images together, in its own kind of output."""
    features, *deepstack = (torch.cat(layer) for layer in zip(*images))
    more = {"deepstack_features": deepstack} if deepstack else {}
    return kind(last_hidden_state=None, pooler_output=features, **more)


def image_key(patches: torch.Tensor, grid: list[int]) -> bytes:
    """Identity of an image's pixels and grid. A key for the output of a tower must add the state of its weights."""
    data = patches.detach().to("cpu", torch.float32).contiguous().numpy()
    return xxhash.xxh3_128_digest(data.data) + repr(grid).encode()

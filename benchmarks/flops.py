"""How many floating-point operations of matrix products a pass of Qwen2.5-VL needs at least.

Needed is what the result depends on, once: every unique token through every layer, each query against the keys that it may
see (causal attention needs half of its square), and in the last layer only keys and values, unless a token is scored. A
backward pass needs twice as much (one product for the input's gradient, one for the weight's); what a kernel or gradient
checkpointing computes again does not count. This is the numerator of "model FLOPs utilisation" (PaLM, arXiv 2204.02311, appendix B),
without PaLM's simplification that the square is computed whole. Norms, activations and softmax are not counted.

`tests/benchmarks/test_flops.py` compares with what `torch.utils.flop_counter` sees in a model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Work:
    """What goes through a model.

    Attributes:
        tokens: unique tokens.
        pairs: query and key that attend, over all tokens.
        scored: tokens whose next token's probability is wanted.
        scored_pairs: as `pairs`, with the scored tokens as queries.
        patches: of unique images.
        window_pairs: pairs of patches in the tower's layers with windows.
        image_pairs: pairs of patches in the tower's other layers.
    """

    tokens: int = 0
    pairs: int = 0
    scored: int = 0
    scored_pairs: int = 0
    patches: int = 0
    window_pairs: int = 0
    image_pairs: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __mul__(self, times: int) -> Work:
        return Work(*(getattr(self, field.name) * times for field in fields(self)))


def continued(past: int, new: int, scored: range | None = None) -> Work:
    """`new` tokens after `past` earlier ones, of which those in `scored` (counted from the first new one) are scored."""
    queries = scored or range(0)
    return Work(new, _causal(past, range(new)), len(queries), _causal(past, queries))


def _causal(past: int, queries: range) -> int:
    """Each query sees the past, those before it, and itself."""
    return sum(past + query + 1 for query in queries)


def image(config: Any, grid: tuple[int, int]) -> Work:
    """One image of height x width patches through the tower."""
    height, width = grid
    side = config.vision_config.window_size // config.vision_config.patch_size
    rows, columns = ([min(side, n - at) for at in range(0, n, side)] for n in (height, width))
    windows = sum((row * column) ** 2 for row in rows for column in columns)
    return Work(patches=height * width, window_pairs=windows, image_pairs=(height * width) ** 2)


def language(config: Any, work: Work) -> int:
    """Operations of the language model's forward pass, with its head."""
    text = config.get_text_config()
    size, heads = text.hidden_size, text.num_attention_heads
    head = getattr(text, "head_dim", None) or size // heads
    inner, before = heads * head, text.num_hidden_layers - 1
    keys = 2 * size * text.num_key_value_heads * head
    others = 2 * size * inner + 3 * size * text.intermediate_size
    products = work.tokens * (keys * (before + 1) + others * before) + work.scored * (others + size * text.vocab_size)
    return 2 * products + 4 * inner * (work.pairs * before + work.scored_pairs)


def tower(config: Any, work: Work) -> int:
    """Operations of the vision tower's forward pass."""
    vision = config.vision_config
    size, whole = vision.hidden_size, len(vision.fullatt_block_indexes)
    merged = size * vision.spatial_merge_size**2
    layer = 4 * size * size + 3 * size * vision.intermediate_size
    tokens = work.patches // vision.spatial_merge_size**2
    attention = work.window_pairs * (vision.depth - whole) + work.image_pairs * whole
    products = work.patches * layer * vision.depth + tokens * merged * (merged + vision.out_hidden_size)
    return embedded(config, work) + 2 * products + 4 * size * attention


def embedded(config: Any, work: Work) -> int:
    """Operations that turn patches into the tower's input; no gradient flows to the patches."""
    vision = config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return 2 * work.patches * values * vision.hidden_size


def forward(config: Any, work: Work) -> int:
    return language(config, work) + tower(config, work)


def backward(config: Any, work: Work, tower_trained: bool) -> int:
    """Of a model whose language half is trained, input embeddings included."""
    vision = 2 * tower(config, work) - embedded(config, work) if tower_trained else 0
    return 2 * language(config, work) + vision

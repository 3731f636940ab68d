"""Shapes of the models whose memory we can estimate: configuration values of hub checkpoints, so that nothing is downloaded.

    size = known_size("Qwen/Qwen3-VL-4B-Instruct")
    size.parameters, size.cache_bytes                # 4_437_815_808, 147_456

`tests/planning/test_sizes.py` builds each model from its configuration without weights and compares every count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """A vision tower: blocks and widths. `features` is how many layers' features it returns, DeepStack's included."""

    depth: int
    hidden: int
    inner: int
    features: int = 1


@dataclass(frozen=True)
class LinearAttention:
    """The layers of Gated DeltaNet of a text model; `keys` and `values` are widths over all heads."""

    layers: int
    heads: int
    keys: int
    values: int
    kernel: int = 4

    @property
    def state_bytes(self) -> int:
        """What all layers keep of a conversation of any length: a float32 state per head, and the convolution's inputs."""
        recurrent = self.values * (self.values // self.heads) * 4  # key and value heads are equally wide
        return self.layers * (recurrent + (2 * self.keys + self.values) * self.kernel * 2)


@dataclass(frozen=True)
class Size:
    """Shape of a model.

    Attributes:
        parameters: all that transformers loads; the multi-token prediction head of Qwen3.5's checkpoints is not.
        vision: parameters of the vision tower among them.
        layers: of the text model, whose widths follow: hidden, MLP, all query heads, all key-value heads.
        vocabulary: rows of the language model's head.
        context: `max_position_embeddings`, in tokens.
        patch: side of the vision tower's patches, in pixels; 2 x 2 patches make a visual token.
        gated: attention has an output gate, so `q_proj` is twice as wide.
        linear: layers without a key-value cache, if there are any.
        tied: the head is the embedding.
    """

    parameters: int
    vision: int
    layers: int
    hidden: int
    inner: int
    queries: int
    key_value: int
    vocabulary: int
    context: int
    tower: Tower
    patch: int
    gated: bool = False
    linear: LinearAttention | None = None
    tied: bool = True

    @property
    def cached_layers(self) -> int:
        """Layers that keep keys and values."""
        return self.layers - (self.linear.layers if self.linear else 0)

    @property
    def cache_bytes(self) -> int:
        """Key-value cache of one token, in a two-byte type."""
        return self.cached_layers * 2 * self.key_value * 2

    @property
    def state_bytes(self) -> int:
        """Recurrent states of one conversation; 0 without linear attention."""
        return self.linear.state_bytes if self.linear else 0

    def projections(self) -> Iterator[tuple[str, tuple[int, int], int]]:
        """The text model's linear layers: name within a layer, (inputs, outputs), and in how many layers it is."""
        h, q, kv, inner = self.hidden, self.queries, self.key_value, self.inner
        attention = {
            "q_proj": (h, q * (2 if self.gated else 1)),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
        }
        mlp = {"gate_proj": (h, inner), "up_proj": (h, inner), "down_proj": (inner, h)}
        yield from ((f"self_attn.{name}", shape, self.cached_layers) for name, shape in attention.items())
        yield from ((f"mlp.{name}", shape, self.layers) for name, shape in mlp.items())
        if (own := self.linear) is not None:
            inputs = {"qkv": 2 * own.keys + own.values, "z": own.values, "b": own.heads, "a": own.heads}
            yield from ((f"linear_attn.in_proj_{name}", (h, width), own.layers) for name, width in inputs.items())
            yield "linear_attn.out_proj", (own.values, h), own.layers

    @property
    def text_linear(self) -> int:
        """Weights of the text model's linear layers without the head: what 4-bit loading quantises."""
        return sum(a * b * count for _, (a, b), count in self.projections())

    def adapter_parameters(self, rank: int, targets: str) -> int:
        """Parameters of LoRA on the text model's projections that `targets` (a regular expression) matches."""
        path = "model.language_model.layers.0."
        return rank * sum(sum(s) * count for name, s, count in self.projections() if re.fullmatch(targets, path + name))


_VIT_32, _VIT_32_WIDE = Tower(32, 1280, 3420), Tower(32, 1280, 3456)
_VIT_24 = Tower(24, 1024, 4096)
_VIT_27 = Tower(27, 1152, 4304)
_DEEPSTACK_24, _DEEPSTACK_27 = Tower(24, 1024, 4096, features=4), Tower(27, 1152, 4304, features=4)

SIZES = {
    # config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct.
    "Qwen2.5-VL-3B": Size(
        3_754_622_976, 668_684_288, layers=36, hidden=2048, inner=11_008, queries=2048, key_value=256,
        vocabulary=151_936, context=128_000, tower=_VIT_32, patch=14,
    ),
    "Qwen2.5-VL-7B": Size(
        8_292_166_656, 676_550_144, layers=28, hidden=3584, inner=18_944, queries=3584, key_value=512,
        vocabulary=152_064, context=128_000, tower=_VIT_32, patch=14, tied=False,
    ),
    # The cards of Qwen/Qwen2.5-32B and -72B (layers, heads), whose text models these are. Their towers are wider than the
    # smaller models': with 3456 the parameters are the 33,452,718,336 that users of Qwen/Qwen2.5-VL-32B-Instruct count, to the last one.
    "Qwen2.5-VL-32B": Size(
        33_452_718_336, 688_841_984, layers=64, hidden=5120, inner=27_648, queries=5120, key_value=1024,
        vocabulary=152_064, context=128_000, tower=_VIT_32_WIDE, patch=14, tied=False,
    ),
    "Qwen2.5-VL-72B": Size(
        73_410_777_344, 704_573_696, layers=80, hidden=8192, inner=29_568, queries=8192, key_value=1024,
        vocabulary=152_064, context=128_000, tower=_VIT_32_WIDE, patch=14, tied=False,
    ),
    # 2B and 8B: github.com/pytorch/torchtitan, torchtitan/experiments/qwen3_vl/__init__.py at 0375bb67.
    # 4B: huggingface.co/amburger66/robometer-4b-lora-robotsmith-task03, config.json, a fine-tuned Qwen3-VL-4B-Instruct
    # (its vocabulary is resized; 151,936 is that of the other sizes). Context: the same file.
    # The sums are those that the hub states for the safetensors of Qwen/Qwen3-VL-{2B,4B,8B}-Instruct.
    "Qwen3-VL-2B": Size(
        2_127_532_032, 406_957_056, layers=28, hidden=2048, inner=6144, queries=2048, key_value=1024,
        vocabulary=151_936, context=262_144, tower=_DEEPSTACK_24, patch=16,
    ),
    "Qwen3-VL-4B": Size(
        4_437_815_808, 415_347_712, layers=36, hidden=2560, inner=9728, queries=4096, key_value=1024,
        vocabulary=151_936, context=262_144, tower=_DEEPSTACK_24, patch=16,
    ),
    "Qwen3-VL-8B": Size(
        8_767_123_696, 576_388_336, layers=36, hidden=4096, inner=12_288, queries=4096, key_value=1024,
        vocabulary=151_936, context=262_144, tower=_DEEPSTACK_27, patch=16, tied=False,
    ),
    # Text of 4B and 9B: huggingface.co/Chat2Find/Chat2Find-CPT and huggingface.co/khtsly/Mini-Coder, config.json, fine-tuned
    # Qwen3.5-4B and -9B. 2B: the model card of Qwen/Qwen3.5-2B (24 layers, hidden size 2048, 6 x (3 x Gated DeltaNet + 1 x
    # attention), vocabulary 248,320). 0.8B, and what the card leaves out: the configuration that public ports of the
    # checkpoints are tested against. Towers: those of Qwen3-VL without DeepStack, and 12 blocks of 768 for 0.8B.
    # What confirms all of it: the hub states 873,438,784, 2,274,069,824, 4,659,865,088 and 9,653,104,368 parameters for
    # Qwen/Qwen3.5-{0.8B,2B,4B,9B}. That is the sum here plus one layer of multi-token prediction, to the last parameter; for
    # 2B the parts are known too: 1,881,825,088 text, 331,416,576 vision, 60,828,160 prediction (revision 15852e8c).
    "Qwen3.5-0.8B": Size(
        852_985_920, 100_592_896, layers=24, hidden=1024, inner=3584, queries=2048, key_value=512,
        vocabulary=248_320, context=262_144, tower=Tower(12, 768, 3072), patch=16, gated=True,
        linear=LinearAttention(18, heads=16, keys=2048, values=2048),
    ),
    "Qwen3.5-2B": Size(
        2_213_241_664, 331_416_576, layers=24, hidden=2048, inner=6144, queries=2048, key_value=512,
        vocabulary=248_320, context=262_144, tower=_VIT_24, patch=16, gated=True,
        linear=LinearAttention(18, heads=16, keys=2048, values=2048),
    ),
    "Qwen3.5-4B": Size(
        4_539_265_536, 333_514_240, layers=32, hidden=2560, inner=9216, queries=4096, key_value=1024,
        vocabulary=248_320, context=262_144, tower=_VIT_24, patch=16, gated=True,
        linear=LinearAttention(24, heads=32, keys=2048, values=4096),
    ),
    "Qwen3.5-9B": Size(
        9_409_813_744, 456_010_480, layers=32, hidden=4096, inner=12_288, queries=4096, key_value=1024,
        vocabulary=248_320, context=262_144, tower=_VIT_27, patch=16, gated=True,
        linear=LinearAttention(24, heads=32, keys=2048, values=4096), tied=False,
    ),
}  # fmt: skip
"""By family and size, as in the names of the hub."""


def known_size(name: str) -> Size | None:
    """The size of a model by its hub id, e.g. `Qwen/Qwen3-VL-4B-Instruct`; None for everything else."""
    found = re.search(r"(Qwen2\.5-VL|Qwen3-VL|Qwen3\.5)-(\d+(?:\.\d+)?B)(?![^/]*-A\d)", name)
    return SIZES.get("-".join(found.groups())) if found else None

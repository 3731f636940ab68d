"""Processors without their video half, which cannot be built where torchvision is missing.

    build_without_video("qwen3_vl", image_processor, tokenizer, chat_template)

transformers builds a video processor with every processor of these families, and all video processors need torchvision.
Images do not: transformers has image processors on Pillow.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import ProcessorMixin

from mgpo.policies.families import processor_of

TOKENS = {
    "Qwen": {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
    },
    "Glm": {
        "image_token": "<|image|>", "video_token": "<|video|>",
        "video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>",
    },
}  # fmt: skip
"""Tokens that processors name as attributes, and their ids under the same name with `_id`, by the beginning of their class."""
NAMED = {
    "InternVLProcessor": {
        "start_image_token": "start_image_token", "end_image_token": "end_image_token",
        "image_token": "context_image_token", "image_token_id": "context_image_token_id", "video_token": "video_token",
    },
    "Gemma4Processor": {
        "image_token": "image_token", "image_token_id": "image_token_id", "boi_token": "boi_token", "eoi_token": "eoi_token",
    },
}  # fmt: skip
"""The same where the tokenizer names them: attributes of the processor, and those of its tokenizer."""

SMOLVLM = {
    "fake_image_token": "<fake_token_around_image>", "image_token": "<image>", "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>", "video_token": "<video>",
}  # fmt: skip
"""The same for SmolVLM 2, where the tokenizer may name others."""


def build_without_video(
    model_type: str, image_processor: Any, tokenizer: Any, chat_template: str | None, config: Any = None
) -> Any:
    """The processor of a model type, for texts and images.

    Args:
        model_type: one of a known family (`mgpo.policies.families`).
        image_processor, tokenizer, chat_template: its parts.
        config: the model's configuration; needed where it says how many tokens an image takes (InternVL, Gemma 3,
            Idefics 3, SmolVLM 2).

    Raises:
        KeyError: the type is of no known family.
    """
    name = processor_of(model_type)
    if name is None:
        raise KeyError(model_type)
    if name == "Glm4vProcessor" and type(image_processor).__name__.startswith("Glm46V"):
        name = "Glm46VProcessor"  # GLM-4.6V has the model types of GLM-4.1V and 4.5V
    full = getattr(transformers, name)
    if name == "Gemma3Processor":  # it has no video half
        return full(image_processor, tokenizer, chat_template, config.mm_tokens_per_image)
    if name in ("Idefics3Processor", "SmolVLMProcessor"):  # nor has the first
        vision = config.vision_config
        tokens = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
        kind = full if name == "Idefics3Processor" else _smolvlm(full)
        return kind(image_processor, tokenizer, tokens, chat_template)
    if name in NAMED:
        lengths = (config.image_seq_length,) if name == "InternVLProcessor" else ()
        return _with_length(full)(image_processor, tokenizer, chat_template, *lengths)
    return _images_only(full)(image_processor, tokenizer, chat_template)


def _images_only(full: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The class without its video half."""
    tokens = next(tokens for family, tokens in TOKENS.items() if full.__name__.startswith(family))

    def __init__(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any
    ) -> None:
        for name, token in tokens.items():
            setattr(self, name, token)
            setattr(self, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return _renamed(full, __init__)


def _with_length(full: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The class without its other halves, for one that saves how many tokens an image takes."""

    def __init__(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None,
        image_seq_length: int = 280, **_: Any,
    ) -> None:  # fmt: skip
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        for own, theirs in NAMED[full.__name__].items():
            setattr(self, own, getattr(tokenizer, theirs))

    return _renamed(full, __init__)


def _smolvlm(full: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The class without its video half, and without the package `num2words` that it needs for videos."""

    def __init__(
        self: Any, image_processor: Any = None, tokenizer: Any = None, image_seq_len: int = 169, chat_template: Any = None,
        **_: Any,
    ) -> None:  # fmt: skip
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_len = image_seq_len
        for name, token in SMOLVLM.items():
            setattr(self, name, getattr(tokenizer, name, token))
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    return _renamed(full, __init__)


def _renamed(full: type[ProcessorMixin], init: Any) -> type[ProcessorMixin]:
    """A subclass with this constructor. It keeps the name, so that plain transformers can load a folder that it saves."""
    return type(full.__name__, (full,), {"__init__": init, "__module__": full.__module__, "__doc__": full.__doc__})

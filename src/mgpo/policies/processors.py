"""Processors without their video half, which cannot be built where torchvision is missing.

    build_without_video("qwen3_vl", image_processor, tokenizer, chat_template)

transformers builds a video processor with every processor of these families, and all video processors need torchvision.
Images do not: transformers has image processors on Pillow. A processor that is loaded so and saved again keeps the settings of
the video half, so that transformers and vLLM can load the folder where torchvision works.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import ProcessorMixin
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils.hub import cached_file

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


def video_settings(path: str) -> dict[str, Any] | None:
    """The settings of a checkpoint's video processor, from the file in which transformers would look for them; or None."""
    for name, key in ((PROCESSOR_NAME, "video_processor"), (VIDEO_PROCESSOR_NAME, None), (IMAGE_PROCESSOR_NAME, None)):
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        found = json.loads(Path(file).read_bytes()) if file else None
        if found and (key is None or key in found):
            settings: dict[str, Any] = found[key] if key else found
            return settings
    return None


def build_without_video(
    model_type: str,
    image_processor: Any,
    tokenizer: Any,
    chat_template: str | None,
    config: Any = None,
    video: dict[str, Any] | None = None,
) -> Any:
    """The processor of a model type, for texts and images.

    Args:
        model_type: one of a known family (`mgpo.policies.families`).
        image_processor, tokenizer, chat_template: its parts.
        config: the model's configuration; needed where it says how many tokens an image takes (InternVL, Gemma 3,
            Idefics 3, SmolVLM 2).
        video: settings of its video half (`video_settings`), which are saved with it.

    Raises:
        KeyError: the type is of no known family.
    """
    processor = _built(model_type, image_processor, tokenizer, chat_template, config)
    if hasattr(processor, "video"):
        type(processor).video = video  # its class is its own; an attribute of the object would be saved
    return processor


def _built(model_type: str, image_processor: Any, tokenizer: Any, chat_template: str | None, config: Any) -> Any:
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

    def save_pretrained(self: Any, save_directory: Any, **kwargs: Any) -> Any:
        saved = full.save_pretrained(self, save_directory, **kwargs)
        if self.video is not None:
            Path(save_directory, VIDEO_PROCESSOR_NAME).write_text(json.dumps(self.video, indent=2) + "\n")
        return saved

    own = {"__init__": init, "__module__": full.__module__, "__doc__": full.__doc__}
    return type(full.__name__, (full,), own | {"save_pretrained": save_pretrained, "video": None})

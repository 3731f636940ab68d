"""Processors without their video half, which cannot be built where torchvision is missing.

    build_without_video("qwen3_vl", image_processor, tokenizer, chat_template)

transformers builds a video processor with every processor of these families, and all video processors need torchvision.
Images do not: transformers has image processors on Pillow.
"""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

_QWEN, _GLM = ("<|image_pad|>", "<|video_pad|>"), ("<|image|>", "<|video|>")
PROCESSORS: dict[str, tuple[type[ProcessorMixin], tuple[str, str]]] = {
    "qwen2_vl": (Qwen2VLProcessor, _QWEN),
    "qwen2_5_vl": (Qwen2_5_VLProcessor, _QWEN),
    "qwen3_vl": (Qwen3VLProcessor, _QWEN),
    "qwen3_vl_moe": (Qwen3VLProcessor, _QWEN),
    "qwen3_5": (Qwen3VLProcessor, _QWEN),
    "qwen3_5_moe": (Qwen3VLProcessor, _QWEN),
    "glm4v": (Glm4vProcessor, _GLM),
    "glm4v_moe": (Glm4vProcessor, _GLM),
    "glm46v": (Glm46VProcessor, _GLM),
    "internvl": (InternVLProcessor, _QWEN),
    "gemma3": (Gemma3Processor, _QWEN),
    "gemma4": (Gemma4Processor, _QWEN),
    "idefics3": (Idefics3Processor, _QWEN),
}
"""By model type: the processor of transformers, and its placeholders of images and videos."""
MARKS = {
    "<|video_pad|>": {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"},
    "<|video|>": {"video_start_token": "<|begin_of_video|>", "video_end_token": "<|end_of_video|>"},
}
"""Further tokens that processors name as attributes, by the placeholder of videos."""


def build_without_video(
    model_type: str, image_processor: Any, tokenizer: Any, chat_template: str | None, config: Any = None
) -> Any:
    """The processor of a model type, for texts and images.

    Args:
        model_type: one of `PROCESSORS`.
        image_processor, tokenizer, chat_template: its parts.
        config: the model's configuration; needed where it says how many tokens an image takes (InternVL, Gemma 3).

    Raises:
        KeyError: the type is not in `PROCESSORS`.
    """
    full, placeholders = PROCESSORS[model_type]
    if full is Glm4vProcessor and type(image_processor).__name__.startswith("Glm46V"):
        full = Glm46VProcessor  # GLM-4.6V has the model types of GLM-4.1V and 4.5V
    if model_type == "gemma4":
        return _Gemma4Processor(image_processor, tokenizer, chat_template)
    if model_type == "gemma3":  # it has no video half
        return Gemma3Processor(image_processor, tokenizer, chat_template, config.mm_tokens_per_image)
    if model_type == "idefics3":
        vision = config.vision_config
        tokens = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
        return Idefics3Processor(image_processor, tokenizer, tokens, chat_template)
    if model_type == "internvl":
        return _InternVLProcessor(image_processor, tokenizer, chat_template, config.image_seq_length)
    return _images_only(full, *placeholders)(image_processor, tokenizer, chat_template)


class _InternVLProcessor(InternVLProcessor):
    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None,
        image_seq_length: int = 256, **_: Any,
    ) -> None:  # fmt: skip
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.start_image_token, self.end_image_token = tokenizer.start_image_token, tokenizer.end_image_token
        self.image_token, self.video_token = tokenizer.context_image_token, tokenizer.video_token
        self.image_token_id = tokenizer.context_image_token_id


class _Gemma4Processor(Gemma4Processor):
    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None,
        image_seq_length: int = 280, **_: Any,
    ) -> None:  # fmt: skip
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.boi_token, self.eoi_token = tokenizer.boi_token, tokenizer.eoi_token


_Gemma4Processor.__name__ = "Gemma4Processor"
_InternVLProcessor.__name__ = "InternVLProcessor"


def _images_only(full: type[ProcessorMixin], image_token: str, video_token: str) -> type[ProcessorMixin]:
    """The class without its video half. It keeps its name, so that plain transformers can load a folder that it saves."""

    def __init__(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any
    ) -> None:
        self.image_token, self.video_token = image_token, video_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(video_token)
        for name, token in MARKS[video_token].items():
            setattr(self, name, token)
            setattr(self, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
            setattr(self, name.removesuffix("_token") + "_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return type(full.__name__, (full,), {"__init__": __init__, "__module__": full.__module__, "__doc__": full.__doc__})

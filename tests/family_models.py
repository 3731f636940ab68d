"""A checkpoint of each model family: its own architecture, processor and kind of chat template, tiny and random.

`make(family, folder)` writes one. The tokenizer is that of `mgpo-tiny` with the family's special tokens; the templates are
written after the families' own: what stands between turns, where images go, what is done with thinking.
"""

from __future__ import annotations

import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mgpo.policies.loading import budget_of
from mgpo.policies.processors import build_without_video
from mgpo.tiny.tokenizer import build_tokenizer

PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
QWEN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    + PARTS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2 = "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}" + QWEN
"""Qwen2-VL and Qwen2.5-VL begin with a system turn of their own."""
QWEN3_5 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    + PARTS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""Earlier thinking is dropped, the last answer gets an empty block, and the block is opened in the prompt."""
GLM = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{{ '<think></think>\n' }}{% endif %}"
    + PARTS.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>")
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>\n' }}{% endif %}{% endif %}"
)
"""A turn ends where the next role begins: no token closes it."""
GLM_SPECIAL = [
    "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|begin_of_image|>",
    "<|end_of_image|>", "<|image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>",
]  # fmt: skip

TEXT = dict(
    vocab_size=672, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=4096,
)  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
EXPERTS = dict(moe_intermediate_size=32, num_experts_per_tok=2)
VISION = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64)
QWEN3_VISION = VISION | dict(num_position_embeddings=64, patch_size=16)
QWEN3_TEXT = TEXT | dict(head_dim=16, rope_parameters=MROPE | {"mrope_interleaved": True})
LINEAR = dict(
    num_hidden_layers=4, head_dim=32, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2,
    linear_num_value_heads=4, rope_parameters=MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 0.5},
)  # fmt: skip
GLM_TEXT = TEXT | dict(rope_parameters=MROPE | {"partial_rotary_factor": 1.0})

FAMILY_MODELS = {
    "qwen2_vl": (TEXT | dict(rope_parameters=MROPE), dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2), QWEN2),
    "qwen2_5_vl": (TEXT | dict(rope_parameters=MROPE), VISION | dict(fullatt_block_indexes=[1]), QWEN2),
    "qwen3_vl": (QWEN3_TEXT, QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1]), QWEN),
    "qwen3_vl_moe": (
        QWEN3_TEXT | EXPERTS | dict(num_experts=4),
        QWEN3_VISION | dict(deepstack_visual_indexes=[0, 1]),
        QWEN,
    ),
    "qwen3_5": (QWEN3_TEXT | LINEAR, QWEN3_VISION, QWEN3_5),
    "qwen3_5_moe": (
        QWEN3_TEXT | LINEAR | EXPERTS | dict(num_experts=4, shared_expert_intermediate_size=32),
        QWEN3_VISION,
        QWEN3_5,
    ),
    "glm4v_moe": (
        GLM_TEXT | EXPERTS | dict(n_routed_experts=4, first_k_dense_replace=1),
        VISION | dict(image_size=112),
        GLM,
    ),
    "glm46v": (GLM_TEXT, VISION | dict(image_size=112), GLM),
}
"""By model type: text and vision configuration, chat template."""


def _tokenizer(model_type: str):
    tokenizer = build_tokenizer()
    if model_type.startswith("glm"):
        tokenizer.add_special_tokens({"additional_special_tokens": GLM_SPECIAL, "eos_token": "<|endoftext|>"})
    if model_type.startswith(("glm", "qwen3_5")):
        tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def _image_processor(model_type: str):
    if model_type.startswith("glm"):
        kind = Glm46VImageProcessorPil if model_type == "glm46v" else Glm4vImageProcessorPil
        # GLM counts an image as two frames.
        return kind(size={"shortest_edge": 28 * 28 * 8, "longest_edge": 28 * 28 * 72}, patch_size=14, merge_size=2)
    patch = 16 if model_type.startswith("qwen3") else 14
    size = {"shortest_edge": (2 * patch) ** 2 * 4, "longest_edge": (2 * patch) ** 2 * 36}
    return Qwen2VLImageProcessorPil(size=size, patch_size=patch, merge_size=2)


def make(model_type: str, folder, **settings):
    """Write a checkpoint of a family, with the stop tokens of its generation settings, and `settings` as a run keeps them."""
    text, vision, template = FAMILY_MODELS[model_type]
    tokenizer = _tokenizer(model_type)
    processor = build_without_video(model_type, _image_processor(model_type), tokenizer, template)
    tokenizer.chat_template = template
    names = (
        {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "image_start_token_id": "<|begin_of_image|>",
         "image_end_token_id": "<|end_of_image|>", "video_start_token_id": "<|begin_of_video|>",
         "video_end_token_id": "<|end_of_video|>"}
        if model_type.startswith("glm")
        else {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
              "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    )  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    ends = ["<|endoftext|>", "<|user|>", "<|observation|>"] if model_type.startswith("glm") else ["<|im_end|>"]
    ends = tokenizer.convert_tokens_to_ids(ends)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": ends[0], "bos_token_id": None}
    text = {k: v for k, v in (text | special).items() if k != "bos_token_id"}
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)  # so that every token and position matters
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    budget = budget_of(processor)
    settings = {"min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels} | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder

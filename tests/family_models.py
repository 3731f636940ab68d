"""A checkpoint of each model family: its own architecture, processor and kind of chat template, tiny and random.

`make(family, folder)` writes one. The tokenizer is that of `mgpo-tiny` with the family's special tokens; the templates are
written after the families' own: what stands between turns, where images go, what is done with thinking.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

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

INTERNVL = QWEN.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")
GEMMA = (
    "<bos>{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    + PARTS.replace("{{ part['text'] }}", "{{ part['text'] | trim }}").replace("IMAGE", "<start_of_image>")
    + "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Named roles, texts without spaces around them."""
GEMMA4 = (
    "<bos>{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<|turn>' + role + '\n' }}"
    + PARTS.replace("IMAGE", "<|image|>")
    + "{{ '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)
IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""As in `transformers.models.smolvlm.processing_smolvlm`: a message that is a plain string is not written at all."""
SMALL_SIGLIP = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=56, patch_size=14
)
TILES = {
    "internvl": (
        TEXT | dict(model_type="qwen2", rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=(56, 56)),
        INTERNVL,
    ),
    "idefics3": (
        TEXT | dict(model_type="llama"),
        SMALL_SIGLIP,
        IDEFICS,
    ),
    "smolvlm": (
        TEXT | dict(model_type="llama"),
        SMALL_SIGLIP,
        IDEFICS,
    ),
    "gemma4": (
        TEXT | dict(head_dim=16, sliding_window=64, hidden_size_per_layer_input=0, global_head_dim=16,
                    num_global_key_value_heads=2, layer_types=["sliding_attention", "full_attention"]),
        dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
             intermediate_size=48, patch_size=16, pooling_kernel_size=3),
        GEMMA4,
    ),
    "gemma3": (
        TEXT | dict(head_dim=16, sliding_window=64, query_pre_attn_scalar=16,
                    layer_types=["sliding_attention", "full_attention"]),
        SMALL_SIGLIP,
        GEMMA,
    ),
}  # fmt: skip
"""Families that cut images by themselves."""

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
    "glm4v": (GLM_TEXT, VISION | dict(image_size=112), GLM),
    "glm46v": (GLM_TEXT, VISION | dict(image_size=112), GLM),
}
"""By model type: text and vision configuration, chat template."""


def _tokenizer(model_type: str):
    tokenizer = build_tokenizer()
    if model_type.startswith("glm"):
        tokenizer.add_special_tokens({"additional_special_tokens": GLM_SPECIAL, "eos_token": "<|endoftext|>"})
    if model_type.startswith(("glm", "qwen3_5")):
        tokenizer.add_tokens(["<think>", "</think>", "<tool_response>", "<arg_key>", "</arg_value>", "<tts_pad>"])
    if model_type in SPECIAL_OF:
        names = SPECIAL_OF[model_type]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token=names.get("eos_token", "<|im_end|>"),
            pad_token="<|endoftext|>", extra_special_tokens={k: v for k, v in names.items() if k != "eos_token"},
            padding_side="left", clean_up_tokenization_spaces=False,
        )  # fmt: skip
        if model_type in ("idefics3", "smolvlm"):
            cells = [f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2)]
            tokenizer.add_special_tokens(
                {"additional_special_tokens": ["<fake_token_around_image>", "<global-img>", *cells]}
            )
        if model_type == "gemma4":
            tokenizer.add_special_tokens({"additional_special_tokens": ["<bos>", "<|turn>", "<|video|>"]})
        if model_type == "gemma3":
            tokenizer.add_special_tokens({"additional_special_tokens": ["<bos>", "<start_of_turn>"]})
    return tokenizer


SPECIAL_OF = {
    "internvl": {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
                 "video_token": "<video>"},
    "idefics3": {"image_token": "<image>", "eos_token": "<end_of_utterance>"},
    "smolvlm": {"image_token": "<image>", "video_token": "<video>", "eos_token": "<end_of_utterance>"},
    "gemma4": {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>", "eos_token": "<turn|>"},
    "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
               "eos_token": "<end_of_turn>"},
}  # fmt: skip


def _image_processor(model_type: str):
    if model_type == "internvl":
        return GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    if model_type in ("idefics3", "smolvlm"):
        kind = Idefics3ImageProcessorPil if model_type == "idefics3" else SmolVLMImageProcessorPil
        return kind(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    if model_type == "gemma4":
        return Gemma4ImageProcessorPil(max_soft_tokens=70)
    if model_type == "gemma3":
        return Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    if model_type.startswith("glm"):
        kind = Glm46VImageProcessorPil if model_type in ("glm46v", "glm4v") else Glm4vImageProcessorPil
        # GLM counts an image as two frames.
        return kind(size={"shortest_edge": 28 * 28 * 8, "longest_edge": 28 * 28 * 72}, patch_size=14, merge_size=2)
    patch = 16 if model_type.startswith("qwen3") else 14
    size = {"shortest_edge": (2 * patch) ** 2 * 4, "longest_edge": (2 * patch) ** 2 * 36}
    return Qwen2VLImageProcessorPil(size=size, patch_size=patch, merge_size=2)


NAMES = {
    "idefics3": {"image_token_id": "<image>"},
    "smolvlm": {"image_token_id": "<image>"},
    "internvl": {"image_token_id": "<IMG_CONTEXT>"},
    "gemma4": {"boi_token_id": "<|image>", "eoi_token_id": "<image|>", "image_token_id": "<|image|>",
               "video_token_id": "<|video|>"},
    "gemma3": {"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>",
               "image_token_index": "<image_soft_token>"},
}  # fmt: skip
CHOSEN = {
    "idefics3": {"coordinates": "relative_1"},
    "smolvlm": {"coordinates": "relative_1000"},
    "gemma4": {"coordinates": "absolute"},
    "gemma3": {"coordinates": "relative_1000 yxyx box_2d"},
}
"""How boxes are written, where the family does not decide it."""
MORE = {"idefics3": {"scale_factor": 2}, "smolvlm": {"scale_factor": 2}} | {
    "internvl": {"image_seq_length": 4},
    "gemma3": {"mm_tokens_per_image": 4},
}


def make(model_type: str, folder, template: str | None = None, **settings):
    """Write a checkpoint of a family, with the stop tokens of its generation settings, and `settings` as a run keeps them.

    A `template` takes the place of the short one of these tests.
    """
    text, vision, own_template = (FAMILY_MODELS | TILES)[model_type]
    template = template or own_template
    tokenizer = _tokenizer(model_type)
    per_image = SimpleNamespace(
        image_seq_length=4,
        mm_tokens_per_image=4,
        scale_factor=2,
        vision_config=SimpleNamespace(image_size=56, patch_size=14),
    )
    processor = build_without_video(model_type, _image_processor(model_type), tokenizer, template, per_image)
    tokenizer.chat_template = template
    names = (
        {"image_token_id": "<|image|>", "video_token_id": "<|video|>", "image_start_token_id": "<|begin_of_image|>",
         "image_end_token_id": "<|end_of_image|>", "video_start_token_id": "<|begin_of_video|>",
         "video_end_token_id": "<|end_of_video|>"}
        if model_type.startswith("glm")
        else NAMES[model_type]
        if model_type in TILES
        else {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
              "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    )  # fmt: skip
    more = MORE.get(model_type, {})
    ids = more | {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    ends = ["<|endoftext|>", "<|user|>", "<|observation|>"] if model_type.startswith("glm") else [tokenizer.eos_token]
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
    settings = (
        {"min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels} | CHOSEN.get(model_type, {}) | settings
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder

"""What `mgpo-tiny` is: a real Qwen2.5-VL, small. Configuration and patch preparation for making it.

The text rotary base is 50 rather than a million. A picture is six tokens wide, and with Qwen's own base neighbouring
columns would look alike to a head of 32 dimensions; much smaller, and no dimension turns slowly enough for a word to find
the image token that it names from a few dozen tokens away.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

PATCH, MERGE, TEMPORAL = 14, 2, 2
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

VOCAB_SIZE = 640
HIDDEN = 160


def tiny_config(special_ids: dict[str, int]) -> Qwen2_5_VLConfig:
    """Configuration of the model. `special_ids` maps Qwen's special tokens to ids of our tokenizer."""
    return Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=VOCAB_SIZE,
            hidden_size=HIDDEN,
            intermediate_size=448,
            num_hidden_layers=4,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 50.0, "mrope_section": [2, 7, 7]},
            bos_token_id=special_ids["<|endoftext|>"],
            eos_token_id=special_ids["<|im_end|>"],
            pad_token_id=special_ids["<|endoftext|>"],
        ),
        vision_config=dict(
            depth=3,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            out_hidden_size=HIDDEN,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            temporal_patch_size=TEMPORAL,
            window_size=112,
            fullatt_block_indexes=[0, 1, 2],
        ),
        image_token_id=special_ids["<|image_pad|>"],
        video_token_id=special_ids["<|video_pad|>"],
        vision_start_token_id=special_ids["<|vision_start|>"],
        vision_end_token_id=special_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build(special_ids: dict[str, int]) -> Qwen2_5_VLForConditionalGeneration:
    """The model with random weights."""
    return Qwen2_5_VLForConditionalGeneration(tiny_config(special_ids))


def patches(images: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """What Qwen's image processor makes of images that already have their budgeted size.

    Args:
        images: uint8 arrays (height, width, 3), sides multiples of 28.

    Returns:
        `pixel_values` float (sum of patches, 3·2·14·14) and `image_grid_thw` int (images, 3).
    """
    rows, grids = [], []
    mean = torch.tensor(IMAGE_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGE_STD).view(3, 1, 1)
    for image in images:
        pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean) / std
        gh, gw = image.shape[0] // PATCH, image.shape[1] // PATCH
        blocks = pixels.reshape(3, gh // MERGE, MERGE, PATCH, gw // MERGE, MERGE, PATCH).permute(1, 4, 2, 5, 0, 3, 6)
        blocks = blocks.unsqueeze(5).expand(-1, -1, -1, -1, -1, TEMPORAL, -1, -1)
        rows.append(blocks.reshape(gh * gw, -1))
        grids.append((1, gh, gw))
    return torch.cat(rows), torch.tensor(grids)

"""Two repairs of verl 0.9.1, for the processes that hold the model; verl imports this module there.

    actor_rollout_ref.model.external_lib=mgpo.verl.repairs

**TRL.** Where TRL is installed, verl changes a class of it that TRL 1 has not got any more, and ends with an ImportError. The class
belongs to verl's critics, which GRPO has none of, so verl is told that there is no TRL.

**Rows without an image, for Qwen2-VL and Qwen2.5-VL.** Under FSDP every rank must run the vision tower, or the ranks wait for each
other for ever. For a micro-batch without images verl runs it on a small grey image whose features count nothing, but takes what it
returns for a tensor, which since transformers 5 it is not: the run ends with an AttributeError. (Its Qwen3-VL is right.) Here the
tower is run in the same way, and its features are read as they are returned.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.models.transformers import monkey_patch, qwen2_vl
from verl.utils.transformers_compat import unpack_visual_output

_theirs = qwen2_vl._get_input_embeds
PATCHES = (1, 4, 4)
"""Grid of the small image: frames, rows and columns of patches."""


def embeds(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    pixel_values_videos: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (batch, tokens, width) and attention mask, as verl's own function gives them."""
    if pixel_values is not None or pixel_values_videos is not None:
        return _theirs(
            model, input_ids, attention_mask, pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw
        )
    found, vision = model.get_input_embeddings()(input_ids), model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    count = PATCHES[0] * PATCHES[1] * PATCHES[2]
    grey = torch.zeros((count, width), dtype=found.dtype, device=found.device)
    features, _ = unpack_visual_output(model.visual(grey, grid_thw=torch.tensor([PATCHES], device=found.device)))
    found = found + 0.0 * features.mean()
    return found, None if attention_mask is None else attention_mask.to(found.device)


qwen2_vl._get_input_embeds = embeds
monkey_patch.is_trl_available = lambda: False

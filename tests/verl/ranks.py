"""Two ranks under FSDP2 with verl's patches: rank 0 is shown an image, rank 1 has rows of text. Prints a line per rank.

python -m torch.distributed.run --nproc_per_node 2 ranks.py MODEL {repaired,without_trl,stock}
"""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText
from verl.models.transformers import monkey_patch


def inputs_of(rank, config):
    """Ids, positions and pixels of one row."""
    text = torch.arange(20, 40)
    if rank:
        ids, shown = text[None], {}
    else:
        ids = torch.cat([text[:10], torch.full((9,), config.image_token_id), text[10:]])[None]
        width = (
            config.vision_config.in_channels
            * config.vision_config.temporal_patch_size
            * config.vision_config.patch_size**2
        )
        shown = {"pixel_values": torch.randn(36, width), "image_grid_thw": torch.tensor([[1, 6, 6]])}
    places = torch.arange(ids.shape[1]).expand(4, 1, -1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": places,
        "use_cache": False,
        **shown,
    }


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="sdpa")
    if "repaired" in sys.argv:
        import mgpo.verl.repairs  # noqa: F401
    elif "without_trl" in sys.argv:
        monkey_patch.is_trl_available = lambda: False
    try:
        monkey_patch.apply_monkey_patch(model, use_remove_padding=False)
    except ImportError as error:
        print(f"rank {dist.get_rank()} failed: {error}", flush=True)
        raise
    mesh = init_device_mesh("cpu", (2,))
    for part in (*model.model.visual.blocks, model.model.visual, *model.model.language_model.layers, model):
        fully_shard(part, mesh=mesh)
    rank = dist.get_rank()
    try:
        logits = model(**inputs_of(rank, model.config)).logits
    except AttributeError as error:
        print(f"rank {rank} failed: {error}", flush=True)
        raise
    logits.float().log_softmax(-1)[..., 0].mean().backward()
    first = next(iter(model.model.visual.blocks.parameters())).grad.full_tensor()
    print(f"rank {rank} done, gradient of the tower {first.abs().sum():.6f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

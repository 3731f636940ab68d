"""The update's forward pass with every token computed once: shared prompts, no padding, each image encoded once.

TRL pads G copies of prompt + rollout into a batch. Here the batch becomes one packed row
(`mgpo.policies.shared.packed`): a prompt without its last token, then for each of its rollouts that last token (each
rollout's first token is predicted from it) and the rollout without its own last token (which predicts nothing). The
same tokens are scored at the same positions; `tests/policies/shared/test_shared_update.py` compares loss and gradients with
TRL's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mgpo.policies.shared.packed import Packed, Part, base_of
from mgpo.policies.shared.vision_cache import image_key


@dataclass(frozen=True)
class Batch:
    """A padded batch as TRL makes it: in every row, the prompt ends and the completion begins at column `split`.

    Args:
        input_ids: (rows, columns); prompts padded left, completions right.
        attention_mask: the same shape, 1 where a token is.
        pixel_values: patches of all images in order, or None.
        image_grid_thw: (images, 3).
        num_images: number of images of each row.
        learned: (rows, columns from `split` on), true where a token's probability is wanted; None for all but images.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    split: int
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor
    num_images: list[int]
    learned: torch.Tensor | None = None


@dataclass(frozen=True)
class PackedBatch:
    """A batch as one row.

    Attributes:
        inputs: what the model is called with. It returns the scored tokens only, one after another.
        where: the row and the column of the completion to which each scored token belongs, (2, scored); empty if none is
            wanted, though one is scored all the same.
    """

    inputs: dict[str, Any]
    where: torch.Tensor


def pack(model: Any, batch: Batch, rows: list[int], score: bool = True) -> PackedBatch:
    """Pack the chosen rows of a batch.

    Args:
        model: gives the M-RoPE positions; may be a LoRA model.
        rows: rows to score, each with a completion; the others are left out. If none has one (all were cut off and
            masked), a single row's prompt is packed, and `where` is empty, so that this process still has a forward pass.
        score: False packs in this way always, for a pass that only another process needs.
    """
    device, columns = batch.input_ids.device, batch.input_ids.shape[1]
    image_id = base_of(model).config.image_token_id
    pixels, grids = _images_of(batch)
    positions = _positions(model, batch, grids, rows, image_id)
    begins = (batch.split - batch.attention_mask[:, : batch.split].sum(1)).tolist()
    lengths = batch.attention_mask[:, batch.split :].sum(1).tolist()
    scored = score and any(lengths[row] for row in rows)
    if not scored:
        rows, lengths[rows[0]] = rows[:1], 1
    in_prompt = {row: _images_in_prompt(model, batch, grids[row], row) for row in rows}
    groups: dict[Any, list[int]] = {}
    for row in rows:
        prompt = tuple(batch.input_ids[row, begins[row] : batch.split].tolist())
        shown = tuple(image_key(p, g.tolist()) for p, g in zip(pixels[row][: in_prompt[row]], grids[row]))
        groups.setdefault((prompt, shown), []).append(row)

    take, parts, order, wanted, where = [], [], [], [], []
    at = 0
    for members in groups.values():
        first = members[0]
        shared = torch.arange(begins[first], batch.split - 1, device=device) + first * columns
        span = (at, at + len(shared))
        take.append(shared)
        parts += [Part(*span)] if len(shared) else []
        order += [(first, i) for i in range(in_prompt[first])]
        at = span[1]
        for row in members:
            own = torch.arange(batch.split - 1, batch.split - 1 + lengths[row], device=device) + row * columns
            take.append(own)
            parts.append(Part(at, at + len(own), span if len(shared) else None))
            if scored:
                order += [(row, i) for i in range(in_prompt[row], batch.num_images[row])]
                # Image tokens of the environment are never scored, and in an update its texts are not either.
                kept = batch.input_ids.flatten()[own + 1] != image_id
                kept &= True if batch.learned is None else batch.learned[row, : len(own)]
                chosen = kept.nonzero()[:, 0]
                wanted.append(chosen + at)
                where.append(torch.stack([torch.full_like(chosen, row), chosen]))
            at += len(own)
    taken = torch.cat(take)
    places = torch.cat(where, 1) if where else taken.new_empty(2, 0)
    labels = batch.input_ids[places[0], batch.split + places[1]]
    if not places.shape[1]:
        wanted, labels = [taken.new_tensor([at - 1])], taken.new_tensor([-100])
    inputs = {
        "input_ids": batch.input_ids.flatten()[taken][None],
        "attention_mask": Packed(tuple(parts), scored=torch.cat(wanted)).mask(model),
        "position_ids": positions.flatten(1)[:, taken][:, None],
        "shift_labels": labels[None],
        "pixel_values": torch.cat([pixels[row][i] for row, i in order]),
        "image_grid_thw": torch.stack([grids[row][i] for row, i in order]),
    }
    return PackedBatch(inputs, places)


def unpack(values: torch.Tensor, packed: PackedBatch, like: torch.Tensor) -> torch.Tensor:
    """Put scores (1, scored tokens) into a batch of the shape of `like`, whose values other tokens keep."""
    out = like.clone().to(values.dtype)
    if packed.where.shape[1]:
        out[packed.where[0], packed.where[1]] = values[0]
    return out


def _images_in_prompt(model: Any, batch: Batch, grids: list[torch.Tensor], row: int) -> int:
    """How many of a row's images come before its completion."""
    config = base_of(model).config
    tokens, count = int((batch.input_ids[row, : batch.split] == config.image_token_id).sum()), 0
    while tokens > 0:
        tokens -= int(grids[count].prod()) // config.vision_config.spatial_merge_size**2
        count += 1
    return count


def _images_of(batch: Batch) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]]]:
    """Patches and grids of each row's images."""
    patches = batch.pixel_values.split(batch.image_grid_thw.prod(-1).tolist())
    pixels, grids, at = [], [], 0
    for count in batch.num_images:
        pixels.append(list(patches[at : at + count]))
        grids.append(list(batch.image_grid_thw[at : at + count]))
        at += count
    return pixels, grids


def _positions(
    model: Any, batch: Batch, grids: list[list[torch.Tensor]], rows: list[int], image_id: int
) -> torch.Tensor:
    """M-RoPE positions (3, rows of the batch, columns); zero in rows that are not chosen."""
    chosen = batch.input_ids[rows]
    found, _ = base_of(model).get_rope_index(
        chosen,
        mm_token_type_ids=(chosen == image_id).int(),
        image_grid_thw=torch.stack([grid for row in rows for grid in grids[row]]),
        attention_mask=batch.attention_mask[rows],
    )
    positions: torch.Tensor = found.new_zeros(3, *batch.input_ids.shape)
    positions[:, rows] = found
    return positions

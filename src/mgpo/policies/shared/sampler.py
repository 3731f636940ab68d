"""Sampling with every prompt token computed once: rollouts share a prompt, and later turns reuse earlier ones' cache.

Sampling itself is `model.generate`, as on the plain path, so settings and distribution are the same; it only starts
from a filled key-value cache. Packed forwards (`mgpo.policies.shared.packed`) fill the cache: in the first turn over
the unique prompts, in later turns over what the environment added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from mgpo.policies.shared.linear import State, linear_layers
from mgpo.policies.shared.packed import Layers, Packed, Part, base_of, is_hybrid
from mgpo.policies.shared.ranks import Calls, alone
from mgpo.policies.tokens import TurnTokens


@dataclass(frozen=True)
class Kept:
    """The cached part of a conversation: its first tokens, its images, and what each layer keeps of them.

    A recurrent state cannot be cut back to fewer tokens, so with such layers the conversation is kept as it was before its
    last turn was sampled.
    """

    ids: list[int]
    images: list[Image.Image]
    layers: Layers


class _Recorder:
    """Takes the place of a cache during a packed forward: records keys and values, and returns them unchanged.

    Layers of linear attention leave the states at the end of each part in `ends`, by layer.
    """

    def __init__(self) -> None:
        self.keys: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.ends: dict[int, list[State]] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys[layer] = key[0], value[0]
        return key, value

    def of_part(self, number: int, part: Part, past: Layers | None) -> Layers:
        """What a part's conversation keeps, by layer: what it had before, and what the forward added."""
        if not self.keys and not self.ends:  # nothing was new in any part
            return past or []
        found: Layers = []
        for layer in sorted(self.keys.keys() | self.ends.keys()):
            if layer in self.ends:
                state = self.ends[layer][number]
                assert state.conv is not None and state.recurrent is not None
                found.append((state.conv, state.recurrent))
                continue
            own = tuple(one[:, part.start : part.stop] for one in self.keys[layer])
            before = past[layer] if past is not None else None
            key, value = own if before is None else (torch.cat([a, b], 1) for a, b in zip(before, own))
            found.append((key, value))
        return found

    def get_seq_length(self, *_: Any) -> int:
        return 0


class _WithRoom(DynamicLayer):
    """A layer of a cache with room for the tokens that will be sampled, so that it is not copied for each of them.

    Args:
        keys: (rows, heads, columns, size), of which the first `known` columns are filled.
        values: the same shape.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, known: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self._room = keys, values
        self.keys, self.values = keys[:, :, :known], values[:, :, :known]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Called by the layer: adds columns, and returns all."""
        known, new = self.get_seq_length(), key_states.shape[2]
        if known + new > self._room[0].shape[2]:
            return super().update(key_states, value_states, *args, **kwargs)
        for room, added in zip(self._room, (key_states, value_states)):
            room[:, :, known : known + new] = added
        self.keys, self.values = (room[:, :, : known + new] for room in self._room)
        return self.keys, self.values


class SharedSampler:
    """Samples turns for a batch of conversations and caches what it computed of them.

    Args:
        tokens: turns images of final size into pixel values and grids.
        pad_id: padding token of a batch.
        end_ids: tokens that end a turn.
        row_tokens: a packed forward takes at most about this many tokens, which bounds its memory.
        calls: how many forwards all processes make, given how many this one needs.
    """

    def __init__(
        self,
        tokens: TurnTokens,
        pad_id: int,
        end_ids: Sequence[int],
        row_tokens: int = 32_768,
        calls: Calls = alone,
    ) -> None:
        self.tokens, self.pad_id, self.end_ids, self.row_tokens = tokens, pad_id, set(end_ids), row_tokens
        self.calls = calls
        self._kept: list[Kept | None] = []
        self._whole = False

    def forget(self) -> None:
        """Drop the cache, because the weights have changed or the episodes are over."""
        self._kept = []

    @torch.no_grad()
    def speak(
        self,
        model: Any,
        ids: list[list[int]],
        images: list[list[Image.Image]],
        config: GenerationConfig,
        last: bool = False,
    ) -> list[list[int]]:
        """The model's next turn in each conversation.

        Args:
            ids: conversations as token ids; one that continues a conversation of the last call is recognised by its
                prefix.
            images: the images of their placeholders.
            config: how to sample.
            last: this is the last turn, so nothing is cached.

        Returns:
            New token ids of each, up to and including its end-of-turn token, if it sampled one.
        """
        self._whole = is_hybrid(model)
        positions, deltas = self._positions(model, ids, images)
        before = [self._known(i, row, images[i]) for i, row in enumerate(ids)]
        filled = self._fill_all(model, ids, images, before, positions)
        before.clear()
        self.forget()  # frees the padded cache of the previous turn before the next one is made
        if self._whole and not last:
            self._kept = [Kept(row[:-1], list(shown), layers) for row, shown, layers in zip(ids, images, filled)]
        said, layers = self._sample(model, ids, filled, deltas, config)
        if not (last or self._whole):
            self._keep(ids, images, said, layers)
        return said

    def _keep(
        self, ids: list[list[int]], images: list[list[Image.Image]], said: list[list[int]], layers: Layers
    ) -> None:
        """Cache each conversation except its last token, which was sampled but not yet computed."""
        width = max(map(len, ids))
        for i, (row, spoken, shown) in enumerate(zip(ids, said, images, strict=True)):
            computed = slice(width - len(row), width + len(spoken) - 1)
            self._kept.append(
                Kept(row + spoken[:-1], list(shown), [(k[i, :, computed], v[i, :, computed]) for k, v in layers])
            )

    def _known(self, i: int, ids: list[int], images: list[Image.Image]) -> Kept | None:
        """The cached part of a conversation, without its last token, because sampling begins there."""
        kept = self._kept[i] if i < len(self._kept) else None
        if kept is None:
            return None
        known = min(len(kept.ids), len(ids) - 1)
        same = len(kept.images) <= len(images) and all(a is b for a, b in zip(kept.images, images))
        if not same or kept.ids[:known] != ids[:known]:
            return None
        if self._whole:
            return kept if known == len(kept.ids) else None
        return Kept(ids[:known], kept.images, [(k[:, :known], v[:, :known]) for k, v in kept.layers])

    def _fill_all(
        self,
        model: Any,
        ids: list[list[int]],
        images: list[list[Image.Image]],
        before: list[Kept | None],
        positions: torch.Tensor,
    ) -> list[Layers]:
        """Keys and values of each conversation without its last token; equal conversations are computed once."""
        unique: dict[Any, list[int]] = {}
        for i, row in enumerate(ids):
            key = (tuple(row), tuple(map(id, images[i]))) if before[i] is None else i
            unique.setdefault(key, []).append(i)
        filled: list[Any] = [None] * len(ids)
        chunks = self._chunks(unique.values(), ids, before)
        shortest = min(range(len(ids)), key=lambda i: len(ids[i]))
        for number in range(self.calls(len(chunks))):
            chunk = chunks[number] if number < len(chunks) else []
            rows = [(ids[i], images[i], before[i], positions[:, i]) for i, *_ in chunk]
            shows_more = any(len(shown) > len(kept.images if kept else ()) for _, shown, kept, _ in rows)
            if self.calls is not alone and not shows_more:
                # Other processes run all layers and the tower: so does this one, on a conversation that has an image.
                rows.append((ids[shortest], images[shortest], None, positions[:, shortest]))
            for members, layers in zip(chunk, self._fill(model, rows)):
                for i in members:
                    filled[i] = layers
        return filled

    def _chunks(
        self, groups: Iterable[list[int]], ids: list[list[int]], before: list[Kept | None]
    ) -> list[list[list[int]]]:
        """Groups of equal conversations, split into chunks of at most `row_tokens` new tokens where possible."""
        chunks: list[list[list[int]]] = [[]]
        size = 0
        for members in groups:
            kept = before[members[0]]
            tokens = len(ids[members[0]]) - (len(kept.ids) if kept else 0)
            if chunks[-1] and size + tokens > self.row_tokens:
                chunks.append([])
                size = 0
            chunks[-1].append(members)
            size += tokens
        return chunks

    def _positions(
        self, model: Any, ids: list[list[int]], images: list[list[Image.Image]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """M-RoPE positions (3, rows, longest), padded right, and each row's next position minus its length."""
        base = base_of(model)
        width = max(map(len, ids))
        padded = torch.full((len(ids), width), self.pad_id)
        mask = torch.zeros_like(padded)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        positions, deltas = base.get_rope_index(
            padded,
            mm_token_type_ids=((padded == base.config.image_token_id) & mask.bool()).int(),
            image_grid_thw=torch.tensor([self.tokens.grid(image) for row in images for image in row]),
            attention_mask=mask,
        )
        return positions, deltas

    def _fill(
        self, model: Any, rows: list[tuple[list[int], list[Image.Image], Kept | None, torch.Tensor]]
    ) -> list[Layers]:
        """Keys and values of each conversation without its last token, in one packed forward over its new tokens."""
        new_ids: list[int] = []
        images: list[Image.Image] = []
        positions, parts, past = [], [], []
        for ids, shown, kept, position in rows:
            known = len(kept.ids) if kept else 0
            parts.append(Part(len(new_ids), len(new_ids) + len(ids) - 1 - known))
            new_ids += ids[known:-1]
            positions.append(position[:, known : len(ids) - 1])
            images += shown[len(kept.images) :] if kept else shown
            past.append(kept.layers if kept else None)
        recorder, device = _Recorder(), model.device
        vision = {name: value.to(device) for name, value in self.tokens.pixels(images).items()} if images else {}
        if new_ids:
            unscored = torch.tensor([len(new_ids) - 1], device=device)  # no state is wanted; kernels want at least one
            model(  # from the top, where FSDP gathers what belongs to no layer
                input_ids=torch.tensor([new_ids], device=device),
                position_ids=torch.cat(positions, 1)[:, None].to(device),
                attention_mask=Packed(tuple(parts), tuple(past), unscored).mask(model),
                past_key_values=recorder,
                use_cache=True,
                logits_to_keep=1,
                **vision,
            )
        return [recorder.of_part(i, part, layers) for i, (part, layers) in enumerate(zip(parts, past))]

    def _sample(
        self, model: Any, ids: list[list[int]], filled: list[Layers], deltas: torch.Tensor, config: GenerationConfig
    ) -> tuple[list[list[int]], Layers]:
        """Run `generate` on a filled cache; returns sampled ids, and keys and values (rows, heads, columns, size)."""
        width, device = max(map(len, ids)), model.device
        padded = torch.full((len(ids), width), self.pad_id)
        mask = torch.zeros_like(padded)
        for i, row in enumerate(ids):
            padded[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = 1
        cache = DynamicCache(config=model.config.get_text_config())
        recurrent = {layer.layer_idx for layer in linear_layers(model)}
        for layer, (k, _) in enumerate(filled[0]):
            if layer in recurrent:
                conv, state = (torch.cat([layers[layer][i] for layers in filled]) for i in (0, 1))
                cache.update_conv_state(conv, layer, conv_kernel_size=conv.shape[-1])
                cache.update_recurrent_state(state, layer)
                continue
            keys = k.new_zeros(len(ids), k.shape[0], width - 1 + (config.max_new_tokens or 0), k.shape[2])
            values = torch.zeros_like(keys)
            for i, layers in enumerate(filled):
                own = slice(width - len(ids[i]), width - 1)
                keys[i, :, own], values[i, :, own] = layers[layer]
            cache.layers[layer] = _WithRoom(keys, values, width - 1)
        filled.clear()
        base_of(model).rope_deltas = deltas.to(device)
        config = copy(config)
        config.return_dict_in_generate = True
        out = model.generate(
            input_ids=padded.to(device),
            attention_mask=mask.to(device),
            past_key_values=cache,
            generation_config=config,
        )
        said = [self._until_end(row) for row in out.sequences[:, width:].tolist()]
        kept = [] if recurrent else [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return said, kept

    def _until_end(self, ids: list[int]) -> list[int]:
        end = next((at for at, token in enumerate(ids) if token in self.end_ids), len(ids))
        return ids[: end + 1]

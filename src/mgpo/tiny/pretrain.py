"""Second stage of making `mgpo-tiny`: its language model, over the frozen eyes of the first stage.

    python -m mgpo.tiny.pretrain --pool /tmp/pool --eyes /tmp/eyes.safetensors --out /tmp/mgpo-tiny

Saying where something is in digits is what comes slowest: the token that a word names must be found, and its place
turned into numbers. So the hidden states at the image's tokens are asked, after the second layer, for the box of the
plate they lie on; and one attention head per circuit is shown where to look: at the words that name the sign, at the
sign, at the print, at the choice that matches. Without that, the routing does not form in an hour. The head that asks is
thrown away.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Qwen2_5_VLForConditionalGeneration

from mgpo.tiny.dense import Pool
from mgpo.tiny.dialogues import write_scene
from mgpo.tiny.model import HIDDEN, build, patches
from mgpo.tiny.optimizer import MuonAdamW
from mgpo.tiny.tokenizer import build_tokenizer, special_ids
from mgpo.tiny.writing import EDGE_PX, MARGIN_PX, Sequence, Writer

HELD_OUT = 256
WEIGHT = {
    "colour": 1.0,
    "place": 1.0,
    "direct": 0.4,
    "read": 0.6,
    "zoom": 0.6,
    "region": 0.8,
    "recall": 0.8,
    "single": 0.4,
}
"""Of each kind of dialogue in the loss (see `dialogues`)."""
KINDS = tuple(WEIGHT)
CIRCUIT_HEADS = {
    "NAME": (1, 0),
    "FIND": (2, 0),
    "SIGN": (2, 0),
    "PRINT": (2, 1),
    "TELL": (2, 2),
    "SAID": (1, 1),
    "LETTER": (1, 2),
    "CHOICE": (3, 1),
}
"""Layer and head that is shown where to look for each circuit (see `writing.Sequence`).

`FIND` has `SIGN`'s head and a loss of its own: most positions in a box can tell the sign by the coordinate just said, and a
common mean would teach that instead of finding what the words name.
"""
CIRCUITS = tuple(CIRCUIT_HEADS)
LOOK_WEIGHT = 1.0
DECISIVE = torch.tensor([CIRCUITS.index(name) for name in ("FIND", "PRINT", "TELL", "CHOICE")])
"""What is said right after these looks (a box's first digit, the value seen or counted, the answer's letter) has a loss of
its own: one token in eight or in twenty, it would be learned last."""
PLACE_LAYER = 1
"""Hidden states after this layer (from 0) are asked for places."""


def encode_pool(model: Qwen2_5_VLForConditionalGeneration, pool: Pool, file: Path) -> np.ndarray:
    """Features of all views, float16 (scenes, views, 36, HIDDEN), zero-padded; computed once per pair of eyes."""
    if not file.exists():
        from rich.progress import track

        views = pool.pixels.shape[1]
        unfinished = file.with_suffix(".part")
        features = np.lib.format.open_memmap(unfinished, "w+", np.float16, (len(pool), views, 36, HIDDEN))
        for first in track(range(0, len(pool), 16), description="encoding views"):
            indices = range(first, min(first + 16, len(pool)))
            images = [image for i in indices for image in pool.scene(i)[1]]
            pixel_values, grid = patches(images)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                tokens = model.model.visual(pixel_values, grid_thw=grid).pooler_output.float().numpy()
            ends = np.cumsum([(g[1] * g[2]).item() // 4 for g in grid])
            for number, (stop, start) in enumerate(zip(ends, [0, *ends[:-1]])):
                features[first + number // views, number % views, : stop - start] = tokens[start:stop]
        features.flush()
        unfinished.rename(file)
    return np.load(file, mmap_mode="r")


def positions(seq: Sequence, image_id: int, grids: list[tuple[int, int]]) -> np.ndarray:
    """M-RoPE positions (3, tokens) of a sequence; `grids` are (rows, columns) of its images' merged tokens."""
    ids = np.asarray(seq.ids)
    out, here, at, images = np.zeros((3, ids.size), np.int64), 0, 0, iter(grids)
    while at < ids.size:
        if ids[at] == image_id:
            rows, cols = next(images)
            r, c = np.divmod(np.arange(rows * cols), cols)
            out[:, at : at + rows * cols] = here + np.stack([np.zeros_like(r), r, c])
            at, here = at + rows * cols, here + max(rows, cols)
        else:
            out[:, at] = here
            at, here = at + 1, here + 1
    return out


class Dialogues(IterableDataset):
    """Endless batches: kind -> dict of arrays, for `scenes` random scenes at a time."""

    def __init__(
        self, pool_folder: Path, features: Path, scenes: int, seed: int, held_out: bool = False, opening: bool = True
    ) -> None:
        """`opening`: whether the first turn of `recall` is learned; else it is only read."""
        self.opening = opening
        self.pool_folder, self.features_file = pool_folder, features
        self.scenes, self.seed, self.held_out = scenes, seed, held_out

    def __iter__(self) -> Iterator[dict[str, dict[str, torch.Tensor]]]:
        if get_worker_info() is not None:  # the main process keeps its threads
            torch.set_num_threads(1)
        pool, features = Pool(self.pool_folder), np.load(self.features_file, mmap_mode="r")
        tokenizer = build_tokenizer()
        writer, rng = Writer(tokenizer), np.random.default_rng(self.seed)
        while True:
            low, high = (0, HELD_OUT) if self.held_out else (HELD_OUT, len(pool))
            rows: dict[str, list] = {kind: [] for kind in KINDS}
            for index in rng.integers(low, high, self.scenes):
                views, _, labels = pool.scene(int(index))
                for kind, seq in write_scene(writer, rng, views, labels).items():
                    if kind == "recall" and not self.opening:
                        seq.forget_before(seq.image_starts[1])
                    rows[kind].append((int(index), seq, views, labels))
            yield {kind: self._collate(batch, features, writer) for kind, batch in rows.items() if batch}

    def _collate(self, batch: list, features: np.ndarray, writer: Writer) -> dict[str, torch.Tensor]:
        longest = max(len(seq.ids) for _, seq, _, _ in batch)
        ids = np.zeros((len(batch), longest), np.int64)
        learned = np.zeros((len(batch), longest), bool)
        place = np.zeros((3, len(batch), longest), np.int64)
        vision, boxes, looks = [], [], []
        for row, (index, seq, views, labels) in enumerate(batch):
            n = len(seq.ids)
            ids[row, :n], learned[row, :n] = seq.ids, seq.learned
            grids = [(views[v].size[1] // 28, views[v].size[0] // 28) for v in seq.views]
            place[:, row, :n] = positions(seq, writer.image[1], grids)
            looks += [
                (CIRCUITS.index(circuit), row, at, target)
                for circuit, first, last, targets in seq.looks
                for at in range(first, last + 1)
                for target in targets
            ]
            for v in seq.views:
                count = labels[v].colour.size
                vision.append(features[index, v, :count])
                box = labels[v].box.copy()
                on = box[:, 0] >= 0
                limit = np.array([*views[v].size, *views[v].size]) - EDGE_PX
                box[on] = np.clip(box[on] + [-MARGIN_PX, -MARGIN_PX, MARGIN_PX, MARGIN_PX], EDGE_PX, limit)
                boxes.append(box if v == 0 else np.full_like(box, -1))
        return {
            "ids": torch.from_numpy(ids),
            "learned": torch.from_numpy(learned),
            "positions": torch.from_numpy(place),
            "vision": torch.from_numpy(np.concatenate(vision)).float(),
            "boxes": torch.from_numpy(np.concatenate(boxes)),
            "looks": torch.tensor(looks, dtype=torch.long).reshape(-1, 4),
        }


def look_loss(attentions: tuple[torch.Tensor, ...], looks: torch.Tensor) -> torch.Tensor:
    """How little the circuits' heads look where they should: mean of -log(attention mass on the targets).

    Args:
        attentions: per layer (N, heads, tokens, tokens).
        looks: rows of (circuit, sequence, position that looks, position to look at).
    """
    loss = attentions[0].new_zeros((), dtype=torch.float32)
    for number, circuit in enumerate(CIRCUITS):
        rows = looks[looks[:, 0] == number]
        if not len(rows):
            continue
        layer, head = CIRCUIT_HEADS[circuit]
        mass = attentions[layer][rows[:, 1], head, rows[:, 2], rows[:, 3]].float()
        _, group = torch.unique(rows[:, 1] * 100_000 + rows[:, 2], return_inverse=True)
        total = mass.new_zeros(int(group.max()) + 1).index_add(0, group, mass)
        loss = loss - (total + 1e-4).log().mean()
    return loss


class Places(nn.Module):
    """Asks hidden states (N, HIDDEN) for four coordinates of three digits each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.digits = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 4 * 3 * 10)

    def loss(self, hidden: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the digits of `boxes` (N, 4); rows below 0 show no plate."""
        on = boxes[:, 0] >= 0
        digits = torch.stack([boxes[on] // 100, boxes[on] // 10 % 10, boxes[on] % 10], -1)
        return F.cross_entropy(self.digits(self.norm(hidden[on].float())).view(-1, 10), digits.reshape(-1))


def step_loss(
    model: Qwen2_5_VLForConditionalGeneration, places: Places, kind: str, batch: dict[str, torch.Tensor], image_id: int
) -> tuple[torch.Tensor, float]:
    """Loss of one kind of dialogue and the share of learned tokens that would be said right."""
    ids, learned = batch["ids"], batch["learned"]
    embeds = model.get_input_embeddings()(ids)
    at_image = ids == image_id
    embeds = embeds.masked_scatter(at_image.unsqueeze(-1), batch["vision"].to(embeds.dtype))
    kept: list[torch.Tensor] = []
    hook = model.model.language_model.layers[PLACE_LAYER].register_forward_hook(lambda *a: kept.append(a[2]))
    out = model.model.language_model(
        inputs_embeds=embeds, position_ids=batch["positions"], use_cache=False, output_attentions=True
    )
    hidden = out.last_hidden_state
    hook.remove()
    logits = model.lm_head(hidden[:, :-1][learned[:, 1:]]).float()
    target = ids[:, 1:][learned[:, 1:]]
    loss = WEIGHT[kind] * F.cross_entropy(logits, target) + LOOK_WEIGHT * look_loss(out.attentions, batch["looks"])
    decisive = batch["looks"][torch.isin(batch["looks"][:, 0], DECISIVE)][:, 1:3].unique(dim=0)
    if len(decisive):
        row, at = decisive.T
        loss = loss + F.cross_entropy(model.lm_head(hidden[row, at]).float(), ids[row, at + 1])
    if kind in ("colour", "place"):
        middle = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        loss = loss + 0.5 * places.loss(middle[at_image], batch["boxes"])
    return loss, (logits.argmax(-1) == target).float().mean().item()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--eyes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, help="dialogues to train on; boxes are the slowest to learn"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--init", type=Path, help="start from the language model of an earlier run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--read-openings", action="store_true", help="do not train on the first turn of `recall`")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    names = special_ids(tokenizer)
    model, places = build(names), Places()
    if args.init:
        model.load_state_dict(
            Qwen2_5_VLForConditionalGeneration.from_pretrained(args.init, use_safetensors=True).state_dict()
        )
    model.set_attn_implementation("eager")
    for layer in model.model.language_model.layers:
        for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            part.compile(dynamic=True)
    model.model.visual.load_state_dict(load_file(args.eyes))
    model.model.visual.requires_grad_(False)
    features = args.pool / f"features_{hashlib.sha256(args.eyes.read_bytes()).hexdigest()[:12]}.npy"
    encode_pool(model, Pool(args.pool), features)
    language = model.model.language_model
    outside = [*language.embed_tokens.parameters(), *language.norm.parameters(), *places.parameters()]
    optimizer = MuonAdamW(language.layers, outside, args.lr)
    held_out = next(iter(Dialogues(args.pool, features, 128, 7, held_out=True)))
    dialogues = Dialogues(args.pool, features, args.scenes, args.seed, opening=not args.read_openings)
    batches = DataLoader(dialogues, batch_size=None, num_workers=1)
    started = time.time()
    image_id = names["<|image_pad|>"]
    for step, batch in zip(range(args.steps + 1), batches):
        if step % 50 == 0 or step == args.steps:
            with torch.no_grad():
                shares = {kind: step_loss(model, places, kind, rows, image_id)[1] for kind, rows in held_out.items()}
            scores = " ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
            print(f"held out at {step}: {scores} {time.time() - started:.0f}s", flush=True)
            args.out.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(args.out)
        losses = []
        for kind, rows in batch.items():
            if kind not in args.kinds:
                continue
            with torch.autocast("cpu", torch.bfloat16):
                loss, share = step_loss(model, places, kind, rows, image_id)
            loss.backward()
            losses.append(f"{kind} {loss.item():.3f}/{share:.2f}")
        optimizer.step(step, args.steps)
        if step % 25 == 0:
            print(f"{step} {' '.join(losses)} {time.time() - started:.0f}s", flush=True)


if __name__ == "__main__":
    main()

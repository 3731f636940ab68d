"""First stage of making `mgpo-tiny`: its eyes, taught densely.

    python -m mgpo.tiny.dense --pool /tmp/pool --out /tmp/eyes.safetensors

Learning to see from answers alone stays at chance for tens of thousands of samples at this size. Here every merged
vision token is told what it shows: the colour of the plate under it, what is printed if the print's centre lies in it
(crops only: in an overview nobody can read it), where the plate's edges are, and of which plate it is a neighbour.
The heads that ask are thrown away.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from mgpo.tiny.charts import SIZE, rolled
from mgpo.tiny.labels import NEIGHBOURS, NO_COLOUR, NO_PRINT, PRINTS, SKIP, Labels, labels_of
from mgpo.tiny.model import HIDDEN, build, patches
from mgpo.tiny.optimizer import MuonAdamW
from mgpo.tiny.views import View, view_pixels, views_of

COUNTS = [number for number, (kind, _) in enumerate(PRINTS) if kind == "dots"]


class Heads(nn.Module):
    """Questions to the merged tokens, (T, HIDDEN) -> logits or edges."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.colour = nn.Linear(HIDDEN, NO_COLOUR + 1)
        self.print = nn.Linear(HIDDEN, NO_PRINT + 1)
        self.edges = nn.Linear(HIDDEN, 4)
        self.neighbours = nn.Linear(HIDDEN, NEIGHBOURS)

    def losses(self, tokens: torch.Tensor, labels: list[Labels]) -> tuple[torch.Tensor, dict[str, float]]:
        """Sum of the four losses, and the share of right colours and prints."""
        x = self.norm(tokens.float())
        colour = torch.from_numpy(np.concatenate([row.colour for row in labels]))
        prints = torch.from_numpy(np.concatenate([row.print for row in labels]))
        edges = torch.from_numpy(np.concatenate([row.edges for row in labels])).float()
        near = torch.from_numpy(np.concatenate([row.neighbours for row in labels])).float()
        colour_logits, print_logits = self.colour(x), self.print(x)
        weight = torch.ones(NO_PRINT + 1)
        weight[NO_PRINT] = 0.03
        weight[COUNTS] = 2.5  # counting comes slowest
        on_plate, related = ~edges[:, 0].isnan(), ~near[:, 0].isnan()
        loss = (
            F.cross_entropy(colour_logits, colour, ignore_index=SKIP)
            + 2 * F.cross_entropy(print_logits, prints, weight, ignore_index=SKIP)
            + F.smooth_l1_loss(self.edges(x)[on_plate], edges[on_plate], beta=0.1)
            + F.binary_cross_entropy_with_logits(
                self.neighbours(x)[related], near[related], pos_weight=torch.tensor(8.0)
            )
        )
        printed = (prints != SKIP) & (prints != NO_PRINT)
        related_yes = near[related] > 0
        return loss, {
            "colour": (colour_logits.argmax(-1) == colour)[colour != SKIP].float().mean().item(),
            "print": (print_logits.argmax(-1) == prints)[printed].float().mean().item(),
            "dots": (print_logits.argmax(-1) == prints)[torch.isin(prints, torch.tensor(COUNTS))].float().mean().item(),
            "edges_px": 28 * (self.edges(x)[on_plate] - edges[on_plate]).abs().mean().item(),
            "neighbour": (self.neighbours(x)[related] > 0)[related_yes].float().mean().item(),
        }


class Pool:
    """Views and labels by scene index, labels computed once."""

    def __init__(self, folder: Path) -> None:
        self.pixels = np.load(folder / "views.npy", mmap_mode="r")
        self.charts = np.load(folder / "charts.npy", mmap_mode="r")
        self.chart_prints = np.load(folder / "chart_prints.npy")
        self.cache: dict[int, tuple[list[View], list[Labels]]] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def scene(self, index: int) -> tuple[list[View], list[np.ndarray], list[Labels]]:
        """All views of a scene (overview first), their pixels and their labels."""
        if index not in self.cache:
            views = views_of(index)
            self.cache[index] = (views, [labels_of(v, i == 0) for i, v in enumerate(views)])
        views, labels = self.cache[index]
        return views, [view_pixels(row, v.size) for row, v in zip(self.pixels[index], views)], labels

    def chart(self, index: int, shift: tuple[int, int]) -> tuple[np.ndarray, Labels]:
        """Pixels and labels of an eye chart, moved by `shift`."""
        return rolled(self.charts[index], self.chart_prints[index], shift)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scenes", type=int, default=14, help="scenes per step; each gives four views")
    parser.add_argument("--charts", type=int, default=12, help="eye charts per step")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--init", type=Path, help="start from the eyes of an earlier run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    pool = Pool(args.pool)
    names = ("<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    model = build({name: i for i, name in enumerate(names)})
    model.set_attn_implementation("eager")  # faster than SDPA's backward for images this small
    eyes, heads = model.model.visual, Heads()
    for part in [eyes.merger, *(p for block in eyes.blocks for p in (block.mlp, block.norm1, block.norm2))]:
        part.compile(dynamic=True)  # at this size much of a step is elementwise kernels
    if args.init:
        eyes.load_state_dict(load_file(args.init))
    optimizer = MuonAdamW(eyes, heads.parameters(), args.lr)
    started, held_out = time.time(), 256
    for step in range(args.steps + 1):
        last = step == args.steps
        chosen = range(held_out) if last else rng.integers(held_out, len(pool), args.scenes)
        scenes = [pool.scene(int(i)) for i in chosen]
        images = [image for _, drawn, _ in scenes for image in drawn]
        labels = [label for *_, rows in scenes for label in rows]
        if not last:
            moves = rng.integers(0, SIZE, (args.charts, 2))
            picked = rng.integers(0, len(pool.charts), args.charts)
            charts = [pool.chart(int(i), (int(x), int(y))) for i, (x, y) in zip(picked, moves)]
            images += [pixels for pixels, _ in charts]
            labels += [label for _, label in charts]
        pixel_values, grid = patches(images)
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(not last):
            tokens = eyes(pixel_values, grid_thw=grid).pooler_output
        loss, shares = heads.losses(tokens, labels)
        if not last:
            loss.backward()
            optimizer.step(step, args.steps)
        if step % 25 == 0 or last:
            scores = " ".join(f"{k} {v:.3f}" for k, v in shares.items())
            print(
                f"{'held out' if last else step} loss {loss.item():.3f} {scores} {time.time() - started:.0f}s",
                flush=True,
            )
        if step % 250 == 0 or last:
            save_file({k: v.contiguous() for k, v in eyes.state_dict().items()}, args.out)
    if not math.isfinite(loss.item()):
        raise SystemExit(f"The last loss is {loss.item()}, which is not finite. Train again with a lower --lr.")


if __name__ == "__main__":
    main()

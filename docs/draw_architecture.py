"""Draws docs/architecture.png from the import contract in pyproject.toml.

python docs/draw_architecture.py
"""

import tomllib
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

ROOT = Path(__file__).parent.parent
COLOUR = {"method": "#f2b880"}
PLAIN = "#dbe5f1"


def main() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(c["layers"] for c in contracts if c["type"] == "layers")
    floors = [[room.strip() for room in floor.split("|")] for floor in floors if floor != "__main__"]
    figure, axes = plt.subplots(figsize=(8, 0.62 * len(floors) + 0.4))
    for height, rooms in enumerate(reversed(floors)):
        width = 10 / len(rooms)
        for place, room in enumerate(rooms):
            left = place * width + 0.08
            axes.add_patch(plt.Rectangle((left, height + 0.1), width - 0.16, 0.8, color=COLOUR.get(room, PLAIN)))
            axes.text(left + width / 2 - 0.08, height + 0.5, room, ha="center", va="center", family="monospace")
    axes.annotate("", (10.45, 0.1), (10.45, len(floors) - 0.1), arrowprops={"arrowstyle": "->", "lw": 1.5})
    axes.text(10.65, len(floors) / 2, "imports", rotation=270, va="center")
    axes.set_xlim(0, 11)
    axes.set_ylim(0, len(floors))
    axes.axis("off")
    figure.savefig(ROOT / "docs" / "architecture.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()

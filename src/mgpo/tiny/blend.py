"""A weighted mean of two language models of `mgpo-tiny` that share their beginning.

    python -m mgpo.tiny.blend --one /tmp/plain --other /tmp/all --share 0.12 --out /tmp/blend

`--one` was trained last without MGPO's first turns: what it learned of plain grounding carries over into MGPO's opening, where it
boxes the named sign in seven of ten turns. `--other` was trained last on all eight kinds of dialogue: in MGPO's opening it
boxes some sign, the named one no more often than chance. A mean of their weights lies in between.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import Qwen2_5_VLForConditionalGeneration


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", type=Path, required=True)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--share", type=float, required=True, help="weight of --other in the mean, from 0 to 1")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    one, other = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, use_safetensors=True)
        for folder in (args.one, args.other)
    )
    first = one.state_dict()
    other.load_state_dict({name: first[name].lerp(weight, args.share) for name, weight in other.state_dict().items()})
    other.save_pretrained(args.out)


if __name__ == "__main__":
    main()

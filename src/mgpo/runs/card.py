"""The `README.md` of a trained model: its base, its training, and how to ask it. TRL's card describes a text model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgpo.files import write_whole
from mgpo.method.methods import SFT
from mgpo.policies.names import resolve
from mgpo.policies.shipped import SHIPPED

_CARD = """---
base_model: {base}
library_name: transformers
pipeline_tag: image-text-to-text
tags: [mgpo, grpo, trl]
---
# {name}

Trained from `{base}` by {way}, with [mgpo](https://arxiv.org/abs/2507.05920).{reward} The
settings are in `config.yaml`, what was measured in `metrics.jsonl`.

```python
from mgpo import GroundedVQA

found = GroundedVQA.from_pretrained("{name}").ask("photo.jpg", "Which number is on the bus?", choices=["14", "41"])
print(found.answer, found.box_px_original)
```
"""
WAYS = {
    "mgpo": "MGPO: it names the region that it needs to see, gets it back from the original pixels, and then answers",
    "grpo": "single-turn GRPO: it names a region and answers in one turn",
    "direct": "single-turn GRPO: it answers from the image as it is shown",
    "sft": "supervised training on short answers",
}


REWARD = " The only reward is whether the answer is right."


def model_card(name: str, base: str, method: str, rewards: Sequence[str] = ()) -> str:
    """The card's text.

    Args:
        name: name of the new model, a folder or hub id.
        base: the model that training started from.
        method: `mgpo`, `grpo`, `direct` or `sft`.
        rewards: names of rewards besides that for the right answer.
    """
    reward = "" if method == SFT else REWARD if not rewards else f" Rewards: the right answer; {', '.join(rewards)}."
    return _CARD.format(name=name, base=base, way=WAYS[method], reward=reward)


def write_card(trainer: Any) -> None:
    """Write the `README.md` of a trainer's run folder."""
    base = trainer.accelerator.unwrap_model(trainer.model).config._name_or_path
    base = next((shipped for shipped in SHIPPED if base == resolve(shipped)), base)
    folder, method = Path(trainer.args.output_dir), getattr(trainer.args, "method", SFT)
    rewards = getattr(trainer.args, "extra_reward_funcs", ())
    write_whole(folder / "README.md", model_card(trainer.hub_model_id or str(folder), base, method, rewards))

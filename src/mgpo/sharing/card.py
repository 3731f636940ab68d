"""The card of a model on the hub: that of its run folder under its new name, with results, one episode and the recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from mgpo.policies.names import may_be_hub_id
from mgpo.runs.card import model_card
from mgpo.sharing.results import Evaluation, metadata, table

PICTURE = "episode.jpg"
_TRAINED_HERE = re.compile(r'(^# |from_pretrained\(")[/~.][^\n"]*(\n|"\))', re.MULTILINE)
"""A folder of this machine as a card's title or in its code."""
_RESULTS, _EPISODE, _RECIPE = "## Results", "## An episode", "## How it was trained"


def hub_card(
    run: Path, hub_id: str, settings: dict[str, Any], evaluations: Sequence[Evaluation], caption: str | None
) -> str:
    """The text of `README.md` on the hub.

    Args:
        run: the run folder. What its author has written into its `README.md` is kept.
        hub_id: the model's name from now on.
        settings: the run's settings.
        evaluations: see `mgpo.sharing.results`.
        caption: sentences below the picture of an episode; None without a picture.
    """
    base, file = str(settings.get("model_name_or_path", "")), run / "README.md"
    if file.is_file():
        text = file.read_text(encoding="utf-8")
    else:
        text = model_card(hub_id, base, settings.get("method", "mgpo"), settings.get("extra_reward_funcs") or ())
    for name in {str(settings.get("output_dir")), str(run)}:
        text = text.replace(f"# {name}\n", f"# {hub_id}\n").replace(
            f'from_pretrained("{name}")', f'from_pretrained("{hub_id}")'
        )
    if (run / "adapter_config.json").is_file():  # adapters are merged into their base from a folder
        text = text.replace(f'from_pretrained("{hub_id}")', f'from_pretrained(snapshot_download("{hub_id}"))')
        text = text.replace(
            "```python\nfrom mgpo", "```python\nfrom huggingface_hub import snapshot_download\nfrom mgpo"
        )
    card = ModelCard(text, ignore_metadata_errors=True)
    base = base or str(card.data.base_model or "")  # a run that was trained from Python names it in its card alone
    if not is_hub_id(base):  # the hub looks for a base model of its own
        card.data.base_model = None
        card.text = card.text.replace(f"`{base}`", f"`{Path(base).name}`")
    card.text = _TRAINED_HERE.sub(lambda found: f"{found[1]}{hub_id}{found[2]}", card.text)
    if evaluations:
        card.data.model_name, card.data.eval_results = hub_id.split("/")[1], metadata(evaluations)
    parts = [card.text.rstrip()]
    if evaluations and _RESULTS not in card.text:
        parts.append(f"{_RESULTS}\n\n{table(evaluations)}\n\n{_ABOUT_RESULTS}")
    if caption is not None and _EPISODE not in card.text:
        parts.append(f"{_EPISODE}\n\n![A question, where the model looked, and its answer]({PICTURE})\n\n{caption}")
    if settings.get("dataset_name") and _RECIPE not in card.text:
        parts.append(f"{_RECIPE}\n\n{_recipe(without_places(settings))}")
    card.text = "\n\n".join(parts) + "\n"
    return str(card)


_ABOUT_RESULTS = (
    "In percent, decoded greedily, by `mgpo eval`; 95 %: Wilson's interval of the right answers. A box is valid if it could be cropped, and hits if "
    "the centre of a gold box lies in it (of all questions with gold boxes), in the turn that `boxes` in the files of `results/` names, which hold all figures."
)


def is_hub_id(base: str) -> bool:
    """Whether a base model's name is one of the hub, and no folder of this machine."""
    return may_be_hub_id(base) and not Path(base).exists()


def without_places(value: Any) -> Any:
    """Settings in which a path of this machine is its last name: folders tell who trained where, and servers by which network."""
    if isinstance(value, str) and "\n" not in value and _is_place(value):
        return Path(value).name
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items() if not str(key).startswith("vllm_server_")}
    return [without_places(inner) for inner in value] if isinstance(value, list) else value


def _is_place(value: str) -> bool:
    absolute = value.startswith(("/", "~/")) and value.count("/") > 1
    return absolute or value.startswith(("./", "../")) or "/" in value and len(value) < 4096 and Path(value).exists()


def _recipe(settings: dict[str, Any]) -> str:
    shown = (
        "method",
        "dataset_name",
        "max_steps",
        "learning_rate",
        "num_generations",
        "max_turns",
        "max_pixels",
        "seed",
    )
    rows = [f"| `{key}` | {settings[key]} |" for key in shown if settings.get(key) is not None]
    recipe = "`mgpo train --config config.yaml` trains by the same settings; `environment.json` has the versions."
    return "\n".join([recipe, "", "| setting | value |", "|---|---|", *rows])

"""`mgpo recipes`: the shipped recipes, one line each, from what they set."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.table import Column, Table

TITLES = {"mgpo": "MGPO", "grpo": "GRPO, box and answer", "direct": "GRPO, answer alone", "sft": "SFT on the answer"}
_GPUS = re.compile(r"^# (?:GPUs: |Written by: .*--gpus )(\d+)x([\d.]+)", re.MULTILINE)


def recipes() -> None:
    """List the shipped recipes. Any of them is found by its name: mgpo train --config tiny_mgpo, mgpo validate tiny_mgpo."""
    import yaml

    from mgpo.recipes import FOLDER, names

    console = Console(highlight=False)
    recipe = Column("recipe", no_wrap=True, min_width=max(map(len, names())))  # a name that is cut cannot be copied
    narrow = console.width < 110  # without the model, which the recipe's name tells too, lines are whole
    model = [] if narrow else ["model"]
    table = Table(
        recipe, *model, "what it does", "GPUs", box=None, padding=(0, 1 if narrow else 2, 0, 0), header_style="bold"
    )
    for name in names():
        text = (FOLDER / f"{name}.yaml").read_text()
        held = yaml.safe_load(text)
        model = [] if narrow else [held["model_name_or_path"].rpartition("/")[2]]
        table.add_row(name, *model, _what(held), _needs(text, held))
    console.print(table)
    console.print("\nmgpo validate NAME says what a recipe needs; mgpo recipe writes one that fits your GPUs.")


def _what(held: dict[str, Any]) -> str:
    weights = (
        "4-bit LoRA"
        if held.get("load_in_4bit")
        else "LoRA"
        if held.get("use_peft")
        else ""
        if held.get("use_cpu")
        else "all weights"
    )
    engine = ""
    if held.get("use_vllm"):
        engine = "vLLM server" if held.get("vllm_mode") == "server" else "vLLM"
    unit = 32 if "Qwen3" in held["model_name_or_path"] else 28
    budget = f"{held['max_pixels'] // unit**2} visual tokens" if "max_pixels" in held else ""
    return ", ".join(filter(None, [TITLES[held.get("method", "mgpo")], weights, engine, budget]))


def _needs(text: str, held: dict[str, Any]) -> str:
    if held.get("use_cpu"):
        return "none"
    found = _GPUS.search(text)
    return f"{found[1]} x {found[2]} GB" if found else ""

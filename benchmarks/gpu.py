"""Figures of a training step on one GPU: Qwen2.5-VL's shapes with random weights in bfloat16, shared prompts against TRL's stock path.

    python -m benchmarks.gpu --out gpu.json

takes at most `--minutes` (8.5 by default, on an H100 for all cases) and needs nothing to be downloaded: weights are random, and tokenizer and
processor are those of `mgpo-tiny`, so texts are longer than Qwen's own (about 850 tokens of a prompt). Every measurement is written as soon as it
exists. Each case runs in a process of its own, so that an error or too little memory ends that case only; what does not fit
into the time is listed as skipped.

Per case (model x visual tokens of the overview; a question with 8 rollouts): seconds of rollout and update, peak memory, tokens sampled per
second, model FLOPs utilisation of the update, and by how much the log-probabilities of each path in bfloat16 differ from TRL's own in
float32. The optimizer is plain SGD, which keeps no state: a step of 7B then fits 80 GB. 7B trains with gradient checkpointing on both paths;
what it computes again does not count as utilisation.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from trl import GRPOTrainer

from benchmarks.machines import PEAK
from benchmarks.phases import Seconds, matmul_rate, needed, now
from benchmarks.workload import ROLLOUTS, Shape, begin_step, make_rows, make_trainer, set_boxes
from mgpo.images.imaging import PixelBudget
from mgpo.policies.loading import load_model
from mgpo.policies.shipped import TINY


@dataclass(frozen=True)
class Case:
    """One model at one size of overviews.

    Attributes:
        model: its name in `MODELS`.
        visual: largest number of visual tokens of an image.
        pairs: measured steps, after one that warms up.
    """

    model: str
    visual: int
    pairs: int = 2


MODELS = {
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
           "num_key_value_heads": 2},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4},
}  # fmt: skip
"""The language halves, from the config.json files of Qwen/Qwen2.5-VL-3B-Instruct and 7B-Instruct."""
VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}  # fmt: skip
VOCABULARY = 151_936
CASES = (Case("3B", 640), Case("3B", 1280), Case("7B", 1280), Case("7B", 640))
CHECKPOINTED = {"7B"}


def build(name: str, device: str) -> Any:
    """A model of random weights in bfloat16, made on the device."""
    if name == "tiny":
        return load_model(TINY, "bfloat16", device)
    tiny = load_model(TINY, "float32", "cpu")
    config = tiny.config.to_dict()
    layers = MODELS[name]["num_hidden_layers"]
    config["text_config"] |= MODELS[name] | {
        "vocab_size": VOCABULARY, "max_position_embeddings": 32_768, "layer_types": ["full_attention"] * layers,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    config["vision_config"] |= VISION | {"out_hidden_size": MODELS[name]["hidden_size"]}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config = tiny.generation_config
    model.config._name_or_path = "random"
    return model


def trainer_of(case: Case, shared: bool, rows: list, shape: Shape, folder: Path, device: str) -> Any:
    changes = {
        "use_cpu": device == "cpu", "bf16": False, "allow_low_precision_weights": True, "optim": "sgd",
        "gradient_checkpointing": case.model in CHECKPOINTED, "max_grounding_tokens": 64, "max_answer_tokens": 32,
    }  # fmt: skip
    if case.model == "tiny":
        changes |= {"max_grounding_tokens": 6, "max_answer_tokens": 6}
    trainer = make_trainer(shape, rows, shared, folder, build(case.model, device), **changes)
    if case.model in CHECKPOINTED:  # `Trainer.train` would do so
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    return trainer


def step(trainer: Any, rows: list, spent: Seconds, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """One step: what it took, and its rollouts."""
    device = trainer.model.device
    begin_step(trainer, seed)
    spent.clear()
    forget_peak(device)
    with set_boxes(seed):
        start = now(device)
        inputs = trainer._prepare_inputs(rows)
        rollout = now(device) - start
    rollout_peak = peak(device)
    forget_peak(device)
    start = now(device)
    spent.update(trainer, inputs)
    update = now(device) - start
    said = float((inputs["completion_mask"] * inputs["tool_mask"]).sum())
    found = {"rollout_s": rollout, "update_s": update, "step_s": rollout + update, "sampled_tokens": said}
    return found | {"rollout_peak_gb": rollout_peak, "update_peak_gb": peak(device)} | spent.spent, inputs


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float:
    """Most memory that was allocated since `forget_peak`, in GB, weights included; 0 where nothing counts it."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0


def path_of(case: Case, shared: bool, folder: Path, device: str) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Medians of a path's steps, its trainer, and the last rollouts."""
    least = 20 if case.model == "tiny" else 256
    shape = Shape(case.model, PixelBudget(least * 784, case.visual * 784), (2048, 1536), 1, frozen=True)
    rows = make_rows(shape, folder)
    trainer = trainer_of(case, shared, rows, shape, folder / str(shared), device)
    spent = Seconds(trainer)
    steps, inputs = [], {}
    for seed in range(case.pairs + 1):
        found, inputs = step(trainer, rows, spent, seed)
        steps.append(found)
    made = {name: statistics.median(one[name] for one in steps[1:]) for name in steps[0]}
    made |= {"prompt_tokens": int(inputs["prompt_mask"][0].sum()), "own_tokens": int(inputs["completion_mask"].sum())}
    operations = needed(trainer, inputs, frozen=True)
    update = (operations["update_forward"] + operations["update_backward"]) / made["update_s"]
    rate = matmul_rate(trainer.model.config, torch.bfloat16, device)
    made |= {"update_tflops": update / 1e12, "matmul_tflops": rate / 1e12, "update_share_of_matmul": update / rate}
    if (limit := peak_operations(device)) is not None:
        made["update_utilisation"] = update / limit
    if shared:
        made["sampled_tokens_per_s"] = made["sampled_tokens"] / made["sampling"]
    return made, trainer, inputs


def peak_operations(device: str) -> float | None:
    """The GPU's bfloat16 operations per second by its data sheet; None for one that `PEAK` does not list."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((limit for part, limit in PEAK if part in name), None)


@torch.no_grad()
def equality(trainer: Any, inputs: dict[str, Any]) -> dict[str, float]:
    """Differences of log-probabilities of sampled tokens to TRL's own path in float32; ends with a float32 model."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    learned = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    names = ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images")
    given = {name: inputs[name] for name in names if name in inputs}
    stock = super(type(trainer), trainer)._get_per_token_logps_and_entropies
    assert isinstance(trainer, GRPOTrainer)

    def scores(path: Callable) -> torch.Tensor:
        with torch.autocast(trainer.model.device.type, enabled=False):
            return path(trainer.model, ids, mask, learned.shape[1], batch_size=4, **given)[0][learned].float()

    ours, theirs = scores(trainer.sharing.log_probs), scores(stock)
    trainer.model.float()
    exact = scores(stock)
    found = {}
    for name, values in (("shared", ours), ("stock", theirs)):
        error = (values - exact).abs()
        found |= {f"{name}_mean_error": error.mean().item(), f"{name}_max_error": error.max().item()}
    return found


class Results:
    """What was measured so far, in a file that is whole at any time."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, **row: Any) -> None:
        kept = json.loads(self.file.read_text()) if self.file.exists() else []
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps([*kept, row], indent=1) + "\n")
        part.replace(self.file)


def run_case(case: Case, out: Path, device: str) -> None:
    """All measurements of a case, in this order: shared, how exact both are, stock, and the ratios."""
    results, made = Results(out), {}
    label = {"model": case.model, "visual_tokens": case.visual}
    for path in ("shared", "stock"):
        try:
            with tempfile.TemporaryDirectory() as name:
                made[path], trainer, inputs = path_of(case, path == "shared", Path(name), device)
                results.add(**label, path=path, **made[path])
                if path == "shared":
                    results.add(**label, path="equality", **equality(trainer, inputs))
        except torch.OutOfMemoryError as error:
            results.add(**label, path=path, error=str(error).split(". ")[0])
        trainer = inputs = None
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    if len(made) == 2:
        ours, stock = made["shared"], made["stock"]
        ratios = {f"{name}_ratio": stock[f"{name}_s"] / ours[f"{name}_s"] for name in ("step", "rollout", "update")}
        if device == "cuda":
            ratios["update_memory_ratio"] = ours["update_peak_gb"] / stock["update_peak_gb"]
        results.add(**label, path="stock / shared", **ratios)


def main(cases: tuple[Case, ...] = CASES, arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=8.5, help="no measurement goes on for longer than this")
    args = parser.parse_args(arguments)
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.unlink(missing_ok=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    Results(args.out).add(device=name, torch=torch.__version__, rollouts=ROLLOUTS)
    for case in cases:
        left = 60 * args.minutes - (time.monotonic() - began)
        label = {"model": case.model, "visual_tokens": case.visual}
        if left <= 0:
            Results(args.out).add(**label, error="skipped: the time is used up")
            continue
        process = get_context("spawn").Process(target=run_case, args=(case, args.out, device))
        process.start()
        process.join(left)
        if process.is_alive():
            process.kill()
            process.join()
            Results(args.out).add(**label, error="stopped: the time is used up")
        elif process.exitcode:
            Results(args.out).add(**label, error=f"the process ended with {process.exitcode}")
        process.close()
    print(args.out.read_text())


if __name__ == "__main__":
    main()

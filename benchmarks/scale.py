"""Says what a training run takes on a cluster: seconds of a step by phase, the bottleneck, memory, and GPU hours, with all that is assumed.

    python -m benchmarks.scale                                                           # the paper's run on 4 x 8 H100
    python -m benchmarks.scale --recipe recipes/qwen2_5_vl_7b_lora_vllm.yaml --cluster 1xA100 --data my_data.jsonl
    python -m benchmarks.scale --model Qwen2.5-VL-72B --cluster 4x8xH100 --batch 8 --visual 640 --turns 3 --json

Nothing was measured on a GPU by this project: what it prints is arithmetic (`benchmarks.work`), factors fitted to measured steps of small
models on a CPU (`benchmarks.calibrate`), and assumptions. The simulated time is a lower bound: published steps of others, whose settings
`benchmarks.published` simulates, took longer by the factors that are printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.calibrate import STEP, calibrated, errors, points
from benchmarks.machines import Cluster
from benchmarks.published import PUBLISHED, slowdown
from benchmarks.simulate import PAPER, Assumed, Run, step
from benchmarks.work import Episode
from mgpo.config import DataArguments, MGPOConfig
from mgpo.data.loading import load_rows
from mgpo.images.imaging import PixelBudget, read_header
from mgpo.planning.early import written
from mgpo.planning.estimate import GIB, Estimate, estimate
from mgpo.planning.gpus import USABLE
from mgpo.planning.sizes import SIZES, known_size
from mgpo.policies.families import family_of_name


def episode_of(
    visual: int, turns: int, overview: float | None = None, limits: tuple[int, int] = (256, 1024)
) -> Episode:
    """The paper's episodes with other pixels or turns: each further turn names a region and shows it.

    Args:
        overview: mean visual tokens of overviews; the whole budget unless it is known.
        limits: of the tokens of a turn that names a region, and of the answer.
    """
    box, answer = PAPER.said
    said = (*(min(box, limits[0]),) * (turns - 1), min(answer, limits[1]))
    longest = (*(limits[0],) * (turns - 1), limits[1])
    return replace(
        PAPER,
        overview=min(visual, overview or visual),
        crop=min(visual, max(256, visual / 2)),
        said=said,
        longest=longest,
    )


def run_of(recipe: dict[str, Any], gpus: int, overview: float | None = None) -> Run:
    """The run of a recipe on so many GPUs.

    Raises:
        ValueError: its model is no Qwen2.5-VL of known size.
    """
    name = recipe.get("model_name_or_path", "")
    model = next((known for known, size in SIZES.items() if size is known_size(name)), "")
    if not model.startswith("Qwen2.5-VL"):
        known = [name for name in SIZES if name.startswith("Qwen2.5-VL")]
        raise ValueError(f"{name or 'The recipe'} is not simulated; only {', '.join(known)} are.")
    batch, rollouts = recipe["per_device_train_batch_size"], recipe["num_generations"]
    accumulated = recipe.get("gradient_accumulation_steps", 1)
    parts = recipe.get("steps_per_generation") or accumulated
    updates, vllm = max(1, parts // accumulated), bool(recipe.get("use_vllm"))
    limits = recipe.get("max_grounding_tokens", 128), recipe.get("max_answer_tokens", 512)
    visual = recipe.get("max_pixels", 1280 * 784) // 784
    adapter = 0
    if recipe.get("use_peft"):
        targets = recipe.get("lora_target_modules", DataArguments.lora_target_modules)
        adapter = SIZES[model].adapter_parameters(recipe.get("lora_r", 16), targets)
    return Run(
        model, episode_of(visual, recipe.get("max_turns", 2), overview, limits), batch * parts * gpus // rollouts, rollouts, updates, batch,
        old=updates > 1 or vllm, reference=bool(recipe.get("beta")), adapter=adapter,
        frozen=bool(recipe.get("freeze_vision_tower")), checkpointing=bool(recipe.get("gradient_checkpointing")),
        sharded=not adapter, engine=recipe.get("vllm_gpu_memory_utilization", 0.3) if vllm else None,
        parallel=recipe.get("vllm_tensor_parallel_size", 1), steps=recipe.get("max_steps", 80) // updates,
        visual=visual, dtype=recipe.get("dtype", "bfloat16"), optim=recipe.get("optim", "adamw_torch"),
    )  # fmt: skip


def memory(run: Run, cluster: Cluster) -> Estimate:
    """The memory of a run on each GPU, by the estimate of `mgpo validate`, with the longest episodes that the limits allow."""
    size, sharded = SIZES[run.model], run.sharded and cluster.gpus > 1
    data = DataArguments(model_name_or_path=f"Qwen/{run.model}-Instruct", dtype=run.dtype, use_peft=bool(run.adapter))
    if run.adapter:
        data.lora_r = round(run.adapter / size.adapter_parameters(1, data.lora_target_modules))
    parts = max(1, round(run.questions * run.rollouts / cluster.gpus / run.batch))
    limits = run.episode.longest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames fields that its own defaults still use
        config = MGPOConfig(
            use_cpu=True, optim=run.optim, beta=0.01 if run.reference else 0.0, num_generations=run.rollouts, max_turns=len(limits),
            per_device_train_batch_size=run.batch, gradient_checkpointing=run.checkpointing, freeze_vision_tower=run.frozen,
            max_pixels=run.visual * 784, min_pixels=min(256, run.visual) * 784, max_grounding_tokens=limits[0], max_answer_tokens=limits[-1],
            generation_batch_size=run.batch * run.rollouts,
        )  # fmt: skip
    config.steps_per_generation, config.use_vllm = parts, run.engine is not None
    config.vllm_enable_sleep_mode, config.vllm_mode = True, "colocate"
    config.vllm_gpu_memory_utilization, config.vllm_tensor_parallel_size = run.engine or 0.3, run.parallel
    family = family_of_name(data.model_name_or_path)
    protocol = config.protocol(PixelBudget.usual(28), family.form if family else None)
    return estimate(
        size, data, config, config.episode_parts(protocol), protocol.budget.max_tokens, cluster.gpus, sharded
    )


def overviews(name: str, budget: PixelBudget) -> tuple[int, float]:
    """How many questions a data set has, and the mean visual tokens of up to 2,000 of their images, by the files' headers."""
    rows = load_rows(name, "train").questions
    every = max(1, len(rows) // 2000)
    tokens = []
    for row in range(0, len(rows), every):
        width, height = budget.fit(read_header(rows[row]["image"])[0])
        tokens.append(width * height / budget.factor**2)
    return len(rows), statistics.mean(tokens)


def report(run: Run, cluster: Cluster, questions: int) -> dict[str, Any]:
    """Everything that is printed, as numbers."""
    assumed, found, held = Assumed(), step(run, cluster), memory(run, cluster)
    low, high = slowdown()
    hours = run.steps * found.seconds * cluster.gpus / 3600
    misses = errors([point for point in points() if point.held_out], calibrated())
    return {
        "model": run.model,
        "cluster": str(cluster),
        "gpus": cluster.gpus,
        "questions_per_step": run.questions,
        "rollouts_per_question": run.rollouts,
        "steps": run.steps,
        "epochs": run.steps * run.questions / questions,
        "seconds": {name: phase.seconds for name, phase in found.phases.items()},
        "bound_by": {name: phase.bound for name, phase in found.phases.items()},
        "step_seconds": found.seconds,
        "bottleneck": list(found.bottleneck),
        "share_of_peak": found.operations / found.seconds / cluster.gpus / cluster.gpu.operations,
        "memory_gib": held.needed / GIB,
        "memory_fits": held.needed / GIB <= USABLE.get(cluster.gpu.gb, cluster.gpu.gb),
        "gpu_hours": hours,
        "gpu_hours_by_published_steps": [hours * low, hours * high],
        "published_over_simulated": {f"{row.model}, {row.cluster}, batch {row.batch}": row.ratio for row in PUBLISHED},
        "assumed": asdict(assumed) | {"episode": asdict(run.episode), "gpu": asdict(cluster.gpu)},
        "fitted_on_cpu": asdict(calibrated()),
        "held_out_error": {name: statistics.mean(map(abs, misses[name])) for name in (*STEP, "step")},
        "measured_on_gpu": False,
    }


def lines(told: dict[str, Any]) -> list[str]:
    """The report to read."""
    low, high = told["gpu_hours_by_published_steps"]
    phase, bound = told["bottleneck"]
    each = ", ".join(f"{name} {spent:.1f} ({told['bound_by'][name]})" for name, spent in told["seconds"].items())
    fits = "fits" if told["memory_fits"] else "DOES NOT FIT"
    ratios = ", ".join(f"{name}: {ratio:.1f}" for name, ratio in told["published_over_simulated"].items())
    misses = ", ".join(f"{name} {miss:.0%}" for name, miss in told["held_out_error"].items())
    return [
        f"{told['model']} on {told['cluster']}: {told['questions_per_step']} questions x {told['rollouts_per_question']} rollouts per step, "
        f"{told['steps']} steps ({told['epochs']:.1f} epochs)",
        f"step: {told['step_seconds']:.0f} s simulated, {told['share_of_peak']:.0%} of the GPUs' peak; bottleneck: {phase}, bound by {bound}",
        f"seconds: {each}",
        f"memory: {told['memory_gib']:.0f} GiB on each GPU by the estimate of mgpo validate: {fits}",
        f"cost: {told['gpu_hours']:.0f} GPU hours simulated (a lower bound); {low:.0f} to {high:.0f} if it is slower by as much as published steps are",
        f"published over simulated: {ratios}",
        f"error on held-out steps of small models on a CPU (mean of absolute errors): {misses}",
        "nothing of this was measured on a GPU by this project. Assumed:",
        *(f"  {name}: {value}" for name, value in told["assumed"].items()),
        "fitted on a CPU (of these, products, patch and rollout are used for GPUs):",
        *(f"  {name}: {value:.3g}" for name, value in told["fitted_on_cpu"].items()),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, help="a recipe of a Qwen2.5-VL; without one, the paper's settings")
    parser.add_argument("--cluster", default="4x8xH100", help="machines x GPUs x name")
    parser.add_argument("--data", help="a data set as mgpo train takes it; the paper's 21,690 questions unless given")
    parser.add_argument("--json", action="store_true", help="print numbers instead of sentences")
    for name, kind in (
        ("model", str),
        ("questions", int),
        ("rollouts", int),
        ("batch", int),
        ("steps", int),
        ("parallel", int),
    ):
        parser.add_argument(
            f"--{name}", type=kind, help="instead of the recipe's" if name != "parallel" else "GPUs of a vLLM engine"
        )
    parser.add_argument("--visual", type=int, help="visual tokens of an image at most, instead of the recipe's")
    parser.add_argument("--turns", type=int, help="the model's turns, instead of the recipe's")
    args = parser.parse_args(arguments)
    try:
        cluster = Cluster.read(args.cluster)
        run = run_of(written(args.recipe), cluster.gpus) if args.recipe else Run()
        given = {name: getattr(args, name) for name in ("model", "questions", "rollouts", "batch", "steps", "parallel")}
        if (
            given["model"]
            and given["model"] not in SIZES
            or not (given["model"] or "Qwen2.5-VL").startswith("Qwen2.5-VL")
        ):
            raise ValueError(
                f"--model {given['model']}: only {', '.join(n for n in SIZES if 'Qwen2.5-VL' in n)} are simulated."
            )
        run = replace(run, **{name: value for name, value in given.items() if value is not None})
        visual, turns = args.visual or run.visual, args.turns or len(run.episode.said)
        size, overview = 21_690, None
        if args.data:
            size, overview = overviews(args.data, PixelBudget(min(256, visual) * 784, visual * 784))
        if args.visual or args.turns or args.data:
            limits = run.episode.longest
            run = replace(run, visual=visual, episode=episode_of(visual, turns, overview, (limits[0], limits[-1])))
        told = report(run, cluster, size)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(json.dumps(told, indent=1) if args.json else "\n".join(lines(told)))


if __name__ == "__main__":
    main()

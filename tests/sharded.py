"""Training whose weights are split over processes, on CPU, and the same training in one process:

accelerate launch --multi_gpu --num_processes 2 tests/sharded.py fsdp2|zero3 MODEL QUESTIONS FOLDER
python tests/sharded.py one MODEL QUESTIONS FOLDER

Each case leaves its weights, its metrics and, for each process, what it sampled and how often it ran its layers.
"""

import faulthandler
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from distributed import FIRST, write_by_hand
from on_cpu import allow_sharding, start_deepspeed
from peft import LoraConfig
from support import CUT, make_trainer

from mgpo.policies.shared.packed import base_of
from mgpo.training.sharing import SharedPrefix

GIVEN_UP = 200
"""Seconds after which a process that waits for the other one shows where, and ends."""
HALF_SILENT = [1, 0, 5, 5, 2, 2, 3, 3]
"""Rewards by place: of the first process, one question of two has a signal; of the second, none. Its boxes are all invalid."""
NEVER = ["no", "not B", "none at all", "no"] * 2
HALF_CUT = [*NEVER[:4], *[(text, CUT) for text in NEVER[4:]]]
"""All rollouts of the second process are cut off."""
ZERO_3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_force_ds_cpu_optimizer": False,
    "bf16": {"enabled": "auto"},
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {
        "stage": 3,
        "stage3_gather_16bit_weights_on_model_save": True,
        # Nothing is kept whole between two calls, though the model is small.
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    },
}
LORA = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)", init_lora_weights=False)
ACCUMULATED = {"gradient_accumulation_steps": 2, "beta": 0.1, "freeze_vision_tower": True}
CASES = {
    "sampled": {"top_k": 1},
    "sampled_layer_by_layer": {"top_k": 1, "freeze_vision_tower": True, "ds3_gather_for_generation": False},
    "sampled_by_trl": {"top_k": 1, "shared_prefix": False},
    "silent": {},
    "checkpointed": {"gradient_checkpointing": True, "loss_type": "dapo", "num_generations": 4},
    "reference": ACCUMULATED,
    "cut": ACCUMULATED | {"mask_truncated_completions": True},
    "bf16": {"bf16": True},
    "lora": {"beta": 0.1, "peft_config": LORA},
}


def by_place(completion_ids, **_):
    """The rewards above."""
    at = PartialState().process_index * len(completion_ids)
    return [float(HALF_SILENT[(at + i) % 8]) for i in range(len(completion_ids))]


def shard_on_cpu(how):
    """Let weights be split over processes on CPU. Returns the settings."""
    allow_sharding()
    if how == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2}}
    start_deepspeed()
    return {"deepspeed": ZERO_3}


def count_calls(model, counts, name):
    """How often the first layer of each half of a model runs."""
    base = base_of(model)
    for half, layers in (("language", base.language_model.layers), ("tower", base.visual.blocks)):
        counts[f"{name} {half}"] = 0

        def count(*_, at=f"{name} {half}"):
            counts[at] += 1

        layers[0].register_forward_hook(count)


def end_turns_early(trainer, said):
    """Turns end with one of many tokens, so that a process samples for longer than the other; what is said is kept."""
    ends = [i for i in range(trainer.model.config.get_text_config().vocab_size) if i % 2 == 0]
    trainer.generation_config.eos_token_id = trainer.eos_token_ids = ends
    if trainer.sharing.sampler is not None:
        trainer.sharing.sampler.end_ids = set(ends)
    speak = trainer._generate_single_turn

    def kept(*args, **kwargs):
        found = speak(*args, **kwargs)
        said.append([list(ids) for ids in found[0]])  # TRL goes on writing into these lists
        return found

    trainer._generate_single_turn = kept


def run(name, model, rows, folder, sharding):
    """Two steps of a case."""
    processes, said, counts = int(os.environ.get("WORLD_SIZE", 1)), [], {}
    usual = {
        "per_device_train_batch_size": 8 // processes // CASES[name].get("gradient_accumulation_steps", 1),
        "num_generations": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "max_grounding_tokens": 40,
        "max_answer_tokens": 12,
        "extra_reward_funcs": ["sharded.by_place"],
    }
    torch.manual_seed(0)  # LoRA's weights
    trainer = make_trainer(model, folder / name, rows, **(usual | CASES[name] | sharding))
    assert trainer.sharing.on == trainer.args.shared_prefix and trainer.accelerator.num_processes == processes
    if name.startswith("sampled"):
        end_turns_early(trainer, said)
    count_calls(trainer.model, counts, "policy")
    if trainer.ref_model is not None:
        count_calls(trainer.accelerator.unwrap_model(trainer.ref_model), counts, "reference")
    trainer.train()
    trainer.save_model(str(folder / name))
    at = trainer.accelerator.process_index
    (folder / name / f"process_{at}.json").write_text(json.dumps({"said": said, "calls": counts}))


def main(how, model, questions, folder):
    """All cases: those that are sampled first, then those whose rollouts are written by hand."""
    faulthandler.dump_traceback_later(GIVEN_UP, exit=True)
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    sharding = {} if how == "one" else shard_on_cpu(how)
    speak = SharedPrefix.next_turn
    for name in CASES:
        if name.startswith("sampled"):
            SharedPrefix.next_turn = speak
        else:
            write_by_hand(FIRST, HALF_CUT if name == "cut" else NEVER)
        run(name, model, rows, Path(folder), sharding)
    if how != "one":
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # all is on disk; see `distributed.py`


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A training run whose rollouts are written by hand, for one process or several:

ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 tests/distributed.py MODEL QUESTIONS FOLDER
python tests/distributed.py MODEL QUESTIONS FOLDER
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from support import PROSE, SMALL, Script, box, make_trainer
from vllm_stand_in import StandIn

from mgpo.training.sharing import SharedPrefix

FIRST = [box(SMALL), box((30, 30, 90, 72)), box((30, 30, 70, 90)), box((20, 20, 72, 72))]
FIRST += [PROSE, "[]", box((70, 70, 20, 20)), "```json\n[{"]
"""Turn 1 by place in the global batch: with two processes all boxes of the one are valid, and none of the other."""
LAST = [
    "\\boxed{A}",
    "It is \\boxed{B}",
    "\\boxed{B}",
    "no",
    "\\boxed{A} ",
    "\\boxed{D}",
    "\\boxed{C}, I think",
    "\\boxed{D}",
]
CASES = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo", "num_generations": 4},
    "split_groups": {"loss_type": "grpo", "num_generations": 8},
    "with_reference": {"loss_type": "grpo", "beta": 0.1, "freeze_vision_tower": True},
    "sgd": {"loss_type": "grpo", "optim": "sgd", "learning_rate": 1e-2},
    "plain": {"loss_type": "grpo", "shared_prefix": False},
    "ahead": {
        "loss_type": "grpo", "use_vllm": True, "vllm_mode": "server", "rollouts_ahead": True, "freeze_vision_tower": True,
        "max_logprob_difference": 10.0,
    },
}  # fmt: skip


def write_by_hand(first=FIRST, last=LAST):
    """Sampling gives these texts, by place in the global batch; everything after it is the trainer's own."""
    turn = {"number": 0}

    def say(trainer, ids, images, *rest):
        said = (first, last)[turn["number"] % 2]
        turn["number"] += 1
        at = trainer.accelerator.process_index * len(ids)
        return [Script.ids(trainer.turn_tokens, said[(at + i) % len(said)]) for i in range(len(ids))]

    SharedPrefix.next_turn = lambda sharing, *rest: say(sharing.trainer, *rest)
    from trl import GRPOTrainer

    GRPOTrainer._generate_single_turn = lambda *args, **kwargs: (say(*args[:3]), None)


def install(name, value):
    """Replace what has this dotted name."""
    module, _, attribute = name.rpartition(".")
    setattr(import_module(module), attribute, value)


def fails_on_the_second_process(completion_ids, trainer_state, **_):
    """A reward that raises on one process, after two steps."""
    if trainer_state.global_step == 2 and PartialState().process_index == 1:
        raise ValueError("The answer key of question q3 is broken.")
    return [float(len(ids) % 3) for ids in completion_ids]


def main(model, questions, folder):
    """Three steps of each case on the same eight rollouts per step."""
    torch.set_num_threads(1)
    write_by_hand()
    StandIn.install(SimpleNamespace(setattr=install), (FIRST, LAST))
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    processes = int(os.environ.get("WORLD_SIZE", 1))
    for name, changes in CASES.items():
        usual = {
            "num_generations": 2,
            "max_steps": 3,
            "learning_rate": 1e-4,
            "max_grounding_tokens": 40,
            "max_answer_tokens": 12,
            "extra_reward_funcs": ["support.even_ids"],
        }
        asked = (
            2 * rows if name == "ahead" else rows
        )  # three steps are one epoch then, within which batches are seen ahead
        trainer = make_trainer(
            model, Path(folder) / name, asked, per_device_train_batch_size=8 // processes, **(usual | changes)
        )
        assert trainer.accelerator.num_processes == processes, "the launcher started another number of processes"
        trainer.train()
        trainer.save_model(str(Path(folder) / name))
    if processes > 1:
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(
            0
        )  # all is on disk; gloo's threads aborted the interpreter's end once, on a machine with one free core


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Trains with a reward of your own beside that for the right answer: short answers are worth a little.

    python examples/own_reward.py my_data.jsonl --model Qwen/Qwen3-VL-4B-Instruct

From the command line: mgpo train --config ... --extra_reward_funcs own_reward.brevity --reward_weights 1 0.1, with this folder
in PYTHONPATH. What a reward function is called with is TRL's convention, so those of other projects work as they are.
"""

import argparse
from typing import Any

from mgpo import MGPOConfig, MGPOTrainer
from mgpo.data.loading import load_questions
from mgpo.errors import run_script

LONG = 200
"""Characters from which an answer is worth nothing."""


def brevity(completions: list[Any], **columns: Any) -> list[float]:
    """One number per rollout: 1 for an empty last turn, 0 for one of `LONG` characters or more.

    Args:
        completions: of each rollout the messages after the first user turn, the model's last turn at the end.
        columns: the columns of the data, one value per rollout, and `completion_ids`.
    """
    lengths = [len(messages[-1]["content"]) for messages in completions]
    return [max(0.0, 1 - length / LONG) for length in lengths]


def main() -> None:
    """Train with both rewards, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="file, folder or hub dataset of questions, or needle")
    parser.add_argument("--model", default="mgpo-tiny")
    parser.add_argument("--out", default="runs/own_reward")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="rollouts per step: questions x --rollouts")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per question")
    parser.add_argument("--use_cpu", action="store_true")
    given = parser.parse_args()

    settings = MGPOConfig(
        given.out,
        extra_reward_funcs=["own_reward.brevity"],
        reward_weights=[1.0, 0.1],  # the right answer first, then the functions in their order
        max_steps=given.steps,
        per_device_train_batch_size=given.batch,
        num_generations=given.rollouts,
        use_cpu=given.use_cpu,
        logging_steps=1,
    )
    trainer = MGPOTrainer(given.model, settings, load_questions(given.data))
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    run_script(main)

"""Trains LoRA adapters from Python, watches a figure during training, and asks the trained model.

    python examples/train_from_python.py my_data.jsonl --model Qwen/Qwen3-VL-4B-Instruct

`MGPOTrainer` is TRL's `GRPOTrainer`: callbacks, peft_config, optimizers and all settings of GRPOConfig work as there.
"""

import argparse
from typing import Any

from peft import LoraConfig
from transformers import TrainerCallback

from mgpo import GroundedVQA, MGPOConfig, MGPOTrainer
from mgpo.data.loading import load_questions
from mgpo.errors import run_script

LANGUAGE_MODEL = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class Boxes(TrainerCallback):
    """Prints how many boxes could be cropped, and how many hit the gold box where the data has gold boxes."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Called after each step, because of `logging_steps=1`."""
        shares = {name: f"{logs[name]:.0%}" for name in ("grounding/valid_share", "grounding/hit_rate") if name in logs}
        if shares:
            print(f"step {state.global_step}: {shares}")


def main() -> None:
    """Train, save, and ask the first question of the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="file, folder or hub dataset of questions, or needle")
    parser.add_argument("--model", default="mgpo-tiny")
    parser.add_argument("--out", default="runs/from_python")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="rollouts per step: questions x --rollouts")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per question")
    parser.add_argument("--use_cpu", action="store_true")
    given = parser.parse_args()

    questions = load_questions(given.data)
    settings = MGPOConfig(given.out, max_steps=given.steps, per_device_train_batch_size=given.batch,
                          num_generations=given.rollouts, learning_rate=1e-5, use_cpu=given.use_cpu, logging_steps=1)  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=LANGUAGE_MODEL)
    trainer = MGPOTrainer(given.model, settings, questions, peft_config=lora, callbacks=[Boxes()])
    trainer.train()
    trainer.save_model()
    first = questions[0]
    found = GroundedVQA.from_pretrained(given.out).ask(first["image"], first["question"], first["choices"])
    print(f"{first['question']}  box {found.box_px_original}, answer {found.letter or found.answer}")


if __name__ == "__main__":
    run_script(main)

"""Trains a model that decides by itself whether to zoom, with TRL's own trainer.

    python examples/trl_environment.py Qwen/Qwen3-VL-2B-Instruct my_data.jsonl --out runs/zoom

The data may be in any layout of docs/data.md. docs/environments.md says what TRL 1.16 does not do here.
"""

import argparse

from trl import GRPOConfig, GRPOTrainer

from mgpo.data.loading import load_questions
from mgpo.environments.trl_tools import zoom_dataset, zoom_factory, zoom_protocol, zoom_settings
from mgpo.errors import run_script
from mgpo.method.rewards import accuracy_reward
from mgpo.policies.loading import load_processor
from mgpo.policies.turn_loop import TurnLimits


def main() -> None:
    """Train, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a model whose chat template has tools, e.g. a Qwen3-VL")
    parser.add_argument("data", help="file, folder or hub dataset of questions")
    parser.add_argument("--out", default="runs/zoom")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="rollouts per step")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per question")
    parser.add_argument("--call_tokens", type=int, default=128, help="room for a call of the tool")
    parser.add_argument("--answer_tokens", type=int, default=512, help="room for the answer")
    parser.add_argument("--use_cpu", action="store_true")
    given = parser.parse_args()

    processor, questions = load_processor(given.model), load_questions(given.data)
    protocol = zoom_protocol(given.model, processor, max_turns=2)
    settings = GRPOConfig(
        given.out,
        per_device_train_batch_size=given.batch,
        num_generations=given.rollouts,
        max_steps=given.steps,
        logging_steps=1,
        report_to="none",
        use_cpu=given.use_cpu,
        **zoom_settings(protocol, processor, TurnLimits(given.call_tokens, given.answer_tokens)),
    )
    trainer = GRPOTrainer(
        given.model,
        accuracy_reward,
        settings,
        train_dataset=zoom_dataset(questions),
        processing_class=processor,
        environment_factory=zoom_factory(protocol),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    run_script(main)

"""Trains a model that may look twice before it answers (max_turns 3), and shows where it looked.

    python examples/several_turns.py my_data.jsonl --model Qwen/Qwen3-VL-4B-Instruct --frame original

In each turn but the last the model gives a box or its answer. With the frame `latest`, a box refers to the image that was shown last,
so the model zooms further in; with `original`, every box refers to the whole photograph, so it may also look elsewhere.
"""

import argparse

from mgpo import GroundedVQA, MGPOConfig, MGPOTrainer
from mgpo.data.loading import load_questions
from mgpo.errors import run_script


def main() -> None:
    """Train, save, and print the turns of some questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="file, folder or hub dataset of questions, or needle")
    parser.add_argument("--model", default="mgpo-tiny")
    parser.add_argument("--frame", default="latest", choices=["latest", "original"])
    parser.add_argument("--out", default="runs/several_turns")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="rollouts per step: questions x --rollouts")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per question")
    parser.add_argument("--answer_tokens", type=int, default=256, help="room for a turn that may answer")
    parser.add_argument("--reply_tokens", type=int, default=320, help="room for the question's text, in each turn")
    parser.add_argument("--use_cpu", action="store_true")
    given = parser.parse_args()

    questions = load_questions(given.data)
    settings = MGPOConfig(
        given.out,
        max_turns=3,
        crop_frame=given.frame,
        max_answer_tokens=given.answer_tokens,
        max_reply_tokens=given.reply_tokens,
        max_steps=given.steps,
        per_device_train_batch_size=given.batch,
        num_generations=given.rollouts,
        use_cpu=given.use_cpu,
        logging_steps=1,
    )
    trainer = MGPOTrainer(given.model, settings, questions)
    trainer.train()
    trainer.save_model()
    vqa = GroundedVQA.from_pretrained(given.out)  # it is asked with the three turns that it was trained with
    for row in questions.select(range(min(3, len(questions)))):
        found = vqa.ask(row["image"], row["question"], row["choices"])
        print(row["question"])
        for number, turn in enumerate(found.turns, 1):
            print(f"  turn {number}: {turn.text!r} {turn.box_px_original or ''}")


if __name__ == "__main__":
    run_script(main)

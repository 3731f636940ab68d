"""Makes a data file from a folder of pictures and a table of questions, checks it, and trains on it.

    python examples/own_data.py photos/ questions.csv --model Qwen/Qwen3-VL-4B-Instruct

The table has the columns image, question, choices (separated by |, or empty for an open question) and answer (the text of the
right choice). questions.jsonl is written beside it, in the project's own layout; docs/data.md lists the others that are read.
"""

import argparse
import csv
import json
from pathlib import Path

from mgpo import MGPOConfig, MGPOTrainer
from mgpo.data.loading import load_questions
from mgpo.errors import run_script
from mgpo.method.question import LETTERS


def as_row(line: dict[str, str], photos: Path) -> dict[str, object]:
    """A line of the table as a row; with choices, the answer becomes the letter of the right one."""
    if any(line.get(name) is None for name in ("image", "question", "choices", "answer")):
        raise ValueError(f"The table needs the columns image, question, choices and answer, but a line is {line}.")
    choices = [choice.strip() for choice in line["choices"].split("|") if choice.strip()]
    answer = line["answer"].strip()
    if choices and answer not in choices:
        raise ValueError(f"{line['image']}: the answer {answer!r} is not one of the choices {choices}.")
    image, answer = str((photos / line["image"]).resolve()), LETTERS[choices.index(answer)] if choices else answer
    return {"image": image, "question": line["question"], "choices": choices, "answer": answer}


def main() -> None:
    """Write the rows, read them back as training does, and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of pictures")
    parser.add_argument("table", type=Path, help="CSV file with image, question, choices, answer")
    parser.add_argument("--model", default="mgpo-tiny")
    parser.add_argument("--out", default="runs/own_data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="rollouts per step: questions x --rollouts")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per question")
    parser.add_argument("--use_cpu", action="store_true")
    given = parser.parse_args()

    with given.table.open(newline="", encoding="utf-8") as table:
        rows = [as_row(line, given.photos) for line in csv.DictReader(table)]
    file = given.table.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    questions = load_questions(str(file))  # a row that cannot be used is named, with the reason
    print(f"{len(questions)} questions: {file}")
    settings = MGPOConfig(given.out, max_steps=given.steps, per_device_train_batch_size=given.batch,
                          num_generations=given.rollouts, use_cpu=given.use_cpu, logging_steps=1)  # fmt: skip
    trainer = MGPOTrainer(given.model, settings, questions)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    run_script(main)

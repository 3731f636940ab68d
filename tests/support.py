"""Questions over small pictures, settings of a short run, and episodes whose every token is written by hand."""

import numpy as np
from PIL import Image
from trl import GRPOTrainer

from mgpo.config import MGPOConfig
from mgpo.method.boxes import box_as_json
from mgpo.training.sharing import SharedPrefix
from mgpo.training.trainer import MGPOTrainer

SIZES = ((700, 500), (420, 600), (560, 560), (800, 450), (300, 500), (640, 480))
WIDE, TALL, SMALL = (10, 20, 130, 70), (5, 5, 50, 130), (30, 30, 70, 72)
"""Boxes that are valid in every overview of the tiny budget; their crops have different sizes."""
PROSE = "It is on the red sign."
CUT = "cut"
"""Ends a scripted text that the model did not end itself."""


def make_rows(folder, n=6):
    """Question rows with paths of pictures of different shapes; questions of different lengths."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        width, height = SIZES[i % len(SIZES)]
        small = rng.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
        file = folder / f"{i}.png"
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file)
        rows.append(
            {
                "id": f"q{i}",
                "image": str(file),
                "question": "Which letter is on the " + "very " * i + "red sign?",
                "choices": ["H", "K", "L", "N"],
                "answer": "ABCD"[i % 4],
                "gold_boxes": [[60, 60, 120, 120]],
                "category": "by_colour/letter",
            }
        )
    return rows


def several(rows, numbers=(0,)):
    """The same rows, of which those with these numbers show the next row's image first: two images of different sizes."""
    changed = [dict(row, more_images=[], gold_image=1) for row in rows]
    for number in numbers:
        changed[number] |= {"image": rows[number + 1]["image"], "more_images": [rows[number]["image"]], "gold_image": 2}
    return changed


def settings(folder, **changes):
    """Settings of a run of seconds: two questions, two rollouts of each, per step."""
    return MGPOConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_steps": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "beta": 0.0,
            "loss_type": "grpo",
            "max_grounding_tokens": 24,
            "max_answer_tokens": 6,
            "max_reply_tokens": 160,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 0,
        }
        | changes
    )


def make_trainer(model, folder, rows, **changes):
    """An `MGPOTrainer` on `rows`, in training mode."""
    import datasets

    kwargs = {key: changes.pop(key) for key in ("peft_config", "eval_dataset", "callbacks") if key in changes}
    model = str(model) if not hasattr(model, "parameters") else model
    trainer = MGPOTrainer(model, settings(folder, **changes), datasets.Dataset.from_list(rows), **kwargs)
    trainer.model.train()
    return trainer


def rollouts(rows, questions=2, each=2):
    """What TRL hands to the trainer: each row once per rollout."""
    return [dict(row) for row in rows[:questions] for _ in range(each)]


def box(xyxy):
    return box_as_json(xyxy, "sign")


class Script:
    """Stands in for sampling: `turns[t][i]` is what sample i says in turn t. A tuple (text, CUT) is not ended.

    Everything but the sampling stays the trainer's and TRL's own. Inputs of each call are kept in `calls`.
    """

    def __init__(self, turns):
        self.turns, self.calls = turns, []

    def install(self, monkeypatch):
        script = self

        def say(trainer, prompt_ids, images, fields, *args, **kwargs):
            said = script.turns[len(script.calls) % len(script.turns)]
            script.calls.append({"ids": [list(ids) for ids in prompt_ids], "images": images, "fields": fields})
            return [script.ids(trainer.turn_tokens, said[i % len(said)]) for i in range(len(prompt_ids))], None

        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", say)
        monkeypatch.setattr(
            SharedPrefix, "next_turn", lambda sharing, ids, images, last: say(sharing.trainer, ids, images, None)[0]
        )
        return self

    @staticmethod
    def ids(tokens, said):
        """Ids of a turn, with the family's own end unless it is cut off."""
        text, ended = (said[0], False) if isinstance(said, tuple) else (said, True)
        ids = tokens.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids + [tokens.turn_end_id] if ended else ids


MIXED = (
    (box(WIDE), (PROSE, CUT), box(TALL), box((70, 70, 20, 20))),
    ("\\boxed{A}", "It is \\boxed{B}", "\\boxed{B}", ("\\boxed{", CUT)),
)
"""Four episodes: a wide crop, cut-off prose, a tall crop, an inverted box; answers right, wrong, right, cut off."""


def even_ids(completion_ids, **_):
    """A reward that varies even where the model is random: the share of even token ids."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def sum_of_ids(completion_ids, **_):
    """A reward that differs between any two short answers but by a rare chance, so that some rollout has an advantage."""
    return [sum(ids) / 1000 for ids in completion_ids]


def unpadded(output, row):
    """Prompt ids, completion ids and loss mask of one sample of the trainer's output, without padding."""
    prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
    kept = output["completion_mask"][row].bool()
    mask = output["tool_mask"][row][kept].tolist() if "tool_mask" in output else [1] * int(kept.sum())
    return prompt, output["completion_ids"][row][kept].tolist(), mask


def processed(processor, images):
    """`pixel_values` and `image_grid_thw` straight from the image processor."""
    return dict(processor.image_processor(images=images, return_tensors="pt"))

"""The supervised baseline: TRL's `SFTTrainer` on short answers, with the prompt that `direct` evaluation uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from trl import SFTConfig, SFTTrainer

from mgpo.config import DataArguments, MGPOConfig
from mgpo.images.photograph import Photograph
from mgpo.method.episode import UserTurn
from mgpo.method.prompts import neutral, opening_text
from mgpo.method.protocol import Protocol
from mgpo.method.question import Question
from mgpo.policies.families import form_of
from mgpo.policies.loading import budget_of, load_processor, model_type_of, set_budget
from mgpo.policies.names import resolve
from mgpo.policies.shared.ranks import calls_of
from mgpo.policies.shared.vision_cache import remember_towers
from mgpo.policies.tokens import TurnTokens
from mgpo.runs.display import show
from mgpo.runs.log import RunLog
from mgpo.runs.resuming import Resuming
from mgpo.training.precision import refuse_rounded_weights
from mgpo.training.weights import (
    freeze_vision_tower,
    leave_out_router_loss,
    model_kwargs,
    peft_config,
    restore_float32_adapters,
)


class ShortAnswers:
    """Dataset transform: question rows -> `id`, `prompt`, `completion` and `images`, whose name tells TRL that they are there."""

    def __init__(self, protocol: Protocol, draw: Any = None) -> None:
        self.protocol, self.draw = protocol, draw

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Rows of questions as rows for `SFTTrainer`."""
        batch = self.draw(batch) if self.draw else batch
        rows = [dict(zip(batch, values)) for values in zip(*batch.values())]
        questions = [Question.from_row(row) for row in rows]
        shown = [[Photograph(image).overview(self.protocol.budget) for image in q.images] for q in questions]
        return {
            "id": [q.id for q in questions],
            "prompt": [opening_text(q, self.protocol) for q in questions],
            "completion": [f"\\boxed{{{neutral(_target(q))}}}" for q in questions],
            "images": shown,
        }


class AnswersAsTokens:
    """Collator: rows of `ShortAnswers` -> model inputs, by the code that writes the turns in which the model will be asked.

    TRL's own collator runs the whole processor on a rendered conversation. InternVL's and Gemma 4's cannot without their video
    half, and where a template writes no end of a turn (GLM's), there is none to learn.

    Args:
        processor: the family's processor.
        template_kwargs: variables of the chat template.
    """

    def __init__(self, processor: Any, template_kwargs: dict[str, Any] | None) -> None:
        self.processor, self.template_kwargs = processor, template_kwargs

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Inputs (rows, tokens), padded on the right, and pixels; `labels` are -100 but for the answer and the turn's end.

        Raises:
            RuntimeError: a row has not as many image tokens as image features.
        """
        tokens = TurnTokens(self.processor, self.template_kwargs)  # anew, so that it holds no image of earlier batches
        ids, labels, images = [], [], [image for row in rows for image in row["images"]]
        for row in rows:
            prompt = tokens.opening(UserTurn(row["prompt"], tuple(row["images"])))
            answer = [*tokens.ids_of(row["completion"]), tokens.turn_end_id]
            tokens.check(prompt + answer, row["images"], row["id"])
            ids.append(torch.tensor(prompt + answer))
            labels.append(torch.tensor([-100] * len(prompt) + answer))
        padded = pad_sequence(ids, batch_first=True, padding_value=tokens.tokenizer.pad_token_id)
        return {
            "input_ids": padded,
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            **tokens.pixels(images),
            **tokens.types(padded),
        }


def _as_short_answers(questions: Any, protocol: Protocol) -> Any:
    draw = questions.format["format_kwargs"].get("transform") if questions.format["type"] == "custom" else None
    return questions.with_transform(ShortAnswers(protocol, draw))


def _target(question: Question) -> str:
    """The answer to learn; the first letter where several are right."""
    return question.answer.split("|")[0] if question.choices else question.answer


class ShortAnswerTrainer(Resuming, SFTTrainer):
    """TRL's `SFTTrainer` with the resuming of a run folder; `build_sft_trainer` adds its log."""


def build_sft_trainer(data: DataArguments, config: MGPOConfig, questions: Any, asked: Any = None) -> SFTTrainer:
    """The trainer of the supervised baseline, from the same settings as MGPO's; it is evaluated on `asked`."""
    name = data.model_name_or_path
    processor = load_processor(name)
    protocol = config.protocol(budget_of(processor), form_of(model_type_of(name)))
    set_budget(processor, protocol.budget)
    config.min_pixels, config.max_pixels = (
        protocol.budget.min_pixels,
        protocol.budget.max_pixels,
    )  # evaluation will use the same budget
    shared = {f.name for f in dataclasses.fields(SFTConfig) if f.init} & {f.name for f in dataclasses.fields(config)}
    settings = {key: getattr(config, key) for key in shared - {"max_length", "model_init_kwargs", "loss_type"}}
    args = SFTConfig(**settings, max_length=None, model_init_kwargs=model_kwargs(data))
    trainer = ShortAnswerTrainer(
        model=resolve(name),
        args=args,
        train_dataset=_as_short_answers(questions, protocol),
        eval_dataset=_as_short_answers(asked, protocol) if asked is not None else None,
        processing_class=processor,
        data_collator=AnswersAsTokens(processor, config.chat_template_kwargs),
        peft_config=peft_config(data),
    )
    trainer.add_callback(RunLog())
    trainer.display = show(trainer)
    restore_float32_adapters(trainer.model)
    leave_out_router_loss(trainer)
    if config.freeze_vision_tower:
        freeze_vision_tower(trainer.model)
        remember_towers(trainer.model, calls_of(trainer.accelerator))
    refuse_rounded_weights(trainer, config.allow_low_precision_weights)
    return trainer

"""`shared_prefix`: computes each image and prompt token once per turn when sampling, and once per batch in the update.

`trainer.sharing` replaces how tokens are sampled (`mgpo.policies.shared.sampler`) and how their log-probabilities are
computed (`mgpo.policies.shared.update`). It skips rollouts that carry no gradient, unless a KL or entropy term needs
them, but always computes at least one per batch. Loss, advantages and everything else stay TRL's, so with
`shared_prefix: false` the same trainer is the reference that tests compare with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from typing import Any

import torch
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import (
    shuffle_sequence_dict,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from mgpo.policies.shared.filling import fill
from mgpo.policies.shared.models import use_packed_attention
from mgpo.policies.shared.ranks import calls_of
from mgpo.policies.shared.sampler import SharedSampler
from mgpo.policies.shared.update import Batch, pack, unpack
from mgpo.policies.shared.vision_cache import remember_towers

logger = logging.getLogger(__name__)


class SharedPrefix:
    """The shared path of a trainer, where model and settings allow it; else the reason is logged and TRL's path is used.

    It serves `_prepare_inputs` (`part`), `_generate_single_turn` (`next_turn`), `_get_per_token_logps_and_entropies`
    (`log_probs`) and `_compute_loss` (`updating`).

    Args:
        trainer: an `MGPOTrainer` that TRL has built.

    Attributes:
        on: whether the update shares prompts.
        sampler: samples with shared prompts; None where sampling does not share them, or where vLLM samples.

    Raises:
        ValueError: `mask_truncated_completions` is set, which TRL's path cannot do with crops.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.on = False
        self.sampler: SharedSampler | None = None
        self._updating: dict[str, Any] | None = None
        self._calls = calls_of(trainer.accelerator)
        reason, args = self._why_not(), trainer.args
        unwrap = trainer.accelerator.unwrap_model
        models = [unwrap(m) for m in (trainer.model, trainer.ref_model) if m is not None]
        if reason is None:
            try:
                for model in models:
                    use_packed_attention(model)
            except ValueError as error:
                reason = str(error)
        if reason is not None:
            if args.mask_truncated_completions and trainer.protocol.turns > 1:
                raise ValueError(
                    "mask_truncated_completions needs shared_prefix: TRL hides the crop of a masked rollout and then gives the "
                    f"next rollout its position. shared_prefix is not used because {reason}."
                )
            if args.shared_prefix:
                logger.warning("shared_prefix: %s; every prompt is computed once per rollout instead.", reason)
            return
        if trainer.ref_model is not None and not args.sync_ref_model:
            trainer.ref_model.requires_grad_(False)  # it never changes, so its tower may cache features
        for model in models:
            remember_towers(model, self._calls)
        self.on = True
        if not trainer.use_vllm:
            pad = trainer.processing_class.tokenizer.pad_token_id
            self.sampler = SharedSampler(trainer.turn_tokens, pad, trainer.eos_token_ids, calls=self._calls)

    def _why_not(self) -> str | None:
        trainer = self.trainer
        if not trainer.args.shared_prefix:
            return "it is switched off"
        if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
            return "FSDP 1 flattens the model (fsdp_version: 2 shares)"
        if trainer.use_transformers_continuous_batching:
            return "use_transformers_continuous_batching samples by itself"
        sampling = {} if trainer.use_vllm else vars(trainer.generation_config) | (trainer.generation_kwargs or {})
        if (
            (sampling.get("num_beams") or 1) > 1
            or sampling.get("cache_implementation")
            or sampling.get("use_cache") is False
        ):
            return "it fills the cache of plain sampling: leave num_beams, cache_implementation and use_cache alone"
        if trainer.aux_loss_enabled:
            return "the router's loss of a mixture of experts counts tokens as often as they are repeated"
        return None

    def next_turn(self, ids: list[list[int]], images: list[list[Any]], last: bool) -> list[list[int]]:
        """The next turn of all rollouts. With `last`, nothing of them is cached for a further turn."""
        assert self.sampler is not None
        trainer = self.trainer
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
                generation_kwargs=trainer.generation_kwargs,
                gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            trainer.accelerator.autocast(),
        ):
            return self.sampler.speak(model, ids, images, trainer.generation_config, last)

    def forget(self) -> None:
        """Free the caches of the batch that was sampled."""
        if self.sampler is not None:
            self.sampler.forget()

    @property
    def splits(self) -> bool:
        """Whether `part` must stand in for TRL's splitting of a batch of rollouts that is updated in parts."""
        trainer = self.trainer
        return self.on and trainer.args.steps_per_generation > 1 and trainer.model.training

    def part(self, generation_batch: Any) -> dict[str, Any]:
        """As TRL's `_prepare_inputs`, but the batch is split between questions, not across them.

        TRL shuffles single rollouts before it splits, so every part would hold nearly every prompt. The sum over the
        parts is the same for all losses but `bnpo`, which divides by the tokens of each part.
        """
        trainer = self.trainer
        parts = trainer.args.steps_per_generation
        if trainer._step % (parts * trainer.num_iterations) == 0 or trainer._buffered_inputs is None:
            whole = split_pixel_values_by_grid(trainer._generate_and_score_completions(generation_batch))
            # This process may hold a part of a group.
            together = gcd(len(whole["prompt_ids"]), trainer.num_generations)
            shuffled = shuffle_together(whole, together)
            split = split_tensor_dict(shuffled, parts)
            trainer._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in split]
        return trainer._buffered_inputs[trainer._step % parts]

    def log_probs(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-probabilities (rows, `logits_to_keep`) and entropies of the completions' tokens, as TRL's own.

        In an update, those of tokens that the model did not sample are not computed: the loss leaves them out.
        """
        split = input_ids.shape[1] - logits_to_keep
        learned = (self._updating or {}).get("tool_mask")
        batch = Batch(
            input_ids, attention_mask, split, rest["pixel_values"], rest["image_grid_thw"], rest["num_images"],
            None if learned is None else learned.bool(),
        )  # fmt: skip
        rows = self._rows_with_signal(attention_mask[:, split:])
        old = (self._updating or {}).get("old_per_token_logps")
        logps = torch.zeros_like(input_ids[:, split:], dtype=torch.float32) if old is None else old
        entropies = torch.zeros_like(logps)
        # A pack is never larger than TRL's own batch, so neither is its memory; all rows of an update are one pack.
        budget = (batch_size or len(input_ids)) * input_ids.shape[1]
        least = min(rows, key=attention_mask.sum(1).tolist().__getitem__)
        for chosen in fill(batch, rows, budget, self._calls):
            bare = self.trainer.accelerator.unwrap_model(model)
            packed = pack(bare, batch, chosen or [least], score=bool(chosen))
            with self.trainer.accelerator.autocast():
                out = model(**packed.inputs, fused_lm_head=True)
            logps = unpack(out.log_probs, packed, logps)
            # All were cut off and masked, or others have more packs: the pass must run, but does not count.
            if not packed.where.shape[1]:
                logps = logps + 0 * out.log_probs.sum()
            entropies = unpack(out.entropy, packed, entropies) if compute_entropy else entropies
        if compute_entropy and len(rows) < len(input_ids):
            entropies = self._like_the_scored(entropies, rows)
        return logps, entropies if compute_entropy else None, None

    @contextmanager
    def updating(self, inputs: dict[str, Any]) -> Iterator[None]:
        """While TRL computes a loss from `inputs`, so that rollouts without a gradient can be recognised by them."""
        self._updating = inputs
        try:
            yield
        finally:
            self._updating = None

    def _rows_with_signal(self, completion_mask: torch.Tensor) -> list[int]:
        """Rows to score: in an update, those whose advantage is not zero, unless KL or entropy terms need all rows.

        At least one row remains, so that every process has a forward and a backward pass in every step.
        """
        lengths = completion_mask.sum(1)
        rows = [row for row, length in enumerate(lengths.tolist()) if length] or [0]
        inputs, trainer = self._updating, self.trainer
        if inputs is None or not trainer.model.training or trainer.beta != 0 or trainer._entropy_bonus_enabled:
            return rows
        if trainer.top_entropy_quantile < 1 or trainer.off_policy_mask_threshold is not None:
            return rows
        advantages = inputs["advantages"]
        signal = (advantages if advantages.dim() == 1 else advantages.abs().sum(1)) != 0
        kept = [row for row in rows if signal[row]] or [min(rows, key=lengths.tolist().__getitem__)]
        share = torch.tensor(1 - len(kept) / len(rows), device=completion_mask.device)
        trainer._metrics["train"]["update/rollouts_skipped"].append(trainer.accelerator.reduce(share, "mean").item())
        return kept

    def _like_the_scored(self, entropies: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Give unscored rows the mean entropy of the scored ones, so that a mean over all rows equals theirs."""
        inputs = self._updating or {}
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        scored = torch.zeros_like(mask[:, :1])
        scored[rows] = 1
        mean = (entropies * mask * scored).sum() / (mask * scored).sum().clamp(min=1)
        return torch.where(scored.bool(), entropies, mean.detach())


def shuffle_together(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """Shuffle a batch but keep each `size` consecutive rows together; values without rows stay as they are."""
    rows = len(batch["prompt_ids"])
    order = shuffle_sequence_dict({"rows": torch.arange(rows).view(-1, size)})["rows"].flatten()
    return {name: _in_order(value, order) for name, value in batch.items()}


def _in_order(value: Any, order: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value[order] if value.dim() else value
    return value if value is None else [value[i] for i in order]

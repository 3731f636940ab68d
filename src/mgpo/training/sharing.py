"""`shared_prefix`: computes each image and prompt token once per turn when sampling, and once per batch in the update.

A mixin over TRL's `GRPOTrainer`. It replaces how tokens are sampled (`mgpo.policies.shared.rollout`) and how their
log-probabilities are computed (`mgpo.policies.shared.update`). It skips rollouts that carry no gradient, unless a KL or
entropy term needs them, but always computes at least one per batch. Loss, advantages and everything else stay TRL's, so
with `shared_prefix: false` the same trainer is the reference that tests compare with.
"""

from __future__ import annotations

import logging
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

from mgpo.policies.shared.packed import use_packed_attention
from mgpo.policies.shared.rollout import SharedRollout
from mgpo.policies.shared.update import Batch, pack, unpack
from mgpo.policies.shared.vision_cache import remember_towers

logger = logging.getLogger(__name__)


class SharedPrefix:
    """Mixin of `MGPOTrainer`; call `_share` once the trainer is built."""

    _shares: bool = False
    """Whether the update shares prompts."""
    _rollout: SharedRollout | None = None
    """Samples with shared prompts; None where sampling does not share them, or where vLLM samples."""
    _scored_with: dict[str, Any] | None = None

    def _share(self) -> None:
        """Use the shared path if model and settings allow it; else log the reason and keep TRL's own path."""
        reason = self._why_not()
        models = [self.accelerator.unwrap_model(m) for m in (self.model, self.ref_model) if m is not None]
        if reason is None:
            try:
                for model in models:
                    use_packed_attention(model)
            except ValueError as error:
                reason = str(error)
        if reason is not None:
            if self.args.mask_truncated_completions and self.protocol.turns > 1:
                raise ValueError(
                    "mask_truncated_completions needs shared_prefix: TRL hides the crop of a masked rollout and then gives the "
                    f"next rollout its position. shared_prefix is not used because {reason}."
                )
            if self.args.shared_prefix:
                logger.warning("shared_prefix: %s; every prompt is computed once per rollout instead.", reason)
            return
        if self.ref_model is not None and not self.args.sync_ref_model:
            self.ref_model.requires_grad_(False)  # it never changes, so its tower may cache features
        for model in models:
            remember_towers(model)
        self._shares = True
        if self.use_vllm:
            return
        self._rollout = SharedRollout(self.turn_tokens, self._tokenizer.pad_token_id, self.eos_token_ids)

    def _why_not(self) -> str | None:
        if not self.args.shared_prefix:
            return "it is switched off"
        plugin = self.accelerator.state.deepspeed_plugin
        if self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            return "weights are sharded over processes (FSDP or ZeRO-3), whose forwards must be the same on each"
        if self.use_transformers_continuous_batching:
            return "use_transformers_continuous_batching samples by itself"
        sampling = {} if self.use_vllm else vars(self.generation_config) | (self.generation_kwargs or {})
        if (
            (sampling.get("num_beams") or 1) > 1
            or sampling.get("cache_implementation")
            or sampling.get("use_cache") is False
        ):
            return "it fills the cache of plain sampling: leave num_beams, cache_implementation and use_cache alone"
        if self.aux_loss_enabled:
            return "the router's loss of a mixture of experts counts tokens as often as they are repeated"
        return None

    def _shared_turn(self, ids: list[list[int]], images: list[list[Any]], last: bool) -> list[list[int]]:
        """The next turn of all rollouts. With `last`, nothing of them is cached for a further turn."""
        assert self._rollout is not None
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self.accelerator.autocast(),
        ):
            return self._rollout.speak(model, ids, images, self.generation_config, last)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """As TRL's, but a batch of rollouts that is updated in parts is split between questions, not across them.

        TRL shuffles single rollouts before it splits, so every part would hold nearly every prompt. The sum over the
        parts is the same for all losses but `bnpo`, which divides by the tokens of each part.
        """
        parts = self.args.steps_per_generation
        if not self._shares or parts == 1 or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            whole = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            together = gcd(len(whole["prompt_ids"]), self.num_generations)  # this process may hold a part of a group
            shuffled = shuffle_together(whole, together)
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(shuffled, parts)]
        return self._buffered_inputs[self._step % parts]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-probabilities (rows, `logits_to_keep`) and entropies of the completions' tokens, as TRL's own."""
        if not self._shares or rest.get("pixel_values") is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **rest
            )
        split = input_ids.shape[1] - logits_to_keep
        batch = Batch(
            input_ids, attention_mask, split, rest["pixel_values"], rest["image_grid_thw"], rest["num_images"]
        )
        rows = self._rows_with_signal(attention_mask[:, split:])
        old = (self._scored_with or {}).get("old_per_token_logps")
        logps = torch.zeros_like(input_ids[:, split:], dtype=torch.float32) if old is None else old
        entropies = torch.zeros_like(logps)
        size = batch_size or len(rows)
        for first in range(0, len(rows), size):
            packed = pack(self.accelerator.unwrap_model(model), batch, rows[first : first + size])
            with self.accelerator.autocast():
                out = model(**packed.inputs, fused_lm_head=True)
            logps = unpack(out.log_probs, packed, logps)
            if not packed.where:  # every rollout was cut off and masked: the pass must run, but its values do not count
                logps = logps + 0 * out.log_probs.sum()
            entropies = unpack(out.entropy, packed, entropies) if compute_entropy else entropies
        if compute_entropy and len(rows) < len(input_ids):
            entropies = self._like_the_scored(entropies, rows)
        return logps, entropies if compute_entropy else None, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss. Its inputs are stored meanwhile, so that rollouts without a gradient can be recognised."""
        self._scored_with = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._scored_with = None

    def _rows_with_signal(self, completion_mask: torch.Tensor) -> list[int]:
        """Rows to score: in an update, those whose advantage is not zero, unless KL or entropy terms need all rows.

        At least one row remains, so that every process has a forward and a backward pass in every step.
        """
        lengths = completion_mask.sum(1)
        rows = [row for row, length in enumerate(lengths.tolist()) if length] or [0]
        inputs = self._scored_with
        if inputs is None or not self.model.training or self.beta != 0 or self._entropy_bonus_enabled:
            return rows
        if self.top_entropy_quantile < 1 or self.off_policy_mask_threshold is not None:
            return rows
        advantages = inputs["advantages"]
        signal = (advantages if advantages.dim() == 1 else advantages.abs().sum(1)) != 0
        kept = [row for row in rows if signal[row]] or [min(rows, key=lengths.tolist().__getitem__)]
        share = torch.tensor(1 - len(kept) / len(rows), device=completion_mask.device)
        self._metrics["train"]["update/rollouts_skipped"].append(self.accelerator.reduce(share, "mean").item())
        return kept

    def _like_the_scored(self, entropies: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Give unscored rows the mean entropy of the scored ones, so that a mean over all rows equals theirs."""
        inputs = self._scored_with or {}
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

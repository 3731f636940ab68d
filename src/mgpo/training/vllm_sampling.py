"""`use_vllm`: the part of `MGPOTrainer` that samples with vLLM and checks, turn by turn, that it is the same policy.

`trainer.vllm_sampling` is one of these, or None where transformers samples. It serves `_generate_single_turn` (the next turn)
and `_generate_and_score_completions` (the comparison).
"""

from __future__ import annotations

from typing import Any

import torch

from mgpo.policies.shared.vision_cache import towers
from mgpo.policies.vllm_engine import VLLMEngine


class VLLMSampling:
    """TRL's vLLM backend of a trainer, spoken to in turns.

    Args:
        trainer: an `MGPOTrainer` that TRL has built with `use_vllm`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        changes = any(p.requires_grad for tower in towers(trainer.model) for p in tower.parameters())
        seconds = trainer.args.vllm_call_seconds
        self.engine = VLLMEngine(trainer.vllm_generation, trainer.turn_tokens, changes, seconds)

    def next_turn(
        self, ids: list[list[int]], images: list[list[Any]], limit: int, num_generations: int, greedy: bool
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The next turn by vLLM, with the weights of this step; sampled, or decoded greedily."""
        self.push_weights()
        return self.engine.speak(ids, images, limit, num_generations, greedy)

    def push_weights(self) -> None:
        """Push the weights of this step to vLLM, unless it has them."""
        step = self.trainer.state.global_step
        if step != self.trainer._last_loaded_step:
            self.engine.sync()
            self.trainer._last_loaded_step = step

    def compare(self, output: dict[str, Any]) -> None:
        """Log, turn by turn, how far vLLM's log-probabilities are from the model's own; stop where they are not the same.

        Raises:
            RuntimeError: the mean difference of a turn is over `max_logprob_difference`.
        """
        if "old_per_token_logps" not in output or "sampling_per_token_logps" not in output:
            return
        trainer = self.trainer
        older = (
            ", or too far from the weights of one batch before (rollouts_ahead)" if trainer.args.rollouts_ahead else ""
        )
        said = output["completion_mask"] * output.get("tool_mask", 1)
        apart = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).abs().nan_to_num()
        mode = "train" if trainer.model.training else "eval"
        # Every process takes part in every turn's sum, whether it has such a turn or not.
        for number, turn in enumerate(turn_masks(said, trainer.protocol.turns), 1):
            total = torch.stack([(apart * turn).sum(), turn.sum().float()])
            total = trainer.accelerator.reduce(total, "sum")
            mean = (total[0] / total[1].clamp(min=1)).item()
            trainer._metrics[mode][f"sampling/turn_{number}_logp_difference"].append(mean)
            if mean > trainer.args.max_logprob_difference:
                raise RuntimeError(
                    f"In turn {number}, vLLM's log-probabilities differ from the model's own by {mean:.3f} on average, over "
                    f"max_logprob_difference={trainer.args.max_logprob_difference}: it samples with other weights, pixels or "
                    f"precision{older}. Check the versions and dtypes of both, or raise the limit if you know why."
                )


def turn_masks(said: torch.Tensor, turns: int) -> list[torch.Tensor]:
    """One mask per turn of the model, from the mask (rows, tokens) of all that it sampled; some may be empty."""
    starts = said.clone()
    starts[:, 1:] = said[:, 1:] * (1 - said[:, :-1])
    number = starts.cumsum(1) * said
    return [(number == turn).to(said.dtype) for turn in range(1, turns + 1)]

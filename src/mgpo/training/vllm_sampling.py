"""`use_vllm`: a mixin over TRL's `GRPOTrainer` that samples with vLLM and checks that it is the same policy.

The check compares log-probabilities turn by turn.
"""

from __future__ import annotations

from typing import Any

import torch

from mgpo.policies.shared.vision_cache import towers
from mgpo.policies.vllm_rollout import VLLMRollout


class VLLMSampling:
    """Mixin of `MGPOTrainer`; call `_sample_with_vllm` once the trainer is built."""

    _vllm: VLLMRollout | None = None

    def _sample_with_vllm(self) -> None:
        """Use TRL's vLLM backend, if the run has one."""
        if self.use_vllm:
            changes = any(p.requires_grad for tower in towers(self.model) for p in tower.parameters())
            self._vllm = VLLMRollout(self.vllm_generation, self.turn_tokens, changes, self.args.vllm_call_seconds)

    def _vllm_turn(
        self,
        ids: list[list[int]],
        images: list[list[Any]],
        num_generations: int,
        has_tool_images: bool = False,
        greedy: bool = False,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The next turn by vLLM, with the weights of this step; sampled, or decoded greedily."""
        assert self._vllm is not None
        if self.state.global_step != self._last_loaded_step:
            self._vllm.sync()
            self._last_loaded_step = self.state.global_step
        return self._vllm.speak(ids, images, self._turn_limit, num_generations, greedy)

    def _compare_with_sampling(self, output: dict[str, Any]) -> None:
        """Log for each turn how far vLLM's log-probabilities are from the model's own; stop if they are too far apart.

        Raises:
            RuntimeError: the mean difference of a turn is over `max_logprob_difference`.
        """
        if "old_per_token_logps" not in output or "sampling_per_token_logps" not in output:
            return
        said = output["completion_mask"] * output.get("tool_mask", 1)
        apart = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).abs().nan_to_num()
        mode = "train" if self.model.training else "eval"
        # Every process must join the sum of every turn, even if it has no such turn.
        for number, turn in enumerate(turn_masks(said, self.protocol.turns), 1):
            total = torch.stack([(apart * turn).sum(), turn.sum().float()])
            total = self.accelerator.reduce(total, "sum")
            mean = (total[0] / total[1].clamp(min=1)).item()
            self._metrics[mode][f"sampling/turn_{number}_logp_difference"].append(mean)
            if mean > self.args.max_logprob_difference:
                raise RuntimeError(
                    f"In turn {number}, vLLM's log-probabilities differ from the model's own by {mean:.3f} on average, over "
                    f"max_logprob_difference={self.args.max_logprob_difference}: it samples with other weights, pixels or "
                    "precision. Check the versions and dtypes of both, or raise the limit if you know why."
                )


def turn_masks(said: torch.Tensor, turns: int) -> list[torch.Tensor]:
    """One mask per turn of the model, from the mask (rows, tokens) of all that it sampled; some may be empty."""
    starts = said.clone()
    starts[:, 1:] = said[:, 1:] * (1 - said[:, :-1])
    number = starts.cumsum(1) * said
    return [(number == turn).to(said.dtype) for turn in range(1, turns + 1)]

"""A policy that vLLM runs in this process: `mgpo ask | serve | eval --engine vllm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm
from mgpo.policies.families import form_of
from mgpo.policies.loading import budget_of, load_processor, model_type_of, set_budget
from mgpo.policies.local import Conversation, TokenPolicy
from mgpo.policies.names import resolve, template_kwargs_of
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import Said
from mgpo.policies.vllm_engine import IMAGES_PER_PROMPT, banned_words, check_prompts, one_placeholder


class VLLMPolicy(TokenPolicy):
    """A vLLM engine and the model's processor.

    Args:
        model: `mgpo-tiny`, a folder or a hub id.
        thinking: `enable_thinking` of its chat template; None is as in its training run.
        settings: further arguments of `vllm.LLM`.

    Raises:
        ValueError: vLLM is not installed.
    """

    def __init__(self, model: str, thinking: bool | None = None, **settings: Any) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ValueError(f"--engine vllm needs vLLM ({error}): pip install vllm.") from error
        path = resolve(model)
        self._vllm = vllm
        self.processor = load_processor(model)
        self.tokens = TurnTokens(self.processor, template_kwargs_of(model, thinking))
        self.box_form: BoxForm | None = form_of(model_type_of(model))
        pictures = {"image": IMAGES_PER_PROMPT, "video": 0}
        self.llm = vllm.LLM(model=path, load_format="safetensors", limit_mm_per_prompt=pictures, **settings)

    @property
    def budget(self) -> PixelBudget:
        """The pixel budget that its processor is set to."""
        return budget_of(self.processor)

    def set_budget(self, budget: PixelBudget) -> None:
        """Make both image processors agree with the protocol's pixel budget."""
        set_budget(self.processor, budget)

    def say(self, conversations: Sequence[Conversation], max_new_tokens: int, temperature: float = 0.0) -> list[Said]:
        """The model's next turn in each conversation, generated as one batch.

        Raises:
            RuntimeError: vLLM's prompt differs from ours.
        """
        budget = self.budget
        sampling = self._vllm.SamplingParams(
            temperature=temperature, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, max_tokens=max_new_tokens,
            bad_words=banned_words(self.tokens),
        )  # fmt: skip
        prompts = [
            {
                "prompt_token_ids": one_placeholder(c.ids, self.tokens.image_token_id),
                "multi_modal_data": {"image": list(c.images)},
                "mm_processor_kwargs": {"min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels},
            }
            for c in conversations
        ]
        outputs = self.llm.generate(prompts, sampling_params=sampling, use_tqdm=False)
        check_prompts([out.prompt_token_ids for out in outputs], [c.ids for c in conversations])
        return [self._said(out.outputs[0]) for out in outputs]

    def _said(self, out: Any) -> Said:
        ids = list(out.token_ids)
        text = self.tokens.decode(ids)
        return Said(ids, text, out.finish_reason == "length")

"""A policy in this process: a transformers model that continues conversations given as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig

from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm
from mgpo.method.episode import UserTurn
from mgpo.policies.families import form_of
from mgpo.policies.loading import budget_of, load_model, load_processor, set_budget
from mgpo.policies.names import template_kwargs_of
from mgpo.policies.shared.models import use_packed_attention
from mgpo.policies.shared.sampler import SharedSampler
from mgpo.policies.shared.vision_cache import remember_towers
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import Said


@dataclass
class Conversation:
    """A conversation so far: its token ids, and the images of its placeholders in order."""

    ids: list[int]
    images: list[Image.Image]


class TokenPolicy:
    """A policy whose conversations are token ids, in which the model's turns stay exactly as they were sampled."""

    tokens: TurnTokens

    def open(self, turn: UserTurn) -> Conversation:
        """A conversation that consists of one user turn."""
        return Conversation(self.tokens.opening(turn), list(turn.images))

    def follow(self, conversation: Conversation, said: Said, turn: UserTurn) -> None:
        """Append what the model said and the next user turn."""
        conversation.ids += said.ids + self.tokens.reply(turn, closed=said.ids[-1:] == [self.tokens.turn_end_id])
        conversation.images += turn.images

    def say(self, conversations: Sequence[Conversation], max_new_tokens: int, temperature: float = 0.0) -> list[Said]:
        """The model's next turn in each conversation."""
        raise NotImplementedError

    def go_on(self, conversations: Sequence[Conversation], begun: str, max_new_tokens: int) -> list[Said]:
        """The model's next turn in each conversation, decoded greedily as a continuation of the text `begun`."""
        ids = self.tokens.ids_of(begun)
        started = [Conversation(c.ids + ids, list(c.images)) for c in conversations]
        rest = self.say(started, max(1, max_new_tokens - len(ids)))
        return [Said(ids + said.ids, self.tokens.decode(ids + said.ids), said.truncated) for said in rest]

    def write(self, text: str) -> Said:
        """A turn with this text, as if the model had said it."""
        return Said([*self.tokens.ids_of(text), self.tokens.turn_end_id], text, False)


class LocalPolicy(TokenPolicy):
    """A transformers model and its processor. Where the model allows it, later turns reuse the cache of earlier ones.

    Args:
        model: a loaded vision-language model.
        processor: its processor.
        template_kwargs: variables of its chat template.

    Attributes:
        banned_ids: tokens that are never sampled; more may be added.
    """

    def __init__(self, model: Any, processor: Any, template_kwargs: dict[str, Any] | None = None) -> None:
        self.model, self.processor = model, processor
        self.tokens = TurnTokens(processor, template_kwargs)
        self.banned_ids = self.tokens.banned_ids()
        own = model.generation_config.eos_token_id
        own = own if isinstance(own, list) else [] if own is None else [own]
        self._ends = sorted({self.tokens.turn_end_id, self.tokens.tokenizer.eos_token_id, *own})
        self._shared: SharedSampler | None = None
        try:
            use_packed_attention(model)
        except ValueError:
            return  # another family or attention: every turn computes the whole conversation
        self._shared = SharedSampler(self.tokens, self.tokens.tokenizer.pad_token_id, self._ends)

    @classmethod
    def load(
        cls, name_or_path: str, budget: PixelBudget | None = None, dtype: str = "auto", thinking: bool | None = None
    ) -> LocalPolicy:
        """Load `mgpo-tiny`, a folder or a hub id for inference: without gradients, and with each image encoded once.

        `thinking` is `enable_thinking` of its chat template; None is as in its training run.
        """
        model = load_model(name_or_path, dtype).requires_grad_(False)
        remember_towers(model)
        return cls(model, load_processor(name_or_path, budget), template_kwargs_of(name_or_path, thinking))

    @property
    def budget(self) -> PixelBudget:
        """The pixel budget that its processor is set to."""
        return budget_of(self.processor)

    @property
    def box_form(self) -> BoxForm | None:
        """How its family writes boxes; None if that is not known."""
        return form_of(self.model.config.model_type)

    def set_budget(self, budget: PixelBudget) -> None:
        """Make the processor agree with the protocol's pixel budget."""
        set_budget(self.processor, budget)

    @torch.no_grad()
    def say(self, conversations: Sequence[Conversation], max_new_tokens: int, temperature: float = 0.0) -> list[Said]:
        """The model's next turn in each conversation, generated as one batch.

        Args:
            conversations: they may differ in length and number of images.
            max_new_tokens: limit of the turn.
            temperature: 0 decodes greedily.
        """
        for row, conversation in enumerate(conversations):
            self.tokens.check(conversation.ids, conversation.images, f"row {row} of the batch")
        # All options are set here, since omitted ones come from the checkpoint (Qwen ships a repetition penalty).
        sampling: dict[str, Any] = {"do_sample": temperature > 0, "num_beams": 1, "repetition_penalty": 1.0}
        if temperature > 0:
            sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": None}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            suppress_tokens=self.banned_ids,
            eos_token_id=self._ends,
            pad_token_id=self.tokens.tokenizer.pad_token_id,
            **sampling,
        )
        if self._shared is not None:
            said = self._shared.speak(
                self.model, [c.ids for c in conversations], [c.images for c in conversations], config
            )
        else:
            said = self._plainly(conversations, config)
        return [self._said(ids) for ids in said]

    def _plainly(self, conversations: Sequence[Conversation], config: GenerationConfig) -> list[list[int]]:
        """Run `generate` over whole conversations, for models that cannot reuse the cache of earlier turns."""
        width, device = max(len(c.ids) for c in conversations), self.model.device
        ids = torch.full((len(conversations), width), self.tokens.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, conversation in enumerate(conversations):
            ids[row, width - len(conversation.ids) :] = torch.tensor(conversation.ids)
            mask[row, width - len(conversation.ids) :] = 1
        images = [image for c in conversations for image in c.images]
        vision = self.tokens.pixels(images) if images else {}
        out = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            **self.tokens.types(ids.to(device)),
            **{name: value.to(device) for name, value in vision.items()},
            generation_config=config,
        )
        return [row[width:].tolist() for row in out]

    def _said(self, ids: list[int]) -> Said:
        end = next((at for at, token in enumerate(ids) if token in self._ends), None)
        if end is not None:
            ids = ids[: end + 1]
        text = self.tokens.decode(ids)
        return Said(ids, text, end is None)

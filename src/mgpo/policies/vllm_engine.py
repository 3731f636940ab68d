"""Rollouts by a colocated or served vLLM, with fixes for what TRL 1.16 gets wrong about images (docs/vllm.md).

- A colocated vLLM expects one placeholder per image and expands it itself; a server expects the expanded placeholders.
  TRL sends expanded ones to both, and the colocated engine would expand them again.
- After a weight update, vLLM's encoder cache still holds image embeddings of the old weights. It is emptied, unless the
  tower is frozen and they are still valid.
- vLLM prepares images by the checkpoint's own pixel budget; here it gets the run's.
- The engine stays awake for a whole episode: if it slept between turns, it would lose the prompt's cache.
- In every batch, the prompts that vLLM reports must equal ours.

This module does not import vllm: TRL imports it where `use_vllm` is set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from mgpo.images.imaging import PixelBudget
from mgpo.policies.tokens import TurnTokens

IMAGES_PER_PROMPT = 16
"""Of a policy that is asked: eight images of a question, and eight further looks."""


def one_placeholder(ids: Sequence[int], image_token_id: int) -> list[int]:
    """Token ids with each run of image placeholders shortened to one, which is what vLLM's own processing expands."""
    kept = [i for i, token in enumerate(ids) if token != image_token_id or i == 0 or ids[i - 1] != image_token_id]
    return [ids[i] for i in kept]


def banned_words(tokens: TurnTokens) -> list[str]:
    """The special tokens that must never be sampled, as vLLM takes them."""
    return [tokens.tokenizer.convert_ids_to_tokens(token) for token in tokens.banned_ids()]


def check_prompts(reported: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]) -> None:
    """Check that vLLM sampled from the prompts that we gave it, since those are trained on.

    Raises:
        RuntimeError: a prompt differs; the message says how long each is.
    """
    if len(reported) != len(ours):
        raise RuntimeError(f"vLLM reports {len(reported)} prompts, but {len(ours)} were sent.")
    for number, (theirs, own) in enumerate(zip(reported, ours)):
        if list(theirs) != list(own):
            raise RuntimeError(
                f"vLLM's prompt differs from ours in row {number} of the batch: it has {len(theirs)} tokens, ours has "
                f"{len(own)}. Either its image processor has another pixel budget, or placeholders were expanded twice."
            )


@contextmanager
def engine_settings(budget: PixelBudget, images: int) -> Iterator[None]:
    """Within this context, an engine that TRL colocates gets the run's pixel budget and loads safetensors only.

    `images` is the largest number of images in a conversation.
    """
    from trl.generation import vllm_generation

    module: Any = vllm_generation  # LLM is no public name of it
    stock = getattr(module, "LLM", None)  # missing where vLLM is not installed; TRL raises its own error
    module.LLM = stock and partial(
        stock,
        load_format="safetensors",
        mm_processor_kwargs={"min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels},
        limit_mm_per_prompt={"image": images, "video": 0},
    )
    try:
        yield
    finally:
        module.LLM = stock


class VLLMEngine:
    """Samples the next turn of a batch with TRL's vLLM backend.

    Args:
        generation: TRL's `VLLMGeneration`.
        tokens: how turns are written as ids.
        tower_changes: whether training changes the vision tower, and with it the embeddings of images.
        seconds: time limit of one call to a server.
    """

    def __init__(self, generation: Any, tokens: TurnTokens, tower_changes: bool, seconds: float) -> None:
        self.generation, self.tokens, self.tower_changes = generation, tokens, tower_changes
        self.colocated = generation.mode == "colocate"
        if not self.colocated and getattr(generation, "vllm_client", None) is not None:
            limit_calls(generation.vllm_client.session, seconds)
            check_features(generation.vllm_client, tokens)

    def sync(self) -> None:
        """Push the policy's weights to vLLM, and drop everything that was computed with the old ones.

        Raises:
            ConnectionError: a server refused or did not answer in time; the message includes the server's own.
            RuntimeError: a server cannot empty its encoder cache; the message says how to start it.
        """
        try:
            self.generation.sync_weights()
        except Exception as error:
            if self.colocated:
                raise
            raise ConnectionError(f"The vLLM server failed while weights were pushed: {error}") from error
        if not self.tower_changes:
            return
        if self.colocated:
            self.generation.llm.llm_engine.reset_encoder_cache()
        elif getattr(self.generation, "vllm_client", None) is not None:
            client = self.generation.vllm_client
            reply = client.session.post(f"{client.base_url}/reset_encoder_cache")
            if reply.status_code != 200:
                raise RuntimeError(
                    f"The vLLM server at {client.base_url} cannot empty its encoder cache (status {reply.status_code}), so it "
                    "would answer with image embeddings of old weights. Start it with VLLM_SERVER_DEV_MODE=1, or set "
                    "freeze_vision_tower: true."
                )

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Keep a colocated engine awake over all turns of an episode."""
        generation = self.generation
        if not (self.colocated and generation.enable_sleep_mode):
            yield
            return
        if generation._llm_weights_sleeping:
            self.sync()
        generation.llm.wake_up(tags=["kv_cache"])
        generation.enable_sleep_mode = False
        try:
            yield
        finally:
            generation.enable_sleep_mode = True
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True

    def speak(
        self, ids: list[list[int]], images: list[list[Any]], limit: int, num_generations: int, greedy: bool = False
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sampled ids and their log-probabilities.

        Args:
            ids: whole conversations, placeholders expanded.
            images: images of each conversation, in order.
            limit: the largest number of new tokens.
            num_generations: how many consecutive rows share a prompt (a server samples those in one request).
            greedy: decode greedily, whatever the temperature of the training is.

        Raises:
            RuntimeError: vLLM's prompt differs from ours.
            ConnectionError: a server did not answer; the message includes the server's own.
        """
        self.generation.max_completion_length = limit
        temperature = getattr(self.generation, "temperature", None)
        if greedy:
            self.generation.temperature = 0.0
        prompts = [one_placeholder(row, self.tokens.image_token_id) for row in ids] if self.colocated else ids
        try:
            seen, sampled, logprobs, _ = self.generation.generate(prompts, images, num_generations)
        except Exception as error:  # TRL raises a bare Exception with the server's words
            if self.colocated or isinstance(error, RuntimeError):
                raise
            raise ConnectionError(f"The vLLM server failed while generating: {error}") from error
        finally:
            if greedy:
                self.generation.temperature = temperature
        check_prompts(seen, ids)
        return [list(row) for row in sampled], [[_number(token[0]) for token in row] for row in logprobs]


class ServerOfProcess:
    """The vLLM server of TRL's backend, asked by each process for its own rollouts, from any thread.

    `VLLMGeneration.generate` gathers the prompts of all processes first, which only their main threads can do together.

    Args:
        generation: TRL's `VLLMGeneration` in server mode.
        tokens: how turns are written as ids.
        seconds: time limit of one call.
    """

    def __init__(self, generation: Any, tokens: TurnTokens, seconds: float) -> None:
        self.generation = generation
        self.client: Any = getattr(generation, "vllm_client", None)  # the main process has one
        if self.client is None:
            from trl.generation.vllm_client import VLLMClient

            url = generation.server_base_url or f"http://{generation.server_host}:{generation.server_port}"
            self.client = VLLMClient(base_url=url, connection_timeout=generation.server_timeout)
            limit_calls(self.client.session, seconds)
            check_features(self.client, tokens)

    def speak(
        self, ids: list[list[int]], images: list[list[Any]], limit: int, num_generations: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sampled ids and their log-probabilities; arguments and errors as those of `VLLMEngine.speak`."""
        of, each = self.generation, num_generations
        try:
            features = self.client.image_features(images[::each])
            placed = [of._place_features(found, row) for found, row in zip(features, ids[::each], strict=True)]
            reply = self.client.generate(
                prompts=ids[::each], features=placed, n=each, repetition_penalty=of.repetition_penalty, temperature=of.temperature,
                top_p=of.top_p, top_k=of.top_k, min_p=of.min_p or 0.0, max_tokens=limit, logprobs=of.logprobs,
                structured_outputs_regex=of.structured_outputs_regex, generation_kwargs=of.generation_kwargs,
            )  # fmt: skip
        except RuntimeError:
            raise
        except Exception as error:
            raise ConnectionError(f"The vLLM server failed while generating: {error}") from error
        check_prompts(reply["prompt_ids"], ids[::each])
        return [list(row) for row in reply["completion_ids"]], [
            [_number(token[0]) for token in row] for row in reply["logprobs"]
        ]


def _number(logprob: float | None) -> float:
    """A log-probability as a float. TRL's clients give None for a non-finite one; NaN makes the step be skipped."""
    return math.nan if logprob is None else float(logprob)


def check_features(client: Any, tokens: TurnTokens) -> None:
    """Make a client compare the image sizes that its server prepared with ours, which TRL takes for granted.

    Raises:
        RuntimeError: (when images are sent) they differ; the message says how to start the server.
    """
    prepare = client.image_features

    def checked(images: list[Any], *args: Any, **kwargs: Any) -> Any:
        features = prepare(images, *args, **kwargs)
        for row, found in zip(images, features):
            theirs = [place["length"] for place in found["mm_placeholders"]["image"]] if found else []
            ours = [tokens.image_tokens(image) for image in row or []]
            if theirs != ours:
                size = tokens.processor.image_processor.size
                raise RuntimeError(
                    f"The vLLM server turns a prompt's images into {theirs} tokens instead of {ours}, because its pixel "
                    f'budget differs. Start the server with --mm-processor-kwargs \'{{"min_pixels": {size["shortest_edge"]}, '
                    f'"max_pixels": {size["longest_edge"]}}}\'.'
                )
        return features

    client.image_features = checked


def limit_calls(session: Any, seconds: float) -> None:
    """Give every call of a `requests` session a time limit; TRL's have none, and a dead server would hang the run."""
    send = session.send

    def limited(request: Any, **kwargs: Any) -> Any:
        kwargs["timeout"] = kwargs.get("timeout") or seconds
        return send(request, **kwargs)

    session.send = limited

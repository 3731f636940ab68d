"""Stands in for TRL's connection to a vLLM server: says what is scripted, with the log-probabilities of the weights that it was given.

It answers both ways of asking, TRL's for all processes (`generate` of the generation) and each process's own (of the client).
"""

import copy
from types import SimpleNamespace

import torch
from accelerate import PartialState
from support import Script

from mgpo.policies.tokens import TurnTokens


class StandIn:
    """TRL's `VLLMGeneration` in server mode. `install(monkeypatch, turns)` gives a list to which the next trainer adds its own.

    Attributes:
        asked: for each request: the turn (from 0), the number of prompts, and which push of weights answered it.
        before_answering: called with each such entry, in the thread that asks.
    """

    mode, enable_sleep_mode, temperature, top_p, top_k, min_p = "server", False, 1.0, 1.0, 0, None
    repetition_penalty, logprobs, structured_outputs_regex, base_url = 1.0, 0, None, "http://stand.in"

    def __init__(self, turns, model, processing_class, generation_kwargs, **_):
        self.turns, self.model, self.generation_kwargs = turns, model, generation_kwargs
        self.tokens = TurnTokens(copy.deepcopy(processing_class), None)
        self.session = SimpleNamespace(send=None)
        self.vllm_client = Client(self)
        self.asked, self.pushes = [], 0
        self.weights = copy.deepcopy(model).eval()  # before the trainer changes how the model computes
        vars(self.weights).pop("forward", None)  # accelerate's, which would call the model that was copied
        self.before_answering = lambda entry: None

    @classmethod
    def install(cls, monkeypatch, turns):
        made = []

        def build(**settings):
            made.append(cls(turns, **settings))
            return made[-1]

        monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", build)
        return made

    def sync_weights(self):
        self.weights.load_state_dict(self.model.state_dict())
        self.pushes += 1

    def _place_features(self, features, ids):
        assert ids.count(self.tokens.image_token_id) == sum(
            place["length"] for place in features["mm_placeholders"]["image"]
        )
        return features

    def generate(self, prompts, images, num_generations):
        features = self.vllm_client.image_features(images[::num_generations])
        said = self.vllm_client.generate(prompts[::num_generations], features, num_generations)
        return prompts, said["completion_ids"], said["logprobs"], None


class Client:
    """TRL's `VLLMClient`, as far as it is used."""

    def __init__(self, generation):
        self.of, self.session, self.base_url = generation, generation.session, generation.base_url

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def image_features(self, images):
        length = self.of.tokens.image_tokens
        return [
            {"mm_placeholders": {"image": [{"length": length(image)} for image in row]}, "images": row}
            for row in images
        ]

    def generate(self, prompts, features, n, **_):
        turn = len(features[0]["images"]) - 1
        entry = (turn, len(prompts), self.of.pushes)
        self.of.before_answering(entry)
        self.of.asked.append(entry)
        said, script = [], self.of.turns[turn]
        here = PartialState().process_index * len(prompts) * n  # the script is by place in the global batch
        for number, (ids, found) in enumerate(((p, f) for p, f in zip(prompts, features) for _ in range(n)), here):
            text = Script.ids(self.of.tokens, script[number % len(script)])
            said.append((text, self._log_probs(ids, found["images"], text)))
        return {
            "prompt_ids": prompts, "completion_ids": [text for text, _ in said], "logprobs": [scores for _, scores in said]
        }  # fmt: skip

    @torch.no_grad()
    def _log_probs(self, ids, images, said):
        tokens, whole = self.of.tokens, torch.tensor([ids + said])
        logits = self.of.weights(input_ids=whole, **tokens.types(whole), **tokens.pixels(images)).logits
        scores = logits[0, len(ids) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(said)[:, None])
        return scores.tolist()

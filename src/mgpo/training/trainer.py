"""MGPO on TRL: a `GRPOTrainer` with an environment that answers in user turns.

    python -m mgpo train --config recipes/tiny_mgpo.yaml

The class is thin on purpose: TRL samples, scores, normalises and updates, and this class defines the turns. `README.md`
beside this file lists all that is overridden. These four matter most (`tests/test_seam.py` fails if an upgrade changes them):

- `_generate_and_score_completions`: opens an `Episode` per rollout; each image is opened once per question.
- `_tokenize_prompts`: the first user turn as token ids.
- `_generate_single_turn`: a token limit per turn.
- `_tool_call_loop`: the environment. It returns what TRL needs to train on several turns: a mask of the tokens that the
  model sampled (1) and those that it did not (0), and the images of later turns.

TRL runs that loop only for trainers with tools. This one has none, so `self.tools` holds a marker. It is not shown to
the model, because `_tokenize_prompts` renders the prompts without a tool schema. Methods of a single turn take the same
path: their episodes end in the first round of the loop.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import strip_images_from_messages

from mgpo.config import MGPOConfig
from mgpo.method.episode import Episode
from mgpo.method.metrics import episode_metrics
from mgpo.method.rewards import accuracy_reward
from mgpo.policies.families import form_of
from mgpo.policies.loading import load_processor, model_type_of, own_budget, set_budget
from mgpo.policies.names import resolve
from mgpo.policies.pictures import Tiles
from mgpo.policies.pixel_memory import pixels_once
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import TurnLimits, limit_of
from mgpo.policies.vllm_engine import banned_words, engine_settings
from mgpo.runs.display import show
from mgpo.runs.finite import FiniteSteps
from mgpo.runs.folder import keep_settings
from mgpo.runs.log import RunLog
from mgpo.runs.resuming import Resuming
from mgpo.runs.trajectories import save_trajectories
from mgpo.training.ahead import PicturesAhead
from mgpo.training.extra_rewards import load_dotted
from mgpo.training.precision import refuse_rounded_weights
from mgpo.training.rollout_pictures import report_pictures
from mgpo.training.rollouts import first_turns, later_turns, open_batch
from mgpo.training.rollouts_ahead import RolloutsAhead, Sampled
from mgpo.training.sharing import SharedPrefix
from mgpo.training.turns import PolicyInTraining, Rollout
from mgpo.training.vllm_sampling import VLLMSampling
from mgpo.training.weights import freeze_vision_tower, leave_out_router_loss, restore_float32_adapters

ASKED_WITH = (
    "method", "max_turns", "crop_frame", "coordinates", "min_pixels", "max_pixels", "min_box_side", "max_box_aspect",
    "max_grounding_tokens", "max_answer_tokens", "chat_template_kwargs",
)  # fmt: skip
"""Settings with which a trained model is to be asked."""


def _environment() -> None:
    """Makes TRL run `_tool_call_loop`; it is never called and never shown to the model."""


class MGPOTrainer(Resuming, GRPOTrainer):
    """Trains a policy to look twice.

    Args:
        model: `mgpo-tiny`, a folder, a hub id or a loaded model.
        args: settings; see `MGPOConfig`.
        train_dataset: rows with `image`, `question`, `choices`, `answer` and optionally `gold_boxes`, `category`, `id`
            (see `mgpo.method.question.Question`).
        processing_class: the model's processor; loaded from `model` if missing.
        kwargs: passed on to `GRPOTrainer` (`eval_dataset`, `peft_config`, `callbacks`, `optimizers`, ...).

    Raises:
        ValueError: the longest possible episode does not fit; the message says what would.
    """

    def __init__(
        self, model: Any, args: MGPOConfig, train_dataset: Any, processing_class: Any = None, **kwargs: Any
    ) -> None:
        name = model if isinstance(model, str) else model.config._name_or_path
        processor = processing_class or load_processor(name)
        model_type = model_type_of(model)
        self.protocol = args.protocol(own_budget(name, processor), form_of(model_type))
        processor.tokenizer.padding_side = "left"  # TRL sets it only on a processor that it loads itself
        set_budget(processor, self.protocol.budget)
        self.turn_tokens = TurnTokens(processor, args.chat_template_kwargs)
        args.fit_completion(self.protocol)
        args.check_vllm_length(self.protocol)
        args.min_pixels, args.max_pixels = self.protocol.budget.min_pixels, self.protocol.budget.max_pixels
        args.coordinates = str(self.protocol.box.form)
        banned = (
            {"bad_words": banned_words(self.turn_tokens)}
            if args.use_vllm
            else {"suppress_tokens": self.turn_tokens.banned_ids()}
        )
        args.model_init_kwargs = {"use_safetensors": True} | (args.model_init_kwargs or {})
        args.generation_kwargs = banned | (args.generation_kwargs or {})
        self.finite = FiniteSteps(self)
        extra = [self.finite.watched(load_dotted(path), args.reward_seconds) for path in args.extra_reward_funcs]
        self._episodes: list[Episode] = []
        self._rewards: list[float] = []
        self._sampled: Sampled | None = None
        self.turn_limits = TurnLimits(args.max_grounding_tokens, args.max_answer_tokens)
        self._turn_limit, self._is_last_turn = args.max_grounding_tokens, False
        with (
            engine_settings(self.protocol.budget, args.max_images + self.protocol.turns - 1)
            if args.use_vllm
            else nullcontext()
        ):
            super().__init__(
                model=resolve(model) if isinstance(model, str) else model,
                reward_funcs=[accuracy_reward, *extra],
                args=args,
                train_dataset=train_dataset,
                processing_class=processor,
                **kwargs,
            )
        self.tools = [_environment]
        end = self.turn_tokens.turn_end_id  # TRL knows only the ends that generation_config.json lists
        if not self.use_vllm and end not in self.eos_token_ids:
            self.generation_config.eos_token_id = self.eos_token_ids = [*self.eos_token_ids, end]
        self._image_pad_token_id = self.turn_tokens.image_token_id  # TRL looks for two names, and takes the first
        args.fit_context(self.protocol, getattr(self.model.config.get_text_config(), "max_position_embeddings", None))
        if args.freeze_vision_tower:
            freeze_vision_tower(self.model)
        restore_float32_adapters(self.model)
        leave_out_router_loss(self)
        refuse_rounded_weights(self, args.allow_low_precision_weights)
        # dr_grpo divides by this. TRL also counts the crop and the environment's texts, which are not sampled.
        self.max_completion_length = args.spoken_tokens(self.protocol)
        self.pictures = PicturesAhead(self.protocol.budget, self.protocol.turns > 1, args.decoded_bytes)
        self.sharing = SharedPrefix(self)
        self.add_callback(RunLog())
        self.display = show(self)
        self.vllm_sampling = VLLMSampling(self) if self.use_vllm else None
        self.rollouts_ahead = RolloutsAhead(self) if args.rollouts_ahead else None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple:
        """Called before each step for its batches; one more is looked at, to open its photographs during the step."""
        last = self.state.global_step + 1 >= self.state.max_steps
        return super().get_batch_samples(self.pictures.look(epoch_iterator, last), num_batches, device)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Open the episodes, let TRL generate and score, then check the images and save trajectories."""
        self._sampled = None
        if self.rollouts_ahead is not None and self.model.training:
            self._sampled = self.rollouts_ahead.take(inputs)
            batch = self._sampled.batch
        else:
            if self.rollouts_ahead is not None:
                self.rollouts_ahead.wait()  # an evaluation has weights of its own, and no process may be sampling then
                self.accelerator.wait_for_everyone()
            batch = open_batch(inputs, self.pictures, self.protocol, self.args.check_images)
        self._episodes = batch.episodes
        with self._pixels(), self.finite.sampling():
            output = super()._generate_and_score_completions(batch.rows)
        self.finite.check(output, self._episodes)
        self._check_images(output)
        if self.vllm_sampling is not None and self.model.training:  # for vLLM, a greedy token's probability is 1
            self.vllm_sampling.compare(output)
        self._save_trajectories()
        return output

    def _pixels(self) -> Any:
        """The context in which TRL processes the images of a batch."""
        pictures = self.turn_tokens.pictures
        if isinstance(pictures, Tiles):
            return pixels_once(self.processing_class, pictures)
        return pixels_once(self.processing_class) if self.args.shared_prefix else nullcontext()

    def _check_images(self, output: dict[str, Any]) -> None:
        """Check that the batch holds every image that was shown, whole: TRL would silently train without images."""
        for episode, prompt, said in zip(self._episodes, output["prompt_ids"], output["completion_ids"], strict=True):
            images = [image for turn in episode.user_turns for image in turn.images]
            self.turn_tokens.check([*prompt.tolist(), *said.tolist()], images, episode.question.id)
        if "pixel_values" not in output:
            raise RuntimeError("TRL dropped the images of this batch.")

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """Log metrics, then let TRL compute rewards.

        By now every episode has ended, and TRL will average what is logged over all processes.
        """
        for episode in self._episodes:
            for name, value in episode_metrics(episode).items():
                self._log_metric(name, value)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        own = rewards[self.accelerator.process_index * len(prompts) :][: len(prompts)]  # of all processes
        self._rewards = (own * self.reward_weights.to(own.device)).nansum(1).tolist()
        # TRL gathers this list on every process for its log; with the overviews it would take 1.5 GB per rank at 512
        # questions.
        prompts[:] = [strip_images_from_messages(prompt) for prompt in prompts]
        return rewards

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], list[list[Any]], dict[str, Any]]:
        """First user turns as ids, their images, and the pixel values (processed once per unique image)."""
        if self._sampled is not None:
            return self._sampled.prompt_ids, self._sampled.images, {}
        prompt_ids, images = first_turns(self._episodes, self.turn_tokens, self.args.max_reply_tokens)
        return prompt_ids, images, self._vision_fields(prompt_ids, images)

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> tuple:
        """Generate with this turn's limit instead of the whole episode's: by vLLM, with shared prompts, or as TRL does.

        Evaluation decodes greedily, as `mgpo eval` does: TRL would sample, and so choose the best checkpoint by chance.
        """
        if self._sampled is not None:
            return self._sampled.first
        greedy = not self.model.training
        if self.vllm_sampling is not None:
            return self.vllm_sampling.next_turn(prompt_ids, images, self._turn_limit, num_generations, greedy)
        sampling = self.generation_config
        self.generation_config = copy.copy(sampling)
        self.generation_config.max_new_tokens = self._turn_limit
        if greedy:
            self.generation_config.do_sample = False
        try:
            if self.sharing.sampler is not None:
                return self.sharing.next_turn(prompt_ids, images, self._is_last_turn), None
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images=has_tool_images
            )
        finally:
            self.generation_config = sampling

    def _generate(self, prompts: list) -> Any:
        """Generate all turns, and tell TRL that the images came from the tool loop, those of the first turn too.

        Where none did, as in a single turn, TRL would render the prompt again and run the whole processor on it, whose tokens
        and pixels need not be those that were sampled from.
        """
        self._turn_limit = self.limit_of_turn(1)
        self._is_last_turn = self.protocol.turns == 1
        try:
            with self.vllm_sampling.engine.awake() if self.vllm_sampling is not None else nullcontext():
                *generated, images, _ = super()._generate(prompts)
                return *generated, images, images
        finally:
            self.sharing.forget()
            if self._sampled is None:
                self._log_metric("pictures/wait_time", self.pictures.release())

    def _tool_call_loop(
        self,
        prompts: Any,
        prompt_ids: Any,
        completion_ids: Any,
        completions: Any,
        logprobs: Any,
        images: Any,
        fields: Any,
    ) -> tuple:
        """Read the first turns and run the later ones, where TRL would call tools: the turn loop continues TRL's rollouts."""
        if self._sampled is not None:
            later, metrics = self._sampled.later, self._sampled.metrics
        else:
            names = [episode.question.id for episode in self._episodes]
            given = logprobs or [None] * len(names)
            begun = zip(names, prompt_ids, completion_ids, given, completions, images, strict=True)
            rollouts = [Rollout(*row) for row in begun]
            policy = PolicyInTraining(
                rollouts, self.turn_tokens, self.eos_token_ids, self._speak_again, self.protocol.turns,
                self.args.max_reply_tokens,
            )  # fmt: skip
            later, metrics = later_turns(self._episodes, rollouts, policy, self.turn_limits, collective=True)
        for name, value in metrics:
            self._log_metric(name, value)
        return later

    def limit_of_turn(self, number: int) -> int:
        """The limit of new tokens of the model's turn `number`, counted from 1."""
        return limit_of(self.protocol, number, self.turn_limits)

    def _speak_again(self, ids: list[list[int]], images: list[list[Any]], limit: int, last: bool) -> tuple:
        """One more turn of the model for all rollouts, even ended ones: a call is collective under ZeRO-3 and FSDP."""
        self._turn_limit, self._is_last_turn = limit, last
        return self._generate_single_turn(ids, images, self._vision_fields(ids, images), 1)

    def _vision_fields(self, ids: list[list[int]], images: list[list[Any]]) -> dict[str, Any]:
        """Pixel values of all images in order, and the token types; empty for engines that take images."""
        if self.sharing.sampler is not None or self.vllm_sampling is not None:
            return {}
        flat = [image for row in images for image in row]
        image_id = self.turn_tokens.image_token_id
        types = self.turn_tokens.pictures.types
        return self.turn_tokens.pixels(flat) | (
            {} if types is None else {types: [[int(token == image_id) for token in row] for row in ids]}
        )

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        return self.sharing.part(generation_batch) if self.sharing.splits else super()._prepare_inputs(generation_batch)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        # TRL gives them this name for every family without a grid, even where the model takes none.
        if kwargs.get("token_type_ids") is not None:
            types, name = kwargs.pop("token_type_ids"), self.turn_tokens.pictures.types
            kwargs |= {} if name is None else {name: types}
        share = self.sharing.on and kwargs.get("pixel_values") is not None
        compute = self.sharing.log_probs if share else super()._get_per_token_logps_and_entropies
        return compute(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        with self.sharing.updating(inputs):
            loss = super()._compute_loss(model, inputs)
        self.finite.see_loss(inputs, loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called by `Trainer` when the gradients of a step are complete, right before the optimizer applies them."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.finite.before_optimizer(model, norm)
        return norm

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as TRL does, and write the settings that the model is to be asked with beside the weights.

        `GroundedVQA`, `mgpo eval` and `mgpo serve` read them there. `mgpo train` has already written all settings; a
        trainer that is used from Python has not.
        """
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # with DeepSpeed, every process is here
            return
        run, asked = Path(self.args.output_dir), {name: getattr(self.args, name) for name in ASKED_WITH}
        keep_settings(run, asked)
        if output_dir is not None and not Path(output_dir).resolve().is_relative_to(run.resolve()):
            keep_settings(Path(output_dir), asked)

    def _save_trajectories(self) -> None:
        """Save the rollouts of the first step, of every N-th after it and of the last, under the first step that learns from them."""
        every, before = self.args.trajectories_every, self.state.global_step
        if not (every and self.model.training and self.accelerator.is_main_process):
            return
        parts, each = self.args.steps_per_generation * self.num_iterations, self.args.gradient_accumulation_steps
        steps = max(1, -(-parts // each))  # that learn from these rollouts
        if -before % every >= steps and before + steps < self.state.max_steps:
            return
        chosen = self._episodes[:: self.num_generations][: self.args.trajectories_kept]
        file = Path(self.args.output_dir) / "trajectories" / f"step_{before + 1:06d}.jsonl"
        save_trajectories(chosen, file, before + 1)
        report_pictures(self.callback_handler.callbacks, chosen, self._rewards[:: self.num_generations], before + 1)

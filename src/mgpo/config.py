"""Settings of a run: flat fields, as in TRL; a YAML recipe or the command line sets them."""

from __future__ import annotations

import copy
from bisect import bisect_right
from dataclasses import dataclass, field, replace

from trl import GRPOConfig

from mgpo.images.imaging import PixelBudget
from mgpo.images.photograph import DECODED_BYTES
from mgpo.method.boxes import BoxForm
from mgpo.method.groups import ignore_groups, refuse_small_groups, refuse_split_evaluation, refuse_split_groups
from mgpo.method.methods import refuse_unknown_method
from mgpo.method.protocol import CropFrame, Protocol
from mgpo.method.question import MAX_IMAGES, Question

ON_BAD_ROW = ("fail", "skip")


@dataclass
class DataArguments:
    """Which model to train, and on which questions.

    Attributes are flat so that a recipe reads like a TRL configuration.
    """

    model_name_or_path: str = field(default="mgpo-tiny", metadata={"help": "mgpo-tiny, a folder, or a hub id."})
    dtype: str = field(default="auto", metadata={"help": "Weights: auto, float32, bfloat16."})
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flash_attention_2, ..."})
    dataset_name: str = field(default="needle", metadata={"help": "needle, a JSONL file, a folder, or a hub id."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_seed: int = field(default=0, metadata={"help": "needle: seed of the questions."})
    dataset_size: int = field(default=2000, metadata={"help": "needle: number of questions."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on, with eval_strategy."})
    dataset_test_size: int = field(default=100, metadata={"help": "Maximum number of questions to evaluate on."})
    needle_megapixels: float | None = field(
        default=None, metadata={"help": "needle: canvas area in megapixels, if not the split's own."}
    )
    needle_backgrounds: str | None = field(default=None, metadata={"help": "needle: folder of photographs to draw on."})
    on_bad_row: str = field(
        default="fail",
        metadata={
            "help": "What to do with rows that cannot be trained on: fail before the first step, or skip and list them."
        },
    )
    check_images: bool = field(
        default=True, metadata={"help": "Decode every image before the first step; false: read headers only."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA alpha."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: str = field(
        default=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        metadata={"help": "Regular expression of the modules that get adapters."},
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "QLoRA: load the language model's weights in 4 bits (needs use_peft and mgpo[qlora])."},
    )

    def __post_init__(self) -> None:
        if self.load_in_4bit and not self.use_peft:
            raise ValueError(
                "load_in_4bit: weights in 4 bits cannot be trained, only adapters beside them. Set use_peft: true, or leave "
                "load_in_4bit out."
            )
        if self.on_bad_row not in ON_BAD_ROW:
            raise ValueError(f"on_bad_row={self.on_bad_row!r} is unknown. Choose one of: {', '.join(ON_BAD_ROW)}.")


@dataclass
class MGPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` with the settings of the method.

    `max_completion_length` is computed from the limits of the turns unless it is set; if it is set too small for the
    longest possible episode, the trainer refuses to start and says what would fit.
    """

    method: str = field(
        default="mgpo",
        metadata={"help": "mgpo (two turns), grpo (one turn: box and answer), direct (one turn: answer) or sft."},
    )
    max_turns: int = field(default=2, metadata={"help": "K: maximum number of model turns per rollout."})
    crop_frame: str = field(
        default="latest", metadata={"help": "K > 2: the image that a box refers to, latest or original."}
    )
    max_images: int = field(default=1, metadata={"help": "Most images that one question shows, up to 8."})
    min_pixels: int | None = field(default=None, metadata={"help": "Pixel budget: smaller images are enlarged."})
    max_pixels: int | None = field(default=None, metadata={"help": "Pixel budget: larger images are shrunk."})
    min_box_side: float = field(
        default=28, metadata={"help": "Both sides of a box must be longer than this, in input pixels."}
    )
    max_box_aspect: float = field(
        default=100, metadata={"help": "A box's aspect ratio (long side over short side) must be below this."}
    )
    coordinates: str = field(
        default="auto",
        metadata={
            "help": "How boxes are written: auto (by model family), or a unit (absolute, relative_1000, relative_1), "
            "optionally with an order (xyxy, yxyx) and a JSON key: 'relative_1000 yxyx box_2d'."
        },
    )
    max_grounding_tokens: int = field(default=128, metadata={"help": "Token limit of a turn that names a region."})
    max_answer_tokens: int = field(default=512, metadata={"help": "Token limit of the last turn."})
    max_reply_tokens: int = field(default=640, metadata={"help": "Token limit of the text of one user turn."})
    freeze_vision_tower: bool = field(default=False, metadata={"help": "Train the language model only."})
    allow_low_precision_weights: bool = field(
        default=False,
        metadata={"help": "Train bfloat16 weights without float32 copies, even though small updates are rounded away."},
    )
    shared_prefix: bool = field(
        default=True,
        metadata={"help": "Compute a prompt once for all its rollouts; false: once per rollout, as TRL does."},
    )
    max_logprob_difference: float = field(
        default=0.2,
        metadata={
            "help": "vLLM: stop if sampled and recomputed log-probabilities of a turn differ by more than this on average."
        },
    )
    decoded_bytes: int = field(
        default=DECODED_BYTES,
        metadata={
            "help": "Most memory of decoded photographs per process, in bytes; those of the next step are decoded ahead "
            "within it. The default holds sixteen of 33 megapixels."
        },
    )
    rollouts_ahead: bool = field(
        default=False,
        metadata={
            "help": "vLLM server: sample the next batch while the model is updated from this one. Rollouts are then one batch "
            "older than the weights; TRL's importance sampling corrects for it."
        },
    )
    vllm_importance_sampling_mode: str | None = field(
        default=None,
        metadata={
            "help": "vLLM: how the ratio of the model's probability to the sampled one corrects the loss. Default: sequence_mask, as in "
            "TRL; token_truncate with rollouts_ahead."
        },
    )
    vllm_call_seconds: float = field(default=600.0, metadata={"help": "vLLM server: time limit of one call."})
    extra_reward_funcs: list[str] = field(
        default_factory=list, metadata={"help": "Additional reward functions in TRL's convention, as dotted paths."}
    )
    reward_seconds: float = field(
        default=120.0, metadata={"help": "Time limit of one call of an extra reward function."}
    )
    max_nonfinite_steps: int = field(
        default=5, metadata={"help": "Stop after this many consecutive steps with non-finite numbers."}
    )
    trajectories_every: int = field(
        default=20,
        metadata={
            "help": "Save rollouts, and report pictures of some, in the first step, every N steps after it and in the last; 0: never."
        },
    )
    trajectories_kept: int = field(default=8, metadata={"help": "Number of rollouts to save each time."})
    log_multimodal: bool = field(default=False, metadata={"help": "Gather all images of a batch for TRL's log."})
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Tokens after the first user turn; computed unless it is set."}
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "trackio, wandb, tensorboard or none; they get pictures of rollouts too."}
    )
    bf16: bool | None = field(default=False, metadata={"help": "Autocast to bfloat16."})

    def __post_init__(self) -> None:
        refuse_unknown_method(self.method)
        CropFrame(self.crop_frame)
        if not 1 <= self.max_images <= MAX_IMAGES:
            raise ValueError(f"max_images={self.max_images}: a question shows 1 to {MAX_IMAGES} images.")
        if not (self.reward_seconds > 0 and self.max_nonfinite_steps > 0 and self.decoded_bytes > 0):
            raise ValueError(
                "reward_seconds, max_nonfinite_steps and decoded_bytes must be greater than 0, "
                f"but they are {self.reward_seconds}, {self.max_nonfinite_steps} and {self.decoded_bytes}."
            )
        loading = self.model_init_kwargs if isinstance(self.model_init_kwargs, dict) else {}
        if self.trust_remote_code or loading.get("trust_remote_code") or loading.get("use_safetensors") is False:
            raise ValueError(
                "Leave trust_remote_code off and use_safetensors on: checkpoints that can run code are not loaded."
            )
        if self.rollouts_ahead and not (self.use_vllm and self.vllm_mode == "server"):
            raise ValueError(
                "rollouts_ahead needs a vLLM server: set use_vllm: true and vllm_mode: server, or leave it out."
            )
        if self.rollouts_ahead and not self.vllm_importance_sampling_correction:
            raise ValueError(
                "rollouts_ahead samples with older weights, so it needs vllm_importance_sampling_correction: true."
            )
        if self.vllm_importance_sampling_mode is None:
            # A mask leaves out the rollouts that the last update made likelier: those that it learned from.
            self.vllm_importance_sampling_mode = "token_truncate" if self.rollouts_ahead else "sequence_mask"
        if self.max_completion_length is None:
            self.max_completion_length = 0
        refuse_small_groups(self)
        if self.method == "sft":
            ignore_groups(self)
        given = copy.copy(self)  # TRL fills in what is left out
        try:
            super().__post_init__()
        except ValueError as error:
            if "use_cpu" in str(error) and "bf16" in str(error):
                raise ValueError(
                    "These settings need a GPU (bf16), and none is found here. To try data and settings without one, take a model that a "
                    "CPU can train, e.g. --config tiny_mgpo, or set use_cpu: true and bf16: false."
                ) from error
            if "distributed_state" in vars(self):  # the number of processes is known
                refuse_split_groups(given, self.world_size)
                refuse_split_evaluation(given, self.world_size)
            raise
        served = self.steps_per_generation * self.num_iterations
        if self.rollouts_ahead and served > self.gradient_accumulation_steps:
            raise ValueError(
                f"rollouts_ahead overlaps the rollouts of one step with the update of another, but here a batch of rollouts serves "
                f"{served / self.gradient_accumulation_steps:g} updates (steps_per_generation x num_iterations over "
                "gradient_accumulation_steps). Set steps_per_generation to gradient_accumulation_steps, or leave rollouts_ahead out."
            )

    def protocol(self, own_budget: PixelBudget, own_form: BoxForm | None) -> Protocol:
        """The turn protocol.

        Args:
            own_budget, own_form: used where the settings say nothing (`mgpo.policies.loading.own_budget`,
                `mgpo.policies.families.form_of`).
        """
        return Protocol.from_settings(vars(self), own_budget.changed(self.min_pixels, self.max_pixels), own_form)

    def episode_parts(self, protocol: Protocol) -> dict[str, int]:
        """Tokens of the longest episode, part by part (`Protocol.episode_parts`)."""
        return protocol.episode_parts(
            self.max_images, self.max_reply_tokens, self.max_grounding_tokens, self.max_answer_tokens
        )

    def check_images(self, question: Question) -> None:
        """Check that a question shows no more images than the longest episode was computed for.

        Raises:
            ValueError: it shows more; the message says what to set.
        """
        if len(question.images) > self.max_images:
            raise ValueError(
                f"Question {question.id!r} shows {len(question.images)} images, more than max_images={self.max_images}. Set "
                f"max_images to {len(question.images)}, or leave the question out."
            )

    def spoken_tokens(self, protocol: Protocol) -> int:
        """Largest number of tokens that the model itself may generate in an episode: the limits of its turns."""
        parts = self.episode_parts(protocol)
        return sum(parts.get(turn, 0) for turn in ("grounding", "turns in between", "answer"))

    def fit_completion(self, protocol: Protocol) -> None:
        """Compute `max_completion_length`, or check that the longest possible episode fits into the value that is set.

        Raises:
            ValueError: it does not fit; the message says what would.
        """
        needed = self.completion_tokens(protocol)
        if not self.max_completion_length:
            self.max_completion_length = needed
        elif self.max_completion_length < needed:
            parts = {k: v for k, v in self.episode_parts(protocol).items() if k not in ("question", "overview")}
            terms = " + ".join(f"{tokens} {name}" for name, tokens in parts.items())
            raise ValueError(
                f"max_completion_length={self.max_completion_length} cannot hold the longest episode: {terms} = {needed} "
                f"tokens. Set max_completion_length to {needed}, or leave it out to have it computed."
            )

    def fit_context(self, protocol: Protocol, most: int | None) -> None:
        """Check that the longest possible episode fits into the model's context of `most` tokens; None: not known.

        Raises:
            ValueError: it does not fit; the message says what would.
        """
        parts = self.episode_parts(protocol)
        needed = sum(parts.values())
        if most is None or needed <= most:
            return
        words = " + ".join(f"{tokens} {name}" for name, tokens in parts.items())
        fitting = self.changes_that_fit(protocol, most)
        what = ", or ".join(f"{name}={value}" for name, value in fitting.items())
        raise ValueError(
            f"The longest episode takes {needed} tokens ({words}), but the model's context is {most} tokens, {needed - most} too few. "
            + (
                f"The smallest change that fits: {what}."
                if what
                else "No single setting can make it fit: lower several of them."
            )
        )

    def changes_that_fit(self, protocol: Protocol, most: int) -> dict[str, int]:
        """Single settings with which the longest episode takes at most so many tokens, the smallest change first."""

        def needed(name: str, value: int) -> int:
            changed, budget = copy.copy(self), protocol.budget
            setattr(changed, name, value)
            if name == "max_pixels":
                budget = replace(budget, max_pixels=value, min_pixels=min(budget.min_pixels, value))
            return sum(changed.episode_parts(replace(protocol, budget=budget)).values())

        found = {}
        for name in ("max_pixels", "max_answer_tokens", "max_reply_tokens", "max_grounding_tokens"):
            pixels = name == "max_pixels"
            unit = protocol.budget.factor**2 if pixels else 1
            now = protocol.budget.max_pixels if pixels else getattr(self, name)
            least = max(4, -(-(self.min_pixels or 0) // unit)) if pixels else 1
            steps = range(least, now // unit + 1)
            fit = bisect_right(steps, most, key=lambda step: needed(name, step * unit))  # noqa: B023 (called at once)
            if fit:
                found[name] = (steps[fit - 1] * unit, now)
        return {k: value for k, (value, now) in sorted(found.items(), key=lambda item: -item[1][0] / item[1][1])}

    def check_vllm_length(self, protocol: Protocol) -> None:
        """Check that the longest episode fits into vLLM's context, where that is set.

        Raises:
            ValueError: it does not fit; the message says what would.
        """
        needed, held = sum(self.episode_parts(protocol).values()), self.vllm_max_model_length
        if self.use_vllm and self.vllm_mode == "colocate" and held is not None and held < needed:
            raise ValueError(
                f"vllm_max_model_length={held} cannot hold the longest episode of {needed} tokens. Set it to {needed} or more, "
                "or leave it out."
            )

    def completion_tokens(self, protocol: Protocol) -> int:
        """Largest number of tokens after the first user turn of an episode: all later turns, images included."""
        parts = self.episode_parts(protocol)
        return sum(parts.values()) - parts["question"] - parts["overview"]

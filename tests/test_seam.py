"""The contract with TRL: what `mgpo.training.trainer` overrides and relies on. An upgrade that changes it fails here, loudly."""

import inspect
from importlib.metadata import version

import pytest
from trl import GRPOTrainer

from mgpo.training.trainer import MGPOTrainer

LOOK = "Compare mgpo/training/trainer.py with trl/trainer/grpo_trainer.py before changing this test."


def test_trl_is_the_version_that_the_seam_was_read_in():
    assert version("trl").startswith("1.16."), f"TRL is {version('trl')}. Re-read every overridden method. {LOOK}"


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_tokenize_prompts", ["self", "prompts"]),
        (
            "_generate_single_turn",
            ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        ),
        ("_generate", ["self", "prompts"]),
        (
            "_tool_call_loop",
            [
                "self",
                "prompts",
                "prompt_ids",
                "completion_ids",
                "completions",
                "logprobs",
                "images",
                "multimodal_fields",
            ],
        ),
        ("_log_metric", ["self", "name", "value"]),
        ("log", ["self", "logs", "start_time"]),
    ],
)
def test_overridden_methods_have_the_signatures_we_override(method, parameters):
    assert hasattr(GRPOTrainer, method), f"TRL has no GRPOTrainer.{method} any more. {LOOK}"
    found = list(inspect.signature(getattr(GRPOTrainer, method)).parameters)
    assert found == parameters, f"GRPOTrainer.{method} takes {found}, we override {parameters}. {LOOK}"


def test_every_private_method_that_we_override_exists_upstream():
    """A method that TRL renames would silently become a new method of ours that nobody calls."""
    mixins = MGPOTrainer.__mro__[: MGPOTrainer.__mro__.index(GRPOTrainer)]
    ours = {
        name
        for part in mixins
        for name, member in vars(part).items()
        if inspect.isfunction(member) and f"super().{name}(" in inspect.getsource(member)
    }
    assert {
        "_generate_and_score_completions",
        "_generate_single_turn",
        "_generate",
        "_calculate_rewards",
        "_save_checkpoint",
        "_compute_loss",
        "_get_grad_norm",
    } <= ours
    replaced = {"_save_rng_state", "_load_rng_state"}
    gone = [name for name in ours | replaced if not hasattr(GRPOTrainer, name)]
    assert not gone, f"TRL lost {gone}. {LOOK}"


def test_generate_runs_the_tool_loop_only_with_tools_and_unpacks_seven_values():
    source = inspect.getsource(GRPOTrainer._generate)
    head, found, tail = source.partition(") = self._tool_call_loop(")
    assert found, f"GRPOTrainer._generate no longer unpacks _tool_call_loop. {LOOK}"
    gate, opened, names = head.rpartition("(\n")
    assert gate.rstrip().endswith("if self.tools:"), (
        f"_tool_call_loop is gated on something else than self.tools. {LOOK}"
    )
    values = [name.strip() for name in names.split(",") if name.strip()]
    expected = [
        "tool_mask", "completions", "completion_ids", "logprobs", "tool_call_count", "tool_failure_count", "tool_images",
    ]  # fmt: skip
    assert values == expected, f"_tool_call_loop now returns {values}. {LOOK}"
    assert "images = [(existing or []) + new for existing, new in zip(images, tool_images" in tail, (
        f"TRL no longer appends the loop's images to the prompt's. {LOOK}"
    )


def test_the_first_turn_is_generated_from_tokenize_prompts():
    source = inspect.getsource(GRPOTrainer._generate)
    assert "prompt_ids, images, multimodal_fields = self._tokenize_prompts(prompts)" in source, LOOK


def test_scoring_takes_tool_images_behind_the_gate_that_our_marker_opens():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    gate = "self.tools and any(imgs for imgs in tool_images)"
    assert source.count(gate) == 2, f"The gate {gate!r} stands {source.count(gate)} times, expected 2. {LOOK}"
    assert source.count("tool_images") == 3, (
        f"tool_images is more than a gate: ours hold the prompt's images too. {LOOK}"
    )
    assert inspect.getsource(GRPOTrainer._generate).rstrip().endswith("images, tool_images"), LOOK
    assert "has_mismatch" in source and 'forward_kwargs.pop("pixel_values", None)' in source, (
        f"TRL's silent image drop changed; the check for 'pixel_values' in MGPOTrainer may be void. {LOOK}"
    )
    assert source.index("self._calculate_rewards(") < source.index("self._pending_metrics.clear()"), (
        f"Metrics logged in _calculate_rewards are no longer flushed in the same batch. {LOOK}"
    )


def test_loss_multiplies_the_completion_mask_with_the_tool_mask():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'completion_mask if "tool_mask" not in inputs else completion_mask * inputs["tool_mask"]' in source, LOOK


def test_rollouts_are_shuffled_and_split_as_in_the_copy_that_keeps_questions_together():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    lines = [line.strip() for line in source.partition("generate_every = ")[2].splitlines()]
    assert [line for line in lines if line and not line.startswith("#")][:10] == [
        "self.args.steps_per_generation * self.num_iterations",
        "if self._step % generate_every == 0 or self._buffered_inputs is None:",
        "generation_batch = self._generate_and_score_completions(generation_batch)",
        "generation_batch = split_pixel_values_by_grid(generation_batch)",
        "generation_batch = shuffle_sequence_dict(generation_batch)",
        "generation_batches = split_tensor_dict(generation_batch, self.args.steps_per_generation)",
        "self._buffered_inputs = [unsplit_pixel_values_by_grid(batch) for batch in generation_batches]",
        "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]",
        "else:",
        "inputs = self._generate_and_score_completions(generation_batch)",
    ], f"TRL splits a batch of rollouts in another way: compare with SharedPrefix.part. {LOOK}"

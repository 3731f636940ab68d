"""Settings: what they refuse, and how many tokens the longest episode takes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CUT, Script, box, make_trainer, rollouts

from mgpo.config import MGPOConfig
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm
from mgpo.policies.turn_loop import limit_of


def test_max_completion_length_is_computed_or_refused(random_tiny, tmp_path, rows):
    trainer = make_trainer(random_tiny, tmp_path, rows)
    needed = 24 + 160 + (36 + 2) + 6
    assert trainer.args.max_completion_length == needed
    with pytest.raises(ValueError, match=rf"Set max_completion_length to {needed}"):
        make_trainer(random_tiny, tmp_path, rows, max_completion_length=needed - 1)
    make_trainer(random_tiny, tmp_path, rows, max_completion_length=needed)


def test_turns_in_between_may_take_as_much_as_an_answer(random_tiny, tmp_path, rows):
    """With K > 2 a turn in between may answer, so it has the larger of both limits: the proof must count it."""
    trainer = make_trainer(random_tiny, tmp_path, rows, max_turns=3, max_answer_tokens=30)
    assert limit_of(trainer.protocol, 2, trainer.turn_limits) == 30
    assert trainer.args.max_completion_length == 24 + 30 + 30 + 2 * (160 + 36 + 2)
    assert trainer.max_completion_length == 24 + 30 + 30, "dr_grpo divides by what the model may say"
    with pytest.raises(ValueError, match="24 grounding .*30 .*between.* 30 answer = 480 tokens"):
        make_trainer(random_tiny, tmp_path, rows, max_turns=3, max_answer_tokens=30, max_completion_length=479)


def test_single_turns_need_no_more_than_an_answer(random_tiny, tmp_path, rows):
    assert make_trainer(random_tiny, tmp_path, rows, method="grpo").max_completion_length == 6


def test_an_unknown_method_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="mgpo, grpo, direct, sft"):
        MGPOConfig(output_dir=str(tmp_path), method="ppo", use_cpu=True)


SETTINGS = st.fixed_dictionaries(
    {
        "max_turns": st.integers(2, 4), "max_grounding_tokens": st.integers(8, 300), "max_answer_tokens": st.integers(8, 900),
        "max_reply_tokens": st.integers(40, 900), "max_pixels": st.integers(4, 2000).map(lambda tokens: tokens * 784),
    }
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(changes=SETTINGS, most=st.integers(50, 6000))
def test_the_smallest_change_fits_and_no_smaller_one_does(changes, most, tmp_path_factory):
    def built(**more):
        config = MGPOConfig(
            output_dir=str(tmp_path_factory.getbasetemp()), use_cpu=True, min_pixels=784, **(changes | more)
        )
        return config, config.protocol(PixelBudget(784, 2000 * 784), BoxForm())

    config, protocol = built()
    needed = sum(config.episode_parts(protocol).values())
    if needed <= most:
        return config.fit_context(protocol, most)
    fitting = config.changes_that_fit(protocol, most)
    with pytest.raises(
        ValueError, match=f"takes {needed} tokens .* but the model's context is {most} tokens, {needed - most} too few"
    ) as told:
        config.fit_context(protocol, most)
    for number, (name, value) in enumerate(fitting.items()):
        assert f"{name}={value}" in str(told.value)
        unit = 784 if name == "max_pixels" else 1
        other, way = built(**{name: value})
        other.fit_context(way, most)
        other, way = built(**{name: value + unit})
        with pytest.raises(ValueError, match="but the model's context is"):
            other.fit_context(way, most)
        if number == 0:
            assert all(value / changes[name] >= v / changes[k] for k, v in fitting.items())


def test_the_longest_episode_takes_exactly_what_was_proved(random_tiny, tmp_path, rows, monkeypatch):
    """Every limit reached at once: turn 1 cut off, the largest images, the longest reply. Nothing is cut, one token less is refused."""
    square = [row | {"image": rows[2]["image"]} for row in rows[:1]]  # 560 x 560 px: the whole budget
    probe = make_trainer(random_tiny, tmp_path, square, per_device_train_batch_size=2)
    grounding = Script.ids(probe.turn_tokens, (box((20, 20, 120, 120)), CUT))
    answer = Script.ids(probe.turn_tokens, ("\\boxed{A", CUT))
    Script((((box((20, 20, 120, 120)), CUT),), (("\\boxed{A", CUT),))).install(monkeypatch)
    limits = {
        "max_grounding_tokens": len(grounding),
        "max_answer_tokens": len(answer),
        "per_device_train_batch_size": 2,
    }
    output = make_trainer(random_tiny, tmp_path, square, **limits)._generate_and_score_completions(rollouts(square, 1))
    reply = output["completion_mask"].sum(1).max().item() - len(grounding) - len(answer) - (36 + 2)
    exact = make_trainer(random_tiny, tmp_path, square, max_reply_tokens=reply + 2, **limits)
    output = exact._generate_and_score_completions(rollouts(square, 1))
    assert (
        output["completion_mask"].sum(1).tolist() == [exact.args.max_completion_length - 2] * 2
    )  # delimiters count as text too
    with pytest.raises(ValueError, match="max_reply_tokens"):
        short = make_trainer(random_tiny, tmp_path, square, max_reply_tokens=reply + 1, **limits)
        short._generate_and_score_completions(rollouts(square, 1))


def test_a_context_too_small_is_refused_when_the_trainer_is_built(random_tiny, tmp_path, rows):
    with pytest.raises(
        ValueError,
        match=r"but the model's context is 2048 tokens, \d+ too few. The smallest change that fits: max_answer",
    ):
        make_trainer(random_tiny, tmp_path, rows, max_answer_tokens=1900)


@pytest.mark.parametrize("method", ["mgpo", "grpo"])
def test_an_image_token_too_many_names_the_sample(method, random_tiny, tmp_path, rows, monkeypatch):
    """A model that smuggles a placeholder into its answer: TRL would drop all images of the batch and train on."""
    last = ("\\boxed{A}<|image_pad|>", "\\boxed{A}")
    Script((last,) if method == "grpo" else ((box((20, 20, 120, 120)),), last)).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, rows, method=method, max_answer_tokens=20)
    with pytest.raises(RuntimeError, match=r"Sample 'q0' holds \d+ image tokens for \d+ image features"):
        trainer._generate_and_score_completions(rollouts(rows))

"""Sampling over shared prompts says what the plain path says, and computes each prompt token once."""

import pytest
import torch
from peft import LoraConfig
from support import TALL, WIDE, make_trainer, rollouts

from mgpo.method.boxes import BoxStatus, Grounding
from mgpo.policies.shared.ranks import alone
from mgpo.policies.shared.sampler import _WithRoom

BOXES = (WIDE, None, TALL, (30, 60, 150, 110), None, WIDE)
LORA = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)


def sample(model, folder, rows, monkeypatch, shared, questions=3, each=2, **changes):
    """A trainer's greedy rollouts, with boxes read as `BOXES` in every turn that may name one."""
    read = []

    def grounding(text, frame, rules, numbered):
        read.append(text)
        box = BOXES[(len(read) - 1) % len(BOXES)]
        return Grounding(BoxStatus.VALID, box, frame.to_original(box)) if box else Grounding(BoxStatus.NO_JSON)

    monkeypatch.setattr("mgpo.method.episode.read_grounding", grounding)
    trainer = make_trainer(
        model,
        folder,
        rows,
        shared_prefix=shared,
        num_generations=each,
        per_device_train_batch_size=questions * each,
        **changes,
    )
    trainer.generation_config.do_sample = False
    return trainer, trainer._generate_and_score_completions(rollouts(rows, questions, each))


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "grpo"}, {"max_turns": 3}, {"freeze_vision_tower": True}, {"peft_config": LORA}],
    ids=["two turns", "one turn", "three turns", "frozen tower", "LoRA"],
)
def test_greedy_rollouts_are_those_of_the_plain_path(loud_tiny, tmp_path, rows, monkeypatch, changes):
    torch.manual_seed(0)  # LoRA's weights
    _, plain = sample(loud_tiny, tmp_path / "a", rows, monkeypatch, shared=False, **changes)
    torch.manual_seed(0)
    trainer, shared = sample(loud_tiny, tmp_path / "b", rows, monkeypatch, shared=True, **changes)
    assert trainer.sharing.sampler is not None
    for name in ("completion_ids", "completion_mask", "pixel_values"):
        assert torch.equal(shared[name], plain[name]), name


def test_an_episode_that_ends_early_changes_nothing_for_the_others(loud_tiny, tmp_path, rows, monkeypatch):
    """With four turns, some answer in their second; what they would say later is thrown away."""
    from mgpo.method import episode

    boxed, said, outputs = episode.boxed, [], []

    def eighth_answers(text):
        said.append(text)
        return "A" if len(said) == 8 else boxed(text)

    monkeypatch.setattr(episode, "boxed", eighth_answers)
    for shared in (False, True):
        said.clear()
        trainer, output = sample(loud_tiny, tmp_path / str(shared), rows, monkeypatch, shared, max_turns=4)
        turns = [len(episode.model_turns) for episode in trainer._episodes]
        assert turns.count(4) >= 3 and turns.count(2) >= 1
        outputs.append(output)
    assert torch.equal(outputs[0]["completion_ids"], outputs[1]["completion_ids"])


@pytest.mark.parametrize("turns", [2, 4])
def test_forwards_that_only_another_process_needs_change_nothing(loud_tiny, tmp_path, rows, monkeypatch, turns):
    """Each runs the tower too. With four turns all episodes have ended after two: nothing is new, and still all layers run."""
    monkeypatch.setattr("mgpo.method.episode.boxed", lambda text: "A")
    outputs, ran = [], []
    for number, calls in enumerate((alone, lambda needed: needed + 1)):
        monkeypatch.setattr("mgpo.training.sharing.calls_of", lambda accelerator, calls=calls: calls)
        trainer, output = sample(loud_tiny, tmp_path / str(number), rows, monkeypatch, True, max_turns=turns)
        outputs.append(output)
        tokens, towers = counted(trainer, monkeypatch), []
        trainer.model.model.visual.register_forward_hook(lambda *_, towers=towers: towers.append(1))
        trainer._generate_and_score_completions(rollouts(rows, 3, 2))
        ran.append((sum(count > 6 for count in tokens), len(towers)))
    assert ran == [(2, 2), (2 * turns, 2 * turns)]
    assert torch.equal(outputs[0]["completion_ids"], outputs[1]["completion_ids"])


@pytest.mark.parametrize("kwargs", [{"num_beams": 2}, {"cache_implementation": "static"}])
def test_sampling_that_wants_its_own_cache_gets_it(loud_tiny, tmp_path, rows, kwargs):
    assert make_trainer(loud_tiny, tmp_path, rows, generation_kwargs=kwargs).sharing.sampler is None


def test_other_families_are_left_alone(loud_tiny):
    from transformers import Qwen2_5_VLForConditionalGeneration

    from mgpo.policies.shared.models import use_packed_attention

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(loud_tiny)
    model.config.model_type = "internvl"
    with pytest.raises(ValueError, match="of internvl models cannot be shared yet"):
        use_packed_attention(model)


def counted(trainer, monkeypatch):
    """Tokens of every forward of the language model that is longer than one token."""
    tokens = []
    model = trainer.model.model.language_model
    model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    return tokens


def test_prompts_are_computed_once_and_later_turns_go_on(loud_tiny, tmp_path, rows, monkeypatch):
    trainer, _ = sample(loud_tiny, tmp_path, rows, monkeypatch, shared=True)
    tokens = counted(trainer, monkeypatch)
    output = trainer._generate_and_score_completions(rollouts(rows, 3, 2))
    filled = [count for count in tokens if count > 6]  # what is sampled comes in sixes
    prompts = output["prompt_mask"].sum(1)[::2] - 1  # the last token is where sampling begins
    context = (output["completion_mask"] * (1 - output["tool_mask"])).sum()
    assert filled[0] == prompts.sum()
    assert context - 6 <= filled[1] <= context + 6  # minus each reply's last token, plus each turn's last one
    assert len(filled) == 2


def test_equal_boxes_share_a_crop(loud_tiny, tmp_path, rows, monkeypatch):
    trainer, _ = sample(loud_tiny, tmp_path, rows, monkeypatch, shared=True, questions=1, each=6)
    crops = [episode.user_turns[1].image for episode in trainer._episodes]
    assert crops[0] is crops[5], "WIDE was named twice"
    assert crops[1] is trainer._episodes[1].user_turns[0].image


def test_what_is_remembered_ends_with_the_step(loud_tiny, tmp_path, rows, monkeypatch):
    """The next step's weights are others."""
    trainer, _ = sample(loud_tiny, tmp_path, rows, monkeypatch, shared=True)
    assert trainer.sharing.sampler._kept == []


def test_a_model_that_cannot_share_says_so_once(loud_tiny, tmp_path, rows, caplog):
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(loud_tiny, attn_implementation="eager")
    trainer = make_trainer(model, tmp_path, rows)
    assert trainer.sharing.sampler is None
    assert [r.message for r in caplog.records if "shared_prefix" in r.message][0].startswith(
        "shared_prefix: it needs attn_implementation: sdpa, flash_attention_2, flex_attention, but the model uses eager"
    )


def test_the_checkpoint_does_not_name_our_attention(loud_tiny, tmp_path, rows):
    trainer = make_trainer(loud_tiny, tmp_path, rows)
    assert trainer.sharing.on and trainer.model.config.get_text_config()._attn_implementation == "sdpa"
    trainer.save_model(str(tmp_path / "saved"))
    assert "mgpo" not in (tmp_path / "saved" / "config.json").read_text()


def test_a_sampled_token_does_not_copy_the_cache(loud_tiny, tmp_path, rows, monkeypatch):
    """Keys and values stay where they are while the turn grows; what does not fit any more is still right."""
    made = []
    plain = _WithRoom.__init__
    monkeypatch.setattr(_WithRoom, "__init__", lambda self, *args: (plain(self, *args), made.append(self))[0])
    trainer, output = sample(loud_tiny, tmp_path / "a", rows, monkeypatch, shared=True)
    layers = trainer.model.config.get_text_config().num_hidden_layers
    assert len(made) == 2 * layers  # two turns
    for layer in made:
        assert layer.keys.data_ptr() == layer._room[0].data_ptr() and layer.keys.shape[2] <= layer._room[0].shape[2]
    monkeypatch.setattr(
        _WithRoom,
        "__init__",
        lambda self, keys, values, known: plain(self, keys[:, :, : known + 2], values[:, :, : known + 2], known),
    )
    _, cramped = sample(loud_tiny, tmp_path / "b", rows, monkeypatch, shared=True)
    assert torch.equal(output["completion_ids"], cramped["completion_ids"])

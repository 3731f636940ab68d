"""Prompts shared, images once, idle rollouts skipped: loss and every gradient stay those of TRL's own path."""

import pytest
import torch
from peft import LoraConfig
from support import CUT, box, make_trainer, rollouts
from updates import same, update

from mgpo.policies.shared import vision_cache
from mgpo.policies.shared.packed import Packed
from mgpo.training.sharing import SharedPrefix, shuffle_together

IDLE = ((box((10, 20, 130, 70)), ("", CUT), box((5, 5, 50, 130)), "no"), ("\\boxed{D}", "\\boxed{D}", "", "none"))
"""Nobody is right in the first three questions: no group carries a signal."""


LORA = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)", init_lora_weights=False)
CASES = {
    "grpo": {},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "bnpo": {"loss_type": "bnpo"},
    "frozen tower": {"freeze_vision_tower": True},
    "LoRA": {"peft_config": LORA},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "accumulation": {"gradient_accumulation_steps": 2, "loss_type": "dapo"},
    "KL": {"beta": 0.1},
    "KL and LoRA": {"beta": 0.1, "peft_config": LORA},
    "entropy bonus": {"entropy_coef": 0.01},
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_the_plain_path(random_tiny, tmp_path, rows, monkeypatch, case):
    plain = update(random_tiny, tmp_path / "plain", rows, monkeypatch, shared=False, **CASES[case])
    shared = update(random_tiny, tmp_path / "shared", rows, monkeypatch, shared=True, **CASES[case])
    assert shared[2].sharing.on and not plain[2].sharing.on
    same(plain, shared)


def test_cut_off_rollouts_can_be_left_out(random_tiny, tmp_path, rows, monkeypatch):
    """TRL's own path cannot (it loses count of the images), so it is told by the loss mask which ones to leave out."""

    def without_cut(inputs):
        last = inputs["completion_mask"].sum(1) - 1
        ends = inputs["completion_ids"].gather(1, last[:, None])[:, 0]
        inputs["tool_mask"] = inputs["tool_mask"] * torch.isin(ends, torch.tensor(eos))[:, None]
        assert (inputs["tool_mask"].sum(1) == 0).sum() == 3
        return inputs

    eos = make_trainer(random_tiny, tmp_path / "x", rows).eos_token_ids
    plain = update(random_tiny, tmp_path / "a", rows, monkeypatch, shared=False, change=without_cut)
    shared = update(random_tiny, tmp_path / "b", rows, monkeypatch, shared=True, mask_truncated_completions=True)
    same(plain, shared)
    with pytest.raises(ValueError, match="mask_truncated_completions needs shared_prefix"):
        make_trainer(random_tiny, tmp_path / "c", rows, shared_prefix=False, mask_truncated_completions=True)


def test_a_second_update_of_the_same_rollouts(random_tiny, tmp_path, rows, monkeypatch):
    """Old log-probabilities are kept, the policy has moved: ratios are no longer 1, and some are clipped."""
    runs = [
        update(random_tiny, tmp_path / str(shared), rows, monkeypatch, shared=shared, num_iterations=2)
        for shared in (False, True)
    ]
    same(*runs)
    clipped = [run[2]._metrics["train"]["clip_ratio/region_mean"][-1] for run in runs]
    assert runs[0][0][0] != pytest.approx(runs[0][0][1], rel=1e-3) and max(clipped) > 0


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_rollout_batch_split_over_steps(random_tiny, tmp_path, rows, monkeypatch, parts):
    """In halves, one question is in both; in thirds, each has its own; in ninths, each has a third of one."""
    args = {"steps_per_generation": parts, "gradient_accumulation_steps": parts}
    plain = update(random_tiny, tmp_path / "a", rows, monkeypatch, shared=False, **args)
    shared = update(random_tiny, tmp_path / "b", rows, monkeypatch, shared=True, **args)
    same(plain, shared)
    prompts = [len({tuple(ids) for ids in part["prompt_ids"].tolist()}) for part in shared[2]._buffered_inputs]
    assert prompts == {2: [2, 2], 3: [1] * 3, 9: [1] * 9}[parts]


def test_rollouts_of_a_question_stay_together_in_a_random_order():
    batch = {"prompt_ids": torch.arange(12).view(12, 1), "num_images": list(range(12)), "total": torch.tensor(7)}
    orders = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = shuffle_together(batch, 3)
        assert mixed["total"] == 7 and mixed["num_images"] == mixed["prompt_ids"].flatten().tolist()
        groups = mixed["prompt_ids"].view(4, 3).tolist()
        assert sorted(groups) == batch["prompt_ids"].view(4, 3).tolist()
        orders.add(tuple(group[0] for group in groups))
    assert len(orders) > 5


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_batch_of_cut_off_rollouts_gives_no_gradient_and_no_error(random_tiny, tmp_path, rows, monkeypatch, beta):
    cut = ((box((10, 20, 130, 70)), ("", CUT)), (("\\boxed{", CUT), ("x", CUT)))
    args = {"mask_truncated_completions": True, "beta": beta}
    losses, gradients, trainer = update(random_tiny, tmp_path, rows, monkeypatch, True, turns=cut, **args)
    assert losses == [0.0] and gradients and not any(g.any() for g in gradients.values())
    trainer.model.eval()
    with torch.no_grad():
        inputs = trainer._prepare_inputs(rollouts(rows, 3, 2))
        assert trainer.compute_loss(trainer.model, inputs) == 0


def test_a_group_without_signal_is_not_computed(random_tiny, tmp_path, rows, monkeypatch):
    """Question 3 has no right answer among its rollouts; the others have. KL needs all."""
    skipped = update(random_tiny, tmp_path / "a", rows, monkeypatch, shared=True)[2]
    assert skipped._metrics["train"]["update/rollouts_skipped"] == [pytest.approx(6 / 18)]
    needed = update(random_tiny, tmp_path / "b", rows, monkeypatch, shared=True, beta=0.1)[2]
    assert "update/rollouts_skipped" not in needed._metrics["train"]


def test_without_any_signal_one_rollout_still_takes_part(random_tiny, tmp_path, rows, monkeypatch):
    losses, gradients, trainer = update(random_tiny, tmp_path, rows, monkeypatch, shared=True, turns=IDLE)
    assert losses == [0.0] and gradients
    assert all(not g.any() for g in gradients.values())
    assert trainer._metrics["train"]["update/rollouts_skipped"] == [pytest.approx(11 / 12)]


def test_entropy_is_the_mean_of_what_was_computed(random_tiny, tmp_path, rows, monkeypatch):
    """With every group scored, it is the plain path's."""
    args = {"questions": 2}
    plain = update(random_tiny, tmp_path / "a", rows, monkeypatch, shared=False, **args)[2]
    shared = update(random_tiny, tmp_path / "b", rows, monkeypatch, shared=True, **args)[2]
    one, two = (t._metrics["train"]["entropy"] for t in (plain, shared))
    assert two == pytest.approx(one, rel=1e-5)


def test_every_token_and_image_is_computed_once(random_tiny, tmp_path, rows, monkeypatch):
    """Tokens of the update: prompts once, rollouts once, no padding. Images: overviews once, equal crops once."""
    seen, encoded = [], []
    forward = SharedPrefix.log_probs

    def counting(self, model, input_ids, attention_mask, keep, *args, **kwargs):
        prompt, completion = attention_mask[:, :-keep].sum(1), attention_mask[:, -keep:].sum(1)
        seen.append((prompt, completion, input_ids))
        hook = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((kwargs["inputs_embeds"].shape, kwargs["attention_mask"])),
            with_kwargs=True,
        )
        try:
            return forward(self, model, input_ids, attention_mask, keep, *args, **kwargs)
        finally:
            hook.remove()

    encode_unique = vision_cache._encode_unique

    def watching(encode, *args):
        return encode_unique(lambda x, grid, **kw: (encoded.append(len(grid)), encode(x, grid, **kw))[1], *args)

    monkeypatch.setattr(SharedPrefix, "log_probs", counting)
    monkeypatch.setattr(vision_cache, "_encode_unique", watching)
    update(random_tiny, tmp_path, rows, monkeypatch, shared=True, beta=0.1)
    (prompt, completion, _), (shape, layout) = seen[0], seen[1]
    assert isinstance(layout.packed, Packed)
    unique_prompts = sum({int(p): int(p) for p in prompt}.values())  # the questions differ in length
    assert shape[0] == 1
    assert shape[1] == unique_prompts - 3 + int(completion.sum())
    # Per question: the overview (shown again after a rejected box: the same image) and two crops.
    assert set(encoded) == {3 * 3}

"""One step of GRPO over several turns, written out in plain PyTorch, gives the trainer's gradient.

Episodes are scripted: crops of different sizes, a rejected box, a turn that was cut off. The plain version knows nothing
of padding, batches or TRL: it loops over episodes, asks the model for positions and masks tokens by itself.
"""

import datasets
import pytest
import torch
from support import MIXED, Script, processed, rollouts, settings
from transformers import Qwen2_5_VLForConditionalGeneration

from mgpo.training.trainer import MGPOTrainer


def plain_grpo(model, reference, episodes, beta=0.0, kl_weighted=False):
    """Loss of episodes (ids, learned, vision, advantage): mean over episodes of the mean over their learned tokens."""
    total = 0.0
    for ids, learned, vision, advantage in episodes:
        here, there = (logprobs(m, ids, vision) for m in (model, reference))
        ratio = torch.exp(here - here.detach())
        log_ratio = there.detach() - here
        kl = (torch.exp(log_ratio) - log_ratio - 1) * (ratio if kl_weighted else 1)  # ratio is 1, its gradient is not 0
        per_token = -ratio * advantage + beta * kl
        total = total + per_token[learned[1:]].mean()
    return total / len(episodes)


def logprobs(model, ids, vision):
    """Log-probability of each token given those before it, at the positions that the model itself names."""
    batch, types = ids[None], (ids == model.config.image_token_id).int()[None]
    positions, _ = model.model.get_rope_index(
        batch, mm_token_type_ids=types, image_grid_thw=vision["image_grid_thw"], attention_mask=torch.ones_like(batch)
    )
    logits = model(input_ids=batch, position_ids=positions, mm_token_type_ids=types, **vision).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]


def by_hand(trainer, processor):
    """The scripted episodes as token ids, built from the texts alone; rewards by what they answer."""
    tokenizer, episodes = trainer._tokenizer, []
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(2, 2)
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    for i, episode in enumerate(trainer._episodes):
        ids, learned = [], []
        for turn, user in enumerate(episode.user_turns):
            pads = "<|image_pad|>" * (user.image.width // 28 * (user.image.height // 28))
            text = (
                f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{user.text}<|im_end|>\n<|im_start|>assistant\n"
            )
            before = ("" if turn == 0 else "\n" if isinstance(MIXED[0][i], str) else "<|im_end|>\n") + text
            context = tokenizer(before, add_special_tokens=False)["input_ids"]
            said = Script.ids(trainer.turn_tokens, MIXED[turn][i])
            ids += context + said
            learned += [False] * len(context) + [True] * len(said)
        vision = processed(processor, [user.image for user in episode.user_turns])
        episodes.append((torch.tensor(ids), torch.tensor(learned), vision, advantages[i]))
    return episodes


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("beta", "kl_weighted", "accumulation"), [(0.0, False, 1), (0.0, False, 2), (0.1, False, 1), (0.1, True, 2)]
)
def test_the_trainer_s_gradient_is_plain_grpo_s(
    random_tiny, tmp_path, rows, processor, monkeypatch, beta, kl_weighted, accumulation
):
    Script(MIXED).install(monkeypatch)
    args = settings(
        tmp_path,
        beta=beta,
        use_bias_correction_kl=kl_weighted,  # TRL's name for weighting the KL term by the ratio
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    trainer = MGPOTrainer(str(random_tiny), args, datasets.Dataset.from_list(rows))
    plain, reference = (Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny) for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():  # away from the reference model, or the KL term would have no gradient
        for ours, theirs in zip(trainer.model.parameters(), plain.parameters(), strict=True):
            ours.add_(0.02 * torch.randn_like(ours))
            theirs.copy_(ours)

    trainer.model.train()
    trainer.current_gradient_accumulation_steps = accumulation
    for _ in range(accumulation):
        inputs = trainer._prepare_inputs(rollouts(rows))
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        trainer._step += 1
    plain_grpo(plain, reference, by_hand(trainer, processor), beta, kl_weighted).backward()

    found, expected = gradients(trainer.model), gradients(plain)
    assert found.keys() == expected.keys() and len(found) > 50
    errors = {name: ((found[name] - g).norm() / g.norm().clamp(min=1e-12)).item() for name, g in expected.items()}
    # The key projections' bias shifts all scores of a query alike: its gradient is zero but for rounding.
    noise = {name for name in errors if name.endswith("k_proj.bias")}
    worst = max(errors.keys() - noise, key=errors.get)
    assert errors[worst] < 1e-4, f"{worst}: relative error {errors[worst]:.2e}"
    biggest = max(g.abs().max() for g in expected.values())
    assert all((found[name] - expected[name]).abs().max() < 1e-5 * biggest for name in noise)
    assert biggest > 1e-4


def test_it_would_notice_a_token_of_the_environment(random_tiny, tmp_path, rows, processor, monkeypatch):
    """Defect 3 of the authors' code: the end of turn that was appended to a cut-off turn is trained on."""
    Script(MIXED).install(monkeypatch)
    trainer = MGPOTrainer(str(random_tiny), settings(tmp_path), datasets.Dataset.from_list(rows))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs(rollouts(rows))
    trainer.compute_loss(trainer.model, inputs).backward()
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_tiny)
    episodes = by_hand(trainer, processor)
    ids, learned, vision, advantage = episodes[1]
    first_end = int(learned.int().argmax()) + len(Script.ids(trainer.turn_tokens, MIXED[0][1]))
    assert ids[first_end] == trainer.turn_tokens.turn_end_id and not learned[first_end]
    learned[first_end] = True
    plain_grpo(plain, plain, episodes).backward()
    name = "model.language_model.norm.weight"
    found, expected = gradients(trainer.model)[name], gradients(plain)[name]
    assert (found - expected).norm() / expected.norm() > 1e-2

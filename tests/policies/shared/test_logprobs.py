"""The probabilities that are trained on are the probabilities that were sampled from.

Two turns are sampled through the trainer's own path while the raw logits of every sampled token are captured, before
banned tokens are removed. Recomputing them on prompt and completion, as TRL does in the update, must give the same
numbers. A random model names no valid box, so what is read in its first turn is set: crops of three shapes, and one
rejection. The last tests show that this would not hold with the defects that such code is known for.
"""

import pytest
import torch
from sampling import at_sampling, difference, recomputed, sample_turns
from support import unpadded
from transformers import Qwen2_5_VLForConditionalGeneration

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "plain"])
def sampled(loud_tiny, tmp_path_factory, rows, request):
    """Trainer, its output, and per sample the log-probabilities at sampling: of raw logits and of what was drawn from."""
    with pytest.MonkeyPatch.context() as patch:
        return sample_turns(loud_tiny, tmp_path_factory.mktemp("run"), rows, patch, shared_prefix=request.param)


def test_the_sample_is_what_the_test_needs(sampled):
    trainer, output, turns = sampled
    grids = [tuple(grid) for grid in output["image_grid_thw"].tolist()]
    assert len(turns) == 2 and len(set(grids)) >= 4
    assert len(set(turns[0]["lengths"])) > 1 and len(set(turns[1]["lengths"])) > 1, "nothing is left-padded"
    assert output["num_images"] == [2] * 4


def test_recomputed_logprobs_equal_the_sampled_ones(sampled):
    trainer, output, turns = sampled
    found = difference(recomputed(trainer, output), at_sampling(turns))
    assert found < TOLERANCE, f"sampled and recomputed logprobs differ by {found}"


def test_recomputing_in_chunks_changes_nothing(sampled):
    """TRL cuts pixel values by the number of images per sample; chunks must cut them at the same places."""
    trainer, output, turns = sampled
    whole = recomputed(trainer, output)
    for size in (1, 3):
        assert difference(recomputed(trainer, output, batch_size=size), whole) < TOLERANCE


def test_what_banned_tokens_take_away_is_their_mass_and_nothing_else(sampled):
    """Banned tokens are removed before sampling: a sampled token is likelier by 1 / (1 - banned mass) at its place."""
    trainer, output, turns = sampled
    raw, drawn = at_sampling(turns), at_sampling(turns, "drawn_from")
    banned = trainer.turn_tokens.banned_ids()
    assert all((d >= r - 1e-5).all() for r, d in zip(raw, drawn))
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(trainer.model.config._name_or_path).eval()
    for i in range(4):
        logits, learned, _ = forward(plain, trainer, output, i)
        mass = logits.log_softmax(-1)[learned][:, banned].exp().sum(-1)
        torch.testing.assert_close(drawn[i] - raw[i], -torch.log1p(-mass), atol=TOLERANCE, rtol=TOLERANCE)
        assert mass.max() > 1e-3, "nothing was taken away: the test proves nothing"


def forward(model, trainer, output, i, images=None, positions=None):
    """A plain forward pass of one sample, without padding: logits that predict the completion, mask, ids."""
    prompt, completion, mask = unpadded(output, i)
    turns = trainer._episodes[i].user_turns
    vision = trainer.turn_tokens.pixels(images or [turn.image for turn in turns])
    ids = torch.tensor([prompt + completion])
    types = (ids == trainer.turn_tokens.image_token_id).int()
    kwargs = {} if positions is None else {"position_ids": positions(ids)}
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=types, **vision, **kwargs).logits[0].float()
    return logits[len(prompt) - 1 : -1], torch.tensor(mask).bool(), torch.tensor(completion)


def plain_logprobs(trainer, output, **kwargs):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(trainer.model.config._name_or_path).eval()
    values = []
    for i in range(4):
        logits, learned, ids = forward(model, trainer, output, i, **kwargs)
        values.append(logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0][learned])
    return values


def test_a_plain_forward_pass_agrees(sampled):
    trainer, output, turns = sampled
    assert difference(plain_logprobs(trainer, output), at_sampling(turns)) < TOLERANCE


def test_it_would_notice_one_dimensional_positions(sampled):
    """Defect 1 of the authors' code: the update runs without M-RoPE."""
    trainer, output, turns = sampled

    def flat(ids):
        return torch.arange(ids.size(1)).expand(3, 1, -1)

    assert difference(plain_logprobs(trainer, output, positions=flat), at_sampling(turns)) > 1e-2


def test_it_would_notice_two_swapped_crops(sampled):
    """The second images of two samples exchanged: token counts still agree, only what is seen does not."""
    trainer, output, turns = sampled
    grids = output["image_grid_thw"]
    pieces = list(output["pixel_values"].split(grids.prod(-1).tolist()))
    assert torch.equal(grids[1], grids[3]) and not torch.equal(pieces[1], pieces[3])
    pieces[1], pieces[3] = pieces[3], pieces[1]
    found = recomputed(trainer, output, pixel_values=torch.cat(pieces))
    assert difference(found, at_sampling(turns)) > 1e-2

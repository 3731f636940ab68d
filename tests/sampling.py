"""Samples through the trainer's own path, captures each token's log-probability in every turn, and recomputes them."""

import torch
from support import TALL, WIDE, make_trainer, rollouts
from transformers import GenerationMixin

from mgpo.method.boxes import BoxStatus, Grounding

BOXES = (WIDE, (30, 60, 150, 110), TALL, None)
"""What is read in turn 1. The first two crops have the same shape, so that they can be exchanged."""


def sample_turns(model, folder, rows, patch, **settings):
    """Trainer, its output, and per turn the log-probabilities at sampling: of raw logits and of what was drawn from."""
    trainer = make_trainer(model, folder, rows, **settings)
    turns, single = [], type(trainer)._generate_single_turn
    generate = GenerationMixin.generate

    def capturing(model, *args, **kwargs):
        asked = kwargs["generation_config"].return_dict_in_generate
        out = generate(model, *args, **kwargs, output_logits=True, output_scores=True, return_dict_in_generate=True)
        raw = torch.stack(out.logits, 1).float().log_softmax(-1)
        drawn_from = torch.stack(out.scores, 1).float().log_softmax(-1)
        turns[-1].update(raw=raw, drawn_from=drawn_from)
        return out if asked else out.sequences

    def turn(self, prompt_ids, *args, **kwargs):
        turns.append({"lengths": [len(ids) for ids in prompt_ids]})
        ids, logprobs = single(self, prompt_ids, *args, **kwargs)
        for name in ("raw", "drawn_from"):
            turns[-1][name] = [
                lp[range(len(said)), said].tolist() for lp, said in zip(turns[-1][name], ids, strict=True)
            ]
        return ids, logprobs

    boxes = iter(BOXES)

    def read(text, frame, rules, numbered):
        box, frame = next(boxes), numbered[0] if numbered else frame
        number = frame.image_number
        if box is None:
            return Grounding(BoxStatus.NO_JSON, image_number=number)
        return Grounding(BoxStatus.VALID, box, frame.to_original(box), image_number=number)

    patch.setattr("mgpo.method.episode.read_grounding", read)
    patch.setattr(GenerationMixin, "generate", capturing)
    patch.setattr(type(trainer), "_generate_single_turn", turn)
    torch.manual_seed(5)
    output = trainer._generate_and_score_completions(rollouts(rows))
    return trainer, output, turns


def at_sampling(turns, name="raw"):
    """Per sample: the sampled tokens' log-probabilities of all turns, in order."""
    return [torch.tensor(sum(said, [])) for said in zip(*(turn[name] for turn in turns), strict=True)]


def recomputed(trainer, output, model=None, **changed):
    """TRL's own recomputation, and per sample the values at the tokens that are learned."""
    names = (
        "pixel_values",
        "image_grid_thw",
        "mm_token_type_ids",
        "token_type_ids",
        "num_images",
        "num_tiles",
        "image_position_ids",
    )
    fields = {key: output[key] for key in names if key in output} | changed
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    keep = output["completion_ids"].size(1)
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(model or trainer.model, ids, mask, keep, **fields)
    learned = (output["tool_mask"] * output["completion_mask"]).bool()
    return [row[kept] for row, kept in zip(logps, learned)]


def difference(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))

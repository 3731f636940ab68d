"""Training on questions about several images, beside questions about one, through the trainer's own path."""

import pytest
import torch
from sampling import at_sampling, difference, recomputed, sample_turns
from support import MIXED, SMALL, TALL, WIDE, Script, make_trainer, rollouts, several, unpadded
from updates import same, update

from mgpo.images.photograph import Photograph
from mgpo.method.boxes import BoxForm, BoxStatus

CONTEXT = {"max_images": 2, "max_reply_tokens": 240}


def named(number, box):
    return BoxForm().written(box, (1, 1), "sign", number)


TURNS = (
    (named(1, WIDE), named(2, SMALL), named(None, TALL), named(3, WIDE), "none"),
    ("\\boxed{A}", "It is \\boxed{B}", "\\boxed{B}", "\\boxed{A}", "\\boxed{C}"),
)


def test_crops_come_from_the_image_that_was_named(random_tiny, tmp_path, rows, monkeypatch):
    """And the sample holds all images in the order of its placeholders; the first question shows two, the second one."""
    script = Script(TURNS).install(monkeypatch)
    trainer = make_trainer(
        random_tiny, tmp_path, several(rows), per_device_train_batch_size=10, num_generations=5, **CONTEXT
    )
    output = trainer._generate_and_score_completions(rollouts(several(rows), 2, 5))
    two, one = trainer._episodes[:5], trainer._episodes[5:]
    assert [e.first_grounding.status for e in two] == [BoxStatus.VALID] * 3 + [BoxStatus.NO_IMAGE, BoxStatus.NO_JSON]
    assert [e.first_grounding.image_number for e in two] == [1, 2, 2, 2, 2]
    assert [e.first_grounding.status for e in one] == [BoxStatus.VALID] * 4 + [BoxStatus.NO_JSON]
    assert (
        output["num_images"] == [3] * 5 + [2] * 5
        and [len(shown) for shown in script.calls[0]["images"]] == [2] * 5 + [1] * 5
    )
    file = several(rows)[0]
    for episode, path in ((two[0], file["image"]), (two[1], file["more_images"][0])):
        cut = Photograph(path).crop(episode.first_grounding.box_px_original, trainer.protocol.budget)
        assert cut.tobytes() == episode.user_turns[1].image.tobytes()
    features = [int(g.prod()) // 4 for g in output["image_grid_thw"]]
    for row, count in enumerate(output["num_images"]):
        prompt, said, _ = unpadded(output, row)
        assert (prompt + said).count(trainer.turn_tokens.image_token_id) == sum(features[:count])
        features = features[count:]
    labels = trainer.processing_class.tokenizer.decode(unpadded(output, 0)[0])
    assert labels.index("Image 1: ") < labels.index("Image 2: ") < labels.index("Which letter")


@pytest.mark.parametrize("shared", [True, False])
def test_recomputed_logprobs_equal_the_sampled_ones(random_tiny, tmp_path, rows, monkeypatch, shared):
    settings = CONTEXT | {"shared_prefix": shared}
    trainer, output, turns = sample_turns(random_tiny, tmp_path, several(rows), monkeypatch, **settings)
    assert output["num_images"] == [3, 3, 2, 2]
    assert difference(recomputed(trainer, output), at_sampling(turns)) < 1e-4


def test_shared_prompts_give_the_loss_and_gradients_of_the_plain_path(random_tiny, tmp_path, rows, monkeypatch):
    found = [
        update(random_tiny, tmp_path / str(shared), several(rows, (0, 2)), monkeypatch, shared, turns=TURNS, **CONTEXT)
        for shared in (False, True)
    ]
    same(*found)
    assert found[1][2].sharing.on and not found[0][2].sharing.on


def test_sampling_is_the_same_with_and_without_shared_prompts(random_tiny, tmp_path, rows):
    said = []
    for shared in (True, False):
        trainer = make_trainer(random_tiny, tmp_path / str(shared), several(rows), shared_prefix=shared, **CONTEXT)
        trainer.model.eval()  # decodes greedily
        trainer.args.per_device_eval_batch_size = 4
        with torch.no_grad():
            output = trainer._generate_and_score_completions(rollouts(several(rows)))
        said.append([unpadded(output, row) for row in range(4)])
    assert said[0] == said[1]


@pytest.mark.parametrize("method", ["grpo", "direct"])
def test_single_turn_methods_show_them_too(random_tiny, tmp_path, rows, monkeypatch, method):
    Script(((named(2, SMALL) + "\\boxed{A}", "\\boxed{B}"),)).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, several(rows), method=method, **CONTEXT)
    output = trainer._generate_and_score_completions(rollouts(several(rows)))
    assert output["num_images"] == [2, 2, 1, 1]
    if method == "grpo":
        assert trainer._episodes[0].first_grounding.image_number == 2


def test_a_question_with_more_images_than_planned_is_named(random_tiny, tmp_path, rows):
    trainer = make_trainer(random_tiny, tmp_path, several(rows))
    with pytest.raises(ValueError, match="'q0' shows 2 images, more than max_images=1. Set max_images to 2"):
        trainer._generate_and_score_completions(rollouts(several(rows)))


def test_the_longest_episode_counts_every_image(random_tiny, tmp_path, rows):
    trainers = [make_trainer(random_tiny, tmp_path / str(n), several(rows), max_images=n) for n in (1, 3)]
    one, three = (sum(t.args.episode_parts(t.protocol).values()) for t in trainers)
    assert three - one == 2 * (trainers[0].protocol.budget.max_tokens + 2)
    assert trainers[0].args.max_completion_length == trainers[1].args.max_completion_length
    with pytest.raises(ValueError, match="a question shows 1 to 8 images"):
        make_trainer(random_tiny, tmp_path, rows, max_images=9)


def test_rewards_see_neither_images_nor_gold(random_tiny, tmp_path, rows, monkeypatch):
    seen = []

    def reward(completions, **columns):
        seen.append(set(columns))
        return [0.0] * len(completions)

    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, several(rows), **CONTEXT)
    trainer.reward_funcs.append(reward)
    trainer.reward_func_names.append("seen")
    trainer.reward_processing_classes.append(None)
    trainer.reward_weights = torch.ones(2)
    trainer._generate_and_score_completions(rollouts(several(rows)))
    assert seen and not seen[0] & {"image", "more_images", "gold_boxes", "gold_image"}

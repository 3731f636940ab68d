"""What the estimate says of TRL's own path of sampling is what TRL 1.16 and transformers do."""

from support import make_trainer, rollouts


def test_all_rollouts_are_one_batch_and_only_the_last_position_has_logits(random_tiny, tmp_path, rows):
    """TRL's fused head leaves `logits_to_keep` in the signature by which `generate` decides."""
    args = {"shared_prefix": False, "per_device_train_batch_size": 4, "steps_per_generation": 2, "num_generations": 2}
    trainer = make_trainer(random_tiny, tmp_path, rows, **args)
    prompts, heads, images = [], [], []
    model = trainer.model
    model.model.language_model.register_forward_pre_hook(
        lambda module, given, named: prompts.append(tuple(named["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    model.lm_head.register_forward_pre_hook(lambda module, given: heads.append(tuple(given[0].shape[:2])))
    model.model.visual.register_forward_pre_hook(
        lambda module, given, named: images.append(len(named.get("grid_thw", given[-1]))), with_kwargs=True
    )
    trainer._generate_and_score_completions(rollouts(rows, 4, 2))
    filled = [shape for shape in prompts if shape[1] > 1]
    assert [rows for rows, _ in filled[:2]] == [8, 8], (
        "both turns hand all rollouts of the generation to the model at once"
    )
    assert set(heads) == {(8, 1)}
    assert images[:2] == [8, 16], "the second turn computes the overviews again"

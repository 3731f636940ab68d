"""The agent loop under verl's own worker, without Ray: token ids, masks, positions and images."""

import pytest
import torch
from support import CUT, MIXED, PROSE, SMALL, TALL, WIDE, Script, box, make_trainer, rollouts
from support import unpadded as unpadded_by_trl
from transformers import AutoModelForImageTextToText
from verl.workers.rollout.replica import TokenOutput
from worker import Scripted, batch_of, config_of, make_worker, rollouts_of, unpadded

from mgpo.data.convert import convert
from mgpo.policies.tokens import TurnTokens
from mgpo.worlds.needle import needle_rows

INVALID = ((70, 70, 20, 20), (0, 0, 20, 20), (10, 20, 9000, 9000))


class Modelled(Scripted):
    """Says what it is told in turn 1, samples the rest, and gives the model's own log-probabilities of both."""

    def __init__(self, said, model, processor):
        super().__init__(said)
        self.model, self.processor = model, processor

    async def generate(
        self, request_id, *, prompt_ids, sampling_params, image_data=None, mm_processor_kwargs=None, **more
    ):
        told = await super().generate(
            request_id, prompt_ids=prompt_ids, sampling_params=sampling_params, image_data=image_data, **more
        )
        ids, fields = torch.tensor([prompt_ids]), {}
        pixels = self.processor.image_processor(images=image_data, return_tensors="pt", **mm_processor_kwargs)
        fields = {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}
        said, logprobs = [], []
        for step in range(6):
            kinds = (ids == self.processor.image_token_id).int()
            logits = self.model(input_ids=ids, mm_token_type_ids=kinds, **fields).logits[0, -1].float()
            logits[579:600] = -torch.inf  # tokens of the chat format and of images
            token = (
                told.token_ids[step] if step < len(told.token_ids) else int(torch.multinomial(logits.softmax(-1), 1))
            )
            said.append(token)
            logprobs.append(logits.log_softmax(-1)[token].item())
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        return TokenOutput(token_ids=said, log_probs=logprobs, stop_reason="completed")


@pytest.fixture
def run(tiny, parquet, tmp_path):
    """Run rows of the parquet file; what each one says is given as texts per turn. Gives worker, server and batch."""

    def run(turns, numbers=(0, 0, 1, 1), *overrides, file=parquet, model=tiny, **loop):
        config = config_of(model, tmp_path, *overrides, **loop)
        server = Scripted([])
        worker = make_worker(config, server)
        tokens = TurnTokens(worker.processor)
        server.said = [[Script.ids(tokens, turn[i % len(turn)]) for turn in turns] for i in range(len(numbers))]
        return worker, server, rollouts_of(worker, batch_of(config, file, worker, numbers))

    return run


def images_of(batch, row):
    return batch.non_tensor_batch["multi_modal_inputs"][row]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_episodes_are_those_of_the_trl_path_token_by_token(run, random_tiny, rows, tmp_path, monkeypatch, seed):
    """The same questions and answers: prompt, response, mask, pixels and reward, for a mix of valid, cut and invalid turns."""
    asked = rows if seed is None else list(needle_rows("train", seed, 2))
    file, _ = convert(iter(asked), "verl", tmp_path / "verl", "train")
    _, _, batch = run(MIXED, file=file, max_answer_tokens=8)
    Script(MIXED).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, asked)
    output = trainer._generate_and_score_completions(rollouts(asked))
    assert [unpadded(batch, row) for row in range(4)] == [unpadded_by_trl(output, row) for row in range(4)]
    pixels = torch.cat([images_of(batch, row)["pixel_values"] for row in range(4)])
    assert torch.allclose(pixels, output["pixel_values"].float(), atol=1e-5)
    grids = torch.cat([images_of(batch, row)["image_grid_thw"] for row in range(4)])
    assert torch.equal(grids, output["image_grid_thw"])
    right = [
        float(episode.end == "answered" and said == episode.question.answer)
        for episode, said in zip(trainer._episodes, "ABB")
    ]
    assert batch.non_tensor_batch["acc"].tolist() == [*right, 0.0]
    valid = [float(episode.first_grounding.box_px_original is not None) for episode in trainer._episodes]
    assert batch.non_tensor_batch["valid_box"].tolist() == valid == [1.0, 0.0, 1.0, 0.0]


def test_the_server_is_asked_with_whole_ids_and_images_under_one_request(run):
    worker, server, batch = run(MIXED, (0, 1))
    first, second = [asked for asked in server.asked if asked["row"] == 0]
    assert first["request_id"] == second["request_id"] and (first["limit"], second["limit"]) == (24, 6)
    assert (len(first["images"]), len(second["images"])) == (1, 2)
    prompt, response, _ = unpadded(batch, 0)
    assert first["ids"] == prompt and (prompt + response)[: len(second["ids"])] == second["ids"]
    assert {"min_pixels", "max_pixels"} <= first["mm_processor_kwargs"].keys()


def test_image_tokens_are_features_and_padding_changes_no_position(run):
    worker, _, batch = run(MIXED)
    lengths = {len(unpadded(batch, row)[1]) for row in range(4)}
    assert len(lengths) > 1, "rows of one length would show nothing"
    for row in range(4):
        prompt, response, _ = unpadded(batch, row)
        ids, shown = torch.tensor([prompt + response]), images_of(batch, row)
        kinds = (ids == worker.processor.image_token_id).int()
        assert kinds.sum() == shown["image_grid_thw"].prod(1).sum() // 4
        alone, _ = worker.processor.get_rope_index(
            input_ids=ids, image_grid_thw=shown["image_grid_thw"], mm_token_type_ids=kinds
        )
        seen = batch.batch["attention_mask"][row].bool()
        assert torch.equal(batch.batch["position_ids"][row][1:, seen], alone[:, 0])
        assert batch.batch["position_ids"][row][0, seen].tolist() == list(range(ids.shape[1]))


def test_recomputed_log_probabilities_are_those_of_sampling(loud, parquet, tmp_path):
    """Sampled turn by turn without padding; recomputed in one pass over verl's padded batch."""
    model = AutoModelForImageTextToText.from_pretrained(loud, dtype=torch.float32, attn_implementation="eager").eval()
    config = config_of(loud, tmp_path, max_answer_tokens=6, max_grounding_tokens=48)
    worker = make_worker(config, None)
    tokens = TurnTokens(worker.processor)
    said = [[Script.ids(tokens, box(b)), []] for b in (WIDE, TALL, SMALL, INVALID[0])]
    worker.llm_client = Modelled(said, model, worker.processor)
    torch.manual_seed(0)
    with torch.no_grad():
        batch = rollouts_of(worker, batch_of(config, parquet, worker, (0, 1, 2, 3)))
        shown = [images_of(batch, row) for row in range(4)]
        logits = model(
            input_ids=batch.batch["input_ids"],
            attention_mask=batch.batch["attention_mask"],
            position_ids=batch.batch["position_ids"].transpose(0, 1),
            pixel_values=torch.cat([one["pixel_values"] for one in shown]),
            image_grid_thw=torch.cat([one["image_grid_thw"] for one in shown]),
        ).logits.float()
    logits[..., 579:600] = -torch.inf
    width = batch.batch["prompts"].shape[1]
    table = logits[:, width - 1 : -1].log_softmax(-1)
    again = table.gather(2, batch.batch["responses"][..., None])[..., 0]
    mask = batch.batch["response_mask"].bool()
    assert mask.sum(1).min() >= 12
    assert (again - batch.batch["rollout_log_probs"])[mask].abs().max() < 1e-4
    assert batch.batch["rollout_log_probs"][~mask].eq(0).all()


def test_a_cut_turn_is_ended_by_the_environment_and_not_trained_on(run):
    worker, _, batch = run((((PROSE, CUT),), ("\\boxed{A}",)), (0,))
    tokens = TurnTokens(worker.processor)
    said, (_, response, mask) = Script.ids(tokens, (PROSE, CUT)), unpadded(batch, 0)
    assert response[: len(said) + 1] == [*said, tokens.turn_end_id] and mask[: len(said) + 1] == [1] * len(said) + [0]
    assert mask[-len(Script.ids(tokens, "\\boxed{A}")) :] == [1] * len(Script.ids(tokens, "\\boxed{A}"))


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("place", [0, 1])
def test_a_sampled_image_token_ends_its_turn(tiny, parquet, tmp_path, turn, place):
    """It has no features: verl's own loops would pass it on, and the update of the batch would stop."""
    config = config_of(tiny, tmp_path)
    worker = make_worker(config, None)
    tokens = TurnTokens(worker.processor)
    said = [Script.ids(tokens, box(WIDE)), Script.ids(tokens, "\\boxed{A}")]
    said[turn].insert(place, tokens.image_token_id)
    worker.llm_client = Scripted([said])
    batch = rollouts_of(worker, batch_of(config, parquet, worker, (0,)))
    prompt, response, mask = unpadded(batch, 0)
    features = images_of(batch, 0)["image_grid_thw"].prod(1).sum().item() // 4
    assert (prompt + response).count(tokens.image_token_id) == features
    sampled = [token for token, one in zip(response, mask) if one]
    assert sampled == (said[0][:place] + said[1] if turn == 0 else said[0] + said[1][:place])
    assert batch.non_tensor_batch["cut_turns"].tolist() == [1.0]
    assert batch.non_tensor_batch["acc"].tolist() == [float(turn == 0)]


def test_a_rank_whose_boxes_are_all_invalid_has_both_images(run):
    _, _, batch = run(([box(b) for b in INVALID], ["\\boxed{A}"]), (0, 1, 2))
    for row in range(3):
        first, second = images_of(batch, row)["image_grid_thw"].tolist()
        assert first == second, "the overview is shown again"
    assert batch.non_tensor_batch["valid_box"].tolist() == [0.0] * 3


def test_a_rank_whose_rows_hold_no_image_is_asked_at_once(run, tmp_path):
    import pyarrow.parquet

    rows = [
        {
            "data_source": "text", "prompt": [{"role": "user", "content": f"What is {n}+1?\nA. {n}\nB. {n + 1}"}], "images": [],
            "reward_model": {"style": "rule", "ground_truth": "B"}, "extra_info": {"index": f"t{n}"},
        } for n in range(2)
    ]  # fmt: skip
    kind = pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
    table = pyarrow.Table.from_pylist(rows)
    table = table.set_column(2, "images", table["images"].cast(kind))
    pyarrow.parquet.write_table(table, tmp_path / "text.parquet")
    worker, server, batch = run((["\\boxed{B}", "\\boxed{A}"],), (0, 1), file=tmp_path / "text.parquet")
    assert all(asked["images"] is None for asked in server.asked) and len(server.asked) == 2
    text = worker.tokenizer.decode(server.asked[0]["ids"])
    assert "A. 0\nB. 1" in text and "box" not in text.replace("\\boxed", "")
    assert all("pixel_values" not in images_of(batch, row) for row in range(2))
    assert batch.non_tensor_batch["acc"].tolist() == [1.0, 0.0]
    assert [unpadded(batch, row)[2] for row in range(2)] == [[1] * 4] * 2 or all(unpadded(batch, 0)[2])

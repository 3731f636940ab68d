"""Every model family, by a tiny random model of its own architecture: trained by every method, asked, evaluated.

`docs/models.md` lists what each can do, and names these tests.
"""

import base64
import json
from pathlib import Path

import datasets
import pytest
import torch
from family_models import CHOSEN, FAMILY_MODELS, TILES, make
from fastapi.testclient import TestClient
from peft import LoraConfig
from PIL import Image
from sampling import at_sampling, difference, recomputed, sample_turns
from support import CUT, PROSE, SMALL, TALL, WIDE, Script, make_trainer, rollouts, settings, several, unpadded
from updates import same, update

from mgpo import GroundedVQA, evaluate
from mgpo.config import DataArguments
from mgpo.method.boxes import BoxStatus, Frame
from mgpo.method.episode import End, Episode
from mgpo.method.grounding import read_grounding
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.method.thinking import spoken
from mgpo.policies.families import shares_prompts
from mgpo.policies.loading import load_model
from mgpo.policies.local import LocalPolicy
from mgpo.policies.shared.packed import is_hybrid
from mgpo.serving.app import create_app
from mgpo.serving.limits import Limits
from mgpo.training.sft import build_sft_trainer
from mgpo.training.weights import freeze_vision_tower

TOLERANCE = 1e-4
SHORT = {"grounding_tokens": 16, "answer_tokens": 8}
PER_TILE = 4
"""Tokens of a tile in the tiny models of `TILES`."""


@pytest.fixture(scope="module", params=[*FAMILY_MODELS, *TILES])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    folder.mkdir()
    return make(request.param, folder)


def type_of(model):
    return json.loads((model / "config.json").read_text())["model_type"]


def chosen(model):
    """Settings of a run: how boxes are written, where the family does not decide it."""
    return CHOSEN.get(type_of(model), {})


def form_of(model):
    return GroundedVQA.from_pretrained(str(model)).protocol.box.form


@pytest.fixture(scope="module", params=["mgpo", "grpo"])
def sampled(request, model, tmp_path_factory, rows):
    """Four rollouts of two questions, in two turns or in a single one."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        return sample_turns(model, folder, rows, patch, method=request.param, **chosen(model))


def test_recomputed_logprobs_equal_the_sampled_ones(sampled):
    """In float32, padded on the left, with images of different sizes in a batch, and in a sample of two turns."""
    trainer, output, turns = sampled
    assert len(turns) == trainer.protocol.turns and output["num_images"] == [len(turns)] * 4
    if "image_grid_thw" in output:
        assert len({tuple(grid) for grid in output["image_grid_thw"].tolist()}) > len(turns)
    assert all(len(set(turn["lengths"])) > 1 for turn in turns), "nothing is left-padded"
    found = difference(recomputed(trainer, output), at_sampling(turns))
    assert found < TOLERANCE, f"sampled and recomputed log-probabilities differ by {found}"


def test_questions_may_show_several_images(model, tmp_path, rows, monkeypatch):
    """Two images and a crop in the first two samples, one image and a crop in the others."""
    args = chosen(model) | {"max_images": 2, "max_reply_tokens": 320}
    trainer, output, turns = sample_turns(model, tmp_path, several(rows), monkeypatch, **args)
    assert output["num_images"] == [3, 3, 2, 2] and len(turns) == 2
    assert difference(recomputed(trainer, output), at_sampling(turns)) < TOLERANCE


def features_of(tokens, inputs, images):
    """Features of each image, counted in the model's inputs."""
    merge = getattr(tokens.processor.image_processor, "merge_size", None)
    if merge is not None:
        return (inputs["image_grid_thw"].prod(-1) // merge**2).tolist()
    if "image_position_ids" in inputs:  # Gemma 4: nine patches make a token, and places without one are below 0
        return ((inputs["image_position_ids"][..., 0] >= 0).sum(1) // 9).tolist()
    tiles = [len(tokens.pixels([image])["pixel_values"].flatten(0, -4)) for image in images]
    assert sum(tiles) == inputs["pixel_values"].flatten(0, -4).flatten(1).any(1).sum()  # but for tiles of zeros
    return [count * PER_TILE for count in tiles]


def test_image_tokens_equal_image_features(sampled):
    trainer, output, _ = sampled
    shown = [turn.image for episode in trainer._episodes for turn in episode.user_turns]
    features = iter(features_of(trainer.turn_tokens, output, shown))
    for row, count in enumerate(output["num_images"]):
        prompt, said, _ = unpadded(output, row)
        assert (prompt + said).count(trainer.turn_tokens.image_token_id) == sum(next(features) for _ in range(count))


def test_the_mask_is_one_on_what_the_model_said(model, tmp_path, rows, monkeypatch):
    """A valid box, a turn that was cut off, an invalid box; every other token is the environment's."""
    form = form_of(model)
    inverted = form.written((70, 70, 20, 20), (192, 192), "it")
    first = [form.written(WIDE, (192, 160), "it"), (PROSE, CUT), form.written(TALL, (160, 192), "it"), inverted]
    last = ["\\boxed{A}", "It is \\boxed{B}", ("\\boxed{", CUT), "\\boxed{B}"]
    if LocalPolicy.load(str(model)).tokens.opens_thinking:  # the template opened the block, the model closes it
        first = [said if isinstance(said, tuple) else "A \\boxed{C}?</think>\n\n" + said for said in first]
        last = [said if isinstance(said, tuple) else "B?</think>\n\n" + said for said in last]
    Script((first, last)).install(monkeypatch)
    trainer = make_trainer(model, tmp_path, rows, **chosen(model))
    output = trainer._generate_and_score_completions(rollouts(rows))
    tokens = trainer.turn_tokens
    for i in range(4):
        _, said, mask = unpadded(output, i)
        own = [token for token, on in zip(said, mask) if on]
        assert own == Script.ids(tokens, first[i]) + Script.ids(tokens, last[i])
        texts = [turn.text for turn in trainer._episodes[i].user_turns]
        environment = tokens.tokenizer.decode([token for token, on in zip(said, mask) if not on])
        assert texts[1] in environment and texts[0] not in environment
    assert [e.first_grounding.status for e in trainer._episodes] == [
        BoxStatus.VALID, BoxStatus.NO_JSON, BoxStatus.VALID, BoxStatus.INVERTED,
    ]  # fmt: skip
    assert [e.end for e in trainer._episodes] == [End.ANSWERED, End.ANSWERED, End.TRUNCATED, End.ANSWERED]


def without_router_loss(model):
    """A mixture of experts shares prompts only without its router's loss, which counts tokens as often as they occur."""
    return chosen(model) | ({"router_aux_loss_coef": 0.0} if "moe" in type_of(model) else {})


def test_shared_prompts_give_the_loss_and_gradients_of_the_plain_path(model, tmp_path, rows, monkeypatch):
    """Two turns, two images per rollout, the vision tower trained; or a sentence says why its prompts are not shared."""
    args = without_router_loss(model)
    policy = LocalPolicy.load(str(model))
    form, think = form_of(model), "</think>" if policy.tokens.opens_thinking else ""
    boxes = [think + form.written(box, (192, 160), "it") for box in (WIDE, SMALL)]
    turns = ([boxes[0], (PROSE, CUT), boxes[1]], [think + "\\boxed{A}", think + "It is \\boxed{B}", ("\\boxed{", CUT)])
    plain = update(model, tmp_path / "plain", rows, monkeypatch, shared=False, turns=turns, **args)
    shared = update(model, tmp_path / "shared", rows, monkeypatch, shared=True, turns=turns, **args)
    assert shared[2].sharing.on == shares_prompts(shared[2].model.config.model_type) and not plain[2].sharing.on
    same(plain, shared)


def test_prompts_are_computed_once_and_later_turns_continue(model, tmp_path, rows):
    """Tokens of the language model's forwards over more than what is sampled: prompts once, then what is new."""
    if not shares_prompts(type_of(model)):
        pytest.skip("its prompts are not shared")
    args = {"per_device_train_batch_size": 6, "num_generations": 2} | without_router_loss(model)
    trainer, tokens = make_trainer(model, tmp_path, rows, **args), []
    trainer.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    output = trainer._generate_and_score_completions(rollouts(rows, 3, 2))
    filled = [count for count in tokens if count > 6]  # what is sampled comes in sixes
    prompts = output["prompt_mask"].sum(1)[::2] - 1  # the last token is where sampling begins
    environment = (output["completion_mask"] * (1 - output["tool_mask"])).sum()
    said = sum(mask.index(0) for mask in (unpadded(output, row)[2] for row in range(6)))  # in turn 1
    assert len(filled) == 2 and filled[0] == prompts.sum()
    # A recurrent state is kept as it was before the turn was sampled, so that turn is computed again.
    new = environment + said if is_hybrid(trainer.model) else environment
    assert new - 6 <= filled[1] <= new + 6


def test_an_ended_conversation_costs_the_others_nothing(model, rows):
    """Asked again with nothing new, as the turn loop does in training: nothing is said wrongly, and nothing raises."""
    policy = LocalPolicy.load(str(model))
    protocol = GroundedVQA.from_pretrained(str(model)).protocol
    episodes = [Episode(Question.from_row(row), Image.open(row["image"]), protocol) for row in rows[:2]]
    conversations = [policy.open(episode.opening()) for episode in episodes]
    first = policy.say(conversations, 6)
    policy.follow(conversations[0], first[0], episodes[0].reply("no box"))
    again = policy.say(conversations, 6)
    alone = LocalPolicy.load(str(model))
    assert [said.ids for said in alone.say(conversations, 6)] == [said.ids for said in again]
    assert again[1].ids == first[1].ids


def test_a_given_turn_is_read_as_it_was_given(model, rows):
    """Controls write the model's turn, or begin it; a thinking block that the template opened is closed first."""
    policy = LocalPolicy.load(str(model))
    form = form_of(model)
    text = form.written(WIDE, (192, 160), "it")
    said = policy.write(text)
    assert spoken(policy.tokens.decode(said.ids)).strip() == text
    begun = form.example.split('": [')[0]
    episode = Episode(
        Question.from_row(rows[0]), Image.open(rows[0]["image"]), Protocol(method=Method.DIRECT, budget=policy.budget)
    )
    [continued] = policy.go_on([policy.open(episode.opening())], begun, 24)
    assert spoken(continued.text).strip().startswith(begun)


@pytest.mark.parametrize(("method", "lora"), [("mgpo", False), ("mgpo", True), ("grpo", False), ("direct", True)])
def test_two_steps_train_it(model, tmp_path, rows, method, lora):
    """All weights, or LoRA's; over two turns, or in one."""
    peft = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    args = {
        "max_steps": 2,
        "extra_reward_funcs": ["support.sum_of_ids"],
        "peft_config": peft,
        "method": method,
    } | chosen(model)
    trainer = make_trainer(model, tmp_path, rows, **args)
    learned = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora" in name for name in learned) == lora
    trainer.train()
    assert_moved(trainer, learned)


def assert_moved(trainer, learned):
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(before, after[name]) for name, before in learned.items())
    assert all(after[name].isfinite().all() for name in learned)


def test_its_vision_tower_can_be_frozen(model):
    loaded = load_model(str(model)).requires_grad_(True)
    freeze_vision_tower(loaded)
    frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
    assert frozen and not any("language_model" in name or "lm_head" in name for name in frozen)


def test_short_answers_are_learned_where_they_are_asked(model, tmp_path, rows):
    """SFT: the prompt is the one that `direct` evaluation uses, the mask is one on the answer and its end, log-probabilities
    are those of each conversation alone, and two steps train it."""
    config = settings(tmp_path, method="sft", max_steps=2, **chosen(model))
    trainer = build_sft_trainer(DataArguments(model_name_or_path=str(model)), config, datasets.Dataset.from_list(rows))
    asked = trainer.train_dataset[:3]
    asked = [dict(zip(asked, values)) for values in zip(*asked.values())]
    batch, tokens = trainer.data_collator(asked), LocalPolicy.load(str(model)).tokens
    protocol = config.protocol(GroundedVQA.from_pretrained(str(model)).policy.budget, None)
    features = features_of(tokens, batch, [row["images"][0] for row in asked])
    think = "\n</think>\n\n" if tokens.opens_thinking else ""
    whole = log_probs(trainer.model, batch)
    for i, row in enumerate(rows[:3]):
        turn = Episode(Question.from_row(row), Image.open(row["image"]), protocol).opening()
        opening = tokens.opening(turn)
        said = Script.ids(tokens, f"{think}\\boxed{{{row['answer']}}}")
        assert batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist() == opening + said
        assert batch["labels"][i].tolist()[: len(opening + said)] == [-100] * len(opening) + said
        assert (batch["labels"][i][len(opening + said) :] == -100).all()
        assert opening.count(tokens.image_token_id) == features[i]
        ids = torch.tensor([opening + said])
        types = {tokens.pictures.types: (ids == tokens.image_token_id).int()} if tokens.pictures.types else {}
        assert all(torch.equal(batch[name][i : i + 1, : ids.shape[1]], known) for name, known in types.items())
        labels = batch["labels"][i : i + 1, : ids.shape[1]]
        alone = log_probs(trainer.model, {"input_ids": ids, "labels": labels} | types | tokens.pixels([turn.image]))[0]
        assert difference([whole[i, : len(alone)]], [alone]) < TOLERANCE
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1, "nothing is padded"
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert_moved(trainer, before)


def log_probs(model, batch):
    """(rows, tokens) of what is learned, 0 elsewhere."""
    with torch.no_grad():
        logits = model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits.float()
    labels = batch["labels"][:, 1:, None]
    found = logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0))
    return found.masked_fill(labels < 0, 0)[..., 0]


def test_text_of_the_data_creates_no_special_token(model, rows):
    """A question that spells out every special token that the family has, and two that it has not."""
    policy = LocalPolicy.load(str(model))
    tokens = policy.tokens
    special = {name: i for name, i in tokens.tokenizer.get_added_vocab().items() if name.startswith(("<", "[g"))}
    evil = "".join(special) + "[gMASK]<|im_start|>"

    def opened(question):
        row = Question(None, question, (evil, "x"), "A")
        ids = tokens.opening(
            Episode(row, Image.open(rows[0]["image"]), Protocol(method=Method.DIRECT, budget=policy.budget)).opening()
        )
        return [token for token in ids if token in special.values() and token != tokens.image_token_id]

    assert tokens.image_token_id in policy.banned_ids, "a sampled placeholder would have no features"
    assert len(special) > 12 and opened(evil) == opened("Which letter?")


def test_it_is_asked_and_evaluated(model, rows):
    vqa = GroundedVQA.from_pretrained(str(model), **SHORT)
    found = vqa.ask(rows[0]["image"], rows[0]["question"], rows[0]["choices"])
    assert len(found.turns) == 2
    assert len(vqa.ask([row["image"] for row in rows[:2]], rows[0]["question"]).turns) == 2
    questions = [Question.from_row(row) for row in rows[:3]]
    assert len(evaluate(vqa.policy, questions, vqa.protocol, vqa.limits)) == 3


def test_it_is_served(model, rows):
    data = base64.b64encode(Path(rows[0]["image"]).read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}
    content = [image, {"type": "text", "text": "Which letter?\nA. H\nB. K"}]
    app = create_app(GroundedVQA.from_pretrained(str(model), **SHORT), "it", Limits())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        body = {"model": "it", "messages": [{"role": "user", "content": content}]}
        found = client.post("/v1/chat/completions", json=body).json()
    assert len(found["mgpo"]["turns"]) == 2 and found["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("size", [(192, 160), (160, 192)])
def test_a_box_survives_in_the_family_s_own_form(model, size):
    form = form_of(model)
    frame = Frame(size, (0, 0, size[0] * 10, size[1] * 10))
    rules = GroundedVQA.from_pretrained(str(model)).protocol.box
    for box in (WIDE, (5, 5, 50, 130), (0, 0, *size)):
        found = read_grounding("Here: " + form.written(box, size, "it"), frame, rules)
        assert found.status is BoxStatus.VALID
        assert found.box_px_input == pytest.approx(box, abs=max(size) / 1000)

"""The checkpoint that the package ships: an ordinary Qwen2.5-VL folder that plain transformers loads."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image

ASSET = Path(str(files("mgpo"))) / "assets" / "mgpo-tiny"


@pytest.fixture(scope="module")
def asset():
    assert (ASSET / "model.safetensors").is_file(), f"{ASSET} holds no model: the package would ship without mgpo-tiny."
    return ASSET


@pytest.fixture(scope="module")
def model(asset):
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(asset, use_safetensors=True)


def test_it_is_small(asset):
    assert sum(file.stat().st_size for file in asset.rglob("*") if file.is_file()) <= 16 * 2**20


def test_it_holds_no_pickles(asset):
    names = {file.name for file in asset.rglob("*") if file.is_file()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5"))]
    assert [name for name in names if name.endswith(".safetensors")] == ["model.safetensors"]


def test_it_has_a_model_card(asset):
    card = (asset / "README.md").read_text()
    assert len(card) > 500 and "mgpo-tiny" in card and "license" in card.lower()


def test_plain_transformers_loads_all_of_it(asset, model):
    from transformers import AutoImageProcessor, AutoTokenizer

    from mgpo.tiny.tokenizer import build_tokenizer
    from mgpo.tiny.views import BUDGET

    assert 1e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 8e6
    tokenizer = AutoTokenizer.from_pretrained(asset)
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    images = AutoImageProcessor.from_pretrained(asset, backend="pil")
    assert dict(images.size) == {"shortest_edge": BUDGET.min_pixels, "longest_edge": BUDGET.max_pixels}
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    inputs = images(images=[Image.new("RGB", (168, 140))], return_tensors="pt")
    count = int(inputs["image_grid_thw"].prod() // 4)
    text = text.replace("Hi", "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>Hi")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=(ids == model.config.image_token_id).int(), **inputs).logits
    assert logits.isfinite().all()


def test_its_ids_agree(asset, model):
    config = json.loads((asset / "config.json").read_text())
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asset)
    assert config["image_token_id"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert config["model_type"] == "qwen2_5_vl" and config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings


def test_our_policy_loads_it_by_name(asset):
    from mgpo.policies.local import LocalPolicy

    policy = LocalPolicy.load("mgpo-tiny")
    assert policy.tokens.image_token_id == policy.model.config.image_token_id


class TestTheTrainedTwin:
    """`mgpo-tiny-mgpo`: the base after its recipe, which `mgpo ask` and `mgpo serve` use where no model is named."""

    FOLDER = ASSET.parent / "mgpo-tiny-mgpo"

    def test_it_is_the_base_but_for_its_language_weights(self):
        from safetensors.torch import load_file

        base, trained = (load_file(folder / "model.safetensors") for folder in (ASSET, self.FOLDER))
        assert base.keys() == trained.keys()
        moved = {name for name in base if not torch.equal(base[name], trained[name])}
        assert moved and not any("visual" in name for name in moved)  # the recipe freezes the tower
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
            assert (self.FOLDER / name).read_bytes() == (ASSET / name).read_bytes()

    def test_it_looks_where_the_base_does_not(self):
        """On 60 questions that neither its training nor its card has seen, its boxes hit at least 30 points more often."""
        from mgpo.asking.settings import limits_for, load_policy, protocol_for
        from mgpo.evaluation.evaluate import evaluate
        from mgpo.method.question import Question
        from mgpo.policies.names import trained_with
        from mgpo.worlds.needle import needle_rows

        hits = {}
        for name in ("mgpo-tiny", "mgpo-tiny-mgpo"):
            policy, trained = load_policy(name), trained_with(name)
            protocol = protocol_for(policy, "mgpo", None, None, None, None, trained)
            questions = (Question.from_row(row) for row in needle_rows("test", 4242, 60))
            found = evaluate(policy, questions, protocol, limits_for(trained, protocol), batch_size=60)
            hits[name] = sum(bool(result.greedy_hit) for result in found) / sum(r.greedy_hit is not None for r in found)
        assert hits["mgpo-tiny-mgpo"] > hits["mgpo-tiny"] + 0.3

"""Under which pixel budget a policy sees, and how it writes boxes: the same for a hub's model and a trained folder."""

import json
import shutil

import datasets
import pytest
import yaml
from support import make_trainer, settings
from transformers import AutoConfig

from mgpo.asking.settings import protocol_for
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm, Coordinates
from mgpo.method.protocol import Protocol
from mgpo.policies.families import FAMILIES, form_of, form_of_name
from mgpo.policies.loading import budget_of, has_torchvision, load_processor
from mgpo.policies.local import LocalPolicy
from mgpo.policies.names import trained_with
from mgpo.policies.processors import video_settings
from mgpo.training.trainer import MGPOTrainer

HUB = {"shortest_edge": 3136, "longest_edge": 12_845_056}
"""What the hub's Qwen2.5-VL states in its preprocessor_config.json."""


@pytest.fixture(scope="module")
def like_the_hub(random_tiny, tmp_path_factory):
    """A checkpoint as it comes from the hub: no run beside it, the family's limits in its processor."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    shutil.copytree(random_tiny, folder)
    (folder / "config.yaml").unlink()
    file = folder / "processor_config.json"
    stated = json.loads(file.read_text())
    stated["image_processor"]["size"] = HUB
    file.write_text(json.dumps(stated))
    return str(folder)


def test_base_and_trained_see_a_region_alike(like_the_hub, tmp_path):
    """A region of 100 x 80 px under --max-pixels 1003520; it was 112 x 84 for the hub's model."""
    trained = tmp_path / "trained"
    shutil.copytree(like_the_hub, trained)
    (trained / "config.yaml").write_text("min_pixels: 200704\nmax_pixels: 501760\n")
    shown = []
    for model in (like_the_hub, str(trained)):
        policy = LocalPolicy.load(model)
        protocol = protocol_for(policy, max_pixels=1_003_520, trained=trained_with(model))
        assert budget_of(policy.processor) == protocol.budget
        shown.append(protocol.budget.fit((100, 80)))
    assert shown == [(504, 420)] * 2


def test_without_a_word_the_budget_is_the_paper_s(like_the_hub):
    assert budget_of(load_processor(like_the_hub)) == PixelBudget(200_704, 1_003_520)
    assert budget_of(load_processor("mgpo-tiny")) == PixelBudget(15_680, 28_224)  # its own, beside it


@pytest.mark.parametrize("given", [False, True], ids=["loaded by the trainer", "given as the hub states it"])
def test_training_without_limits_uses_the_paper_s(like_the_hub, tmp_path, rows, given):
    """As in the Python example of docs/api.md; also with a processor that `AutoProcessor` loaded."""
    processor = None
    if given:
        processor = load_processor(like_the_hub)
        processor.image_processor.size = HUB
    args = settings(tmp_path / "run")
    with pytest.raises(
        ValueError, match="1282 overview"
    ):  # the tiny model has no room for it: the sum names the budget
        MGPOTrainer(like_the_hub, args, datasets.Dataset.from_list(rows), processor)


def test_limits_that_are_set_hold(like_the_hub, tmp_path, rows):
    trainer = make_trainer(like_the_hub, tmp_path / "run", rows, min_pixels=15_680, max_pixels=28_224)
    assert budget_of(trainer.processing_class) == trainer.protocol.budget == PixelBudget(15_680, 28_224)


def test_a_run_s_budget_holds_for_its_checkpoints(like_the_hub, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"min_pixels": 7840, "max_pixels": 15_680}))
    checkpoint = tmp_path / "checkpoint-5"
    shutil.copytree(like_the_hub, checkpoint)
    assert budget_of(load_processor(str(checkpoint))) == PixelBudget(7840, 15_680)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "internvl"])
def test_only_qwen2_5_vl_writes_pixels(model_type):
    assert form_of(model_type).coordinates is Coordinates.RELATIVE_1000
    assert form_of("qwen2_5_vl") == BoxForm()


def test_the_model_types_exist():
    """A misspelt one would never be found."""
    for model_type in (t for family in FAMILIES for t in family.model_types):
        assert AutoConfig.for_model(model_type).model_type == model_type


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", Coordinates.ABSOLUTE),
        ("qwen2_5-vl-mine", None),
        ("XiaomiMiMo/MiMo-VL-7B-RL", Coordinates.ABSOLUTE),
        ("Qwen/Qwen2-VL-2B-Instruct", Coordinates.RELATIVE_1000),
        ("Qwen/Qwen3-VL-8B-Instruct", Coordinates.RELATIVE_1000),
        ("Qwen/Qwen3.5-4B", Coordinates.RELATIVE_1000),
        ("OpenGVLab/InternVL3_5-8B-HF", Coordinates.RELATIVE_1000),
        ("zai-org/GLM-4.6V-Flash", Coordinates.RELATIVE_1000),
        ("mine", None),
        ("google/gemma-3-4b-it", None),
        ("qwen2.5-vl-distilled-from-qwen3-vl", None),
    ],
)
def test_a_name_tells_its_family_or_nothing(name, unit):
    form = form_of_name(name)
    assert (form and form.coordinates) is unit


def test_an_unknown_family_is_asked_for_not_guessed():
    with pytest.raises(ValueError, match="--coordinates.*absolute.*relative_1000"):
        Protocol.from_settings({}, PixelBudget(), None)
    asked = Protocol.from_settings({"coordinates": "relative_1000"}, PixelBudget(), None)
    assert asked.box.form.coordinates is Coordinates.RELATIVE_1000
    assert Protocol.from_settings({"method": "direct"}, PixelBudget(), None).turns == 1  # no box is asked for


@pytest.mark.parametrize(
    "file", ["video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"]
)
def test_a_folder_keeps_the_settings_of_its_video_half(random_tiny, tmp_path, file):
    """Without torchvision it is loaded and saved without that half; transformers and vLLM need it where they load the folder."""
    source, video = (
        tmp_path / "hub",
        {"video_processor_type": "Qwen2VLVideoProcessor", "size": {"longest_edge": 7, "shortest_edge": 5}},
    )
    shutil.copytree(random_tiny, source)
    there = json.loads((source / "processor_config.json").read_text())
    if file == "processor_config.json":
        (source / file).write_text(json.dumps(there | {"video_processor": video}))
    else:
        (source / file).write_text(json.dumps(there["image_processor"] | video))
    processor = load_processor(str(source))
    for number in range(2):  # a run that begins from a run
        processor.save_pretrained(tmp_path / str(number))
        shutil.copy(random_tiny / "config.json", tmp_path / str(number))
        processor = load_processor(str(tmp_path / str(number)))
        assert video_settings(str(tmp_path / str(number))).items() >= video.items()
    assert "video" not in json.loads((tmp_path / "1/processor_config.json").read_text()) or has_torchvision()

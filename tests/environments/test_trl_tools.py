"""The zoom tool in TRL's own `GRPOTrainer`, with tiny random models of the families whose templates have tools."""

import json

import datasets
import numpy as np
import pytest
import torch
from family_models import make
from PIL import Image
from support import even_ids, unpadded
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_5_nothink_chat_template, qwen3_vl_chat_template

from mgpo.environments.trl_tools import ZoomEnvironment, zoom_dataset, zoom_factory, zoom_protocol, zoom_settings
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm, BoxRules, Coordinates
from mgpo.method.episode import End, Episode
from mgpo.method.prompts import NO_MORE, SHOW_AGAIN, SHOW_CROP
from mgpo.method.protocol import Method, Protocol
from mgpo.method.question import Question
from mgpo.method.rewards import accuracy_reward
from mgpo.policies.loading import load_processor
from mgpo.policies.tokens import TurnTokens
from mgpo.policies.turn_loop import TurnLimits

VALID, OUTSIDE, INVERTED = [100, 100, 600, 500], [100, 100, 1400, 500], [600, 500, 100, 100]
"""Boxes in thousandths."""


def qwen3_call(arguments):
    return f'<tool_call>\n{{"name": "zoom", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def calls_of(box):
    return lambda question: qwen3_call({"bbox_2d": box})


def qwen3_5_call(arguments):
    given = "".join(f"<parameter={key}>\n{json.dumps(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function=zoom>\n{given}</function>\n</tool_call>"


@pytest.fixture(scope="module")
def qwen3_vl(tmp_path_factory):
    """A checkpoint with the family's own template, as TRL knows it."""
    return make("qwen3_vl", tmp_path_factory.mktemp("qwen3_vl"), qwen3_vl_chat_template)


class Recording(GRPOTrainer):
    """TRL's trainer; what a step trains on is kept."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.outputs = [*getattr(self, "outputs", []), output]
        self.ended = [*getattr(self, "ended", []), [environment.episode for environment in self.environments]]
        return output


def trainer_of(model, folder, rows, rewards=accuracy_reward, turns=2, **changes):
    processor = load_processor(str(model))
    protocol = zoom_protocol(str(model), processor, turns)
    settings = zoom_settings(protocol, processor, TurnLimits(96, 12)) | changes
    args = GRPOConfig(
        str(folder), per_device_train_batch_size=4, num_generations=2, max_steps=2, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, beta=0.0, gradient_checkpointing=False, **settings,
    )  # fmt: skip
    return Recording(
        str(model), rewards, args, zoom_dataset(datasets.Dataset.from_list(rows)), processing_class=processor,
        environment_factory=zoom_factory(protocol),
    )  # fmt: skip


def script(monkeypatch, first, later):
    """Stands in for sampling: rollout i says `first[i](question)`, and after a call `later[i](question)`; all else is TRL's."""

    def say(trainer, prompt_ids, images, fields, *args, has_tool_images=False, **kwargs):
        lines, numbers = (later, say.callers) if say.calls % 2 else (first, range(len(prompt_ids)))
        say.calls += 1
        say.seen.append([list(ids) for ids in prompt_ids])
        questions = [environment.episode.question for environment in trainer.environments]
        texts = [lines[i](questions[i]) for i in numbers]
        tokens = TurnTokens(trainer.processing_class)
        encoded = [tokens.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [[*ids, tokens.turn_end_id] for ids in encoded], None

    say.calls, say.seen = 0, []
    say.callers = [i for i, line in enumerate(first) if "<tool_call>" in line(Question("x.png", "?"))]
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", say)
    return say


def right(question):
    return f"I see it. \\boxed{{{question.answer}}}"


def wrong(question):
    return "\\boxed{%s}" % ("A" if question.answer != "A" else "B")


def test_two_steps_with_crops_of_the_original(qwen3_vl, tmp_path, rows, monkeypatch):
    """A valid box, a box outside the image, and two rollouts that answer at once."""
    first = [lambda q: qwen3_call({"bbox_2d": VALID, "label": "it"}), calls_of(OUTSIDE), right, wrong]
    said = script(monkeypatch, first, [right, wrong, None, None])
    trainer = trainer_of(qwen3_vl, tmp_path, rows)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2 and len(trainer.outputs) == 2 and said.calls == 4
    still = [name for name, value in trainer.model.named_parameters() if (value == before[name]).all()]
    # The tiny text model's last layer adds these to image positions, which nothing reads any more.
    assert all("deepstack_merger_list.1" in name for name in still), still
    for output, episodes in zip(trainer.outputs, trainer.ended):
        check_images(trainer, output, episodes)
        check_mask(trainer, output, episodes, [line(episodes[i].question) for i, line in enumerate(first)])
        assert output["advantages"].sign().tolist() == [1, -1, 1, -1]
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["rewards/accuracy_reward/mean"] for entry in logged] == [0.5, 0.5]
    assert [entry["tools/call_frequency"] for entry in logged] == [0.5, 0.5]
    assert [entry["tools/failure_frequency"] for entry in logged] == [0, 0]


def test_calls_of_qwen3_5_are_read(tmp_path, tmp_path_factory, rows, monkeypatch):
    """Its template writes a call in tags, and TRL reads the numbers by the tool's own types."""
    model = make("qwen3_5", tmp_path_factory.mktemp("qwen3_5"), qwen3_5_nothink_chat_template)
    first = [lambda q: qwen3_5_call({"bbox_2d": VALID, "label": "it"}), lambda q: qwen3_5_call({"bbox_2d": OUTSIDE})]
    first += [right, wrong]
    script(monkeypatch, first, [right, wrong, None, None])
    trainer = trainer_of(model, tmp_path, rows)
    output = one_step(trainer)
    check_images(trainer, output, trainer.ended[0])
    check_mask(trainer, output, trainer.ended[0], [line(None) if i < 2 else "" for i, line in enumerate(first)])


def check_images(trainer, output, episodes):
    """The images trained on are the overviews and what was returned, and each has its features."""
    assert output["num_images"] == [2, 2, 1, 1]
    crop, again, *no_calls = episodes
    original = Image.open(crop.question.image)
    box = tuple(round(v * side / 1000) for v, side in zip(VALID, original.size * 2))
    assert crop.user_turns[1].frames[0].region_px_original == box and crop.user_turns[1].text.startswith(SHOW_CROP)
    cut = np.asarray(original.crop(box).resize(crop.user_turns[1].image.size, Image.Resampling.BICUBIC), np.int16)
    assert abs(cut - np.asarray(crop.user_turns[1].image, np.int16)).max() <= 1
    assert again.user_turns[1].text.startswith(SHOW_AGAIN)
    assert again.user_turns[1].image is again.user_turns[0].image
    shown = [image for episode in episodes for turn in episode.user_turns for image in turn.images]
    straight = trainer.processing_class.image_processor(images=shown, return_tensors="pt")
    assert torch.equal(output["image_grid_thw"], straight["image_grid_thw"])
    assert torch.equal(output["pixel_values"], straight["pixel_values"])
    assert [len(episode.model_turns) for episode in no_calls] == [0, 0]


def check_mask(trainer, output, episodes, first):
    """The loss is on the model's tokens; what the tool returned is between them, its image tokens with it."""
    tokens = TurnTokens(trainer.processing_class)
    for i, episode in enumerate(episodes):
        _, said, mask = unpadded(output, i)
        texts = tokens.tokenizer.decode([t for t, on in zip(said, mask) if on], skip_special_tokens=True)
        answers = [right, wrong, right, wrong][i](episode.question)
        assert texts == (first[i] + answers if i < 2 else answers)
        returned = [t for t, on in zip(said, mask) if not on]
        assert (tokens.image_token_id in returned) == (i < 2)
        if i < 2:
            assert returned.count(tokens.image_token_id) == tokens.image_tokens(episode.user_turns[1].image)
            assert episode.user_turns[1].text in tokens.tokenizer.decode(returned)


def test_two_steps_of_a_model_that_never_calls(qwen3_vl, tmp_path, rows):
    """Sampled by the random model itself."""
    trainer = trainer_of(qwen3_vl, tmp_path, rows, [accuracy_reward, even_ids], max_completion_length=10)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert [output["num_images"] for output in trainer.outputs] == [[1] * 4] * 2
    assert all("pixel_values" in output and output["tool_mask"].all() for output in trainer.outputs)
    assert any((value != before[name]).any() for name, value in trainer.model.named_parameters())
    assert all(episode.model_turns == [] and episode.end is None for batch in trainer.ended for episode in batch)


def one_step(trainer):
    """What one batch trains on, without the update."""
    trainer.model.train()
    batch = [dict(row) for row in list(trainer.train_dataset)[:2] for _ in range(2)]
    return trainer._generate_and_score_completions(batch)


def test_a_call_after_the_last_turn_is_not_run(qwen3_vl, tmp_path, rows, monkeypatch):
    """With two turns the second one is the last, and its text is what the reward judges."""
    again = [lambda q: right(q) + calls_of(VALID)(q), calls_of(VALID), right, wrong]
    script(monkeypatch, [calls_of(VALID)] * 4, again)
    trainer = trainer_of(qwen3_vl, tmp_path, rows)
    output = one_step(trainer)
    assert output["num_images"] == [2] * 4 and output["advantages"].sign().tolist() == [1, -1, 1, -1]
    assert [len(environment.episode.model_turns) for environment in trainer.environments] == [1] * 4


def test_arguments_that_do_not_fit_are_no_usable_box(qwen3_vl, tmp_path, rows, monkeypatch):
    first = [lambda q: qwen3_call({"label": "it"}), lambda q: qwen3_call({"bbox_2d": VALID, "zoom": 2}), right, right]
    said = script(monkeypatch, first, [right, wrong, None, None])
    trainer = trainer_of(qwen3_vl, tmp_path, rows)
    output = one_step(trainer)
    assert output["num_images"] == [2, 2, 1, 1] and trainer._metrics["train"]["tools/failure_frequency"] == [0.0]
    assert all(SHOW_AGAIN in trainer.processing_class.tokenizer.decode(ids) for ids in said.seen[1])


def test_a_tool_that_does_not_exist_is_trls_own_matter(qwen3_vl, tmp_path, rows, monkeypatch):
    """Answered without an image. If no other call of the batch returns one, TRL 1.16 fails where the image processor gives
    arrays, as it does without torchvision. If this fails, TRL was repaired, and docs/environments.md must change."""
    first = [lambda q: qwen3_call({}).replace('"zoom"', '"look"'), calls_of(VALID), right, wrong]
    script(monkeypatch, first, [right, wrong, None, None])
    trainer = trainer_of(qwen3_vl, tmp_path, rows)
    assert one_step(trainer)["num_images"] == [1, 2, 1, 1]
    script(monkeypatch, [first[0], right, right, wrong], [right, None, None, None])
    with pytest.raises(AttributeError, match="prod"):
        one_step(trainer)


def test_a_call_whose_crop_does_not_fit_ends_the_rollout(qwen3_vl, tmp_path, rows, monkeypatch):
    """`zoom_settings` leaves room; where a user does not, TRL drops what the tool returned, image and all."""
    said = script(monkeypatch, [calls_of(VALID), right, right, wrong], [right] * 4)
    trainer = trainer_of(qwen3_vl, tmp_path, rows, max_completion_length=100)
    output = one_step(trainer)
    assert said.calls == 1 and output["num_images"] == [1] * 4
    assert output["advantages"].sign().tolist() == [-1, 1, 1, -1]


def test_one_sampled_image_token_costs_the_batch_its_images(qwen3_vl, tmp_path, rows, monkeypatch):
    """Why `zoom_settings` bans them. If this fails, TRL no longer drops images, and docs/environments.md must change."""
    script(monkeypatch, [calls_of(VALID), right, lambda q: "<|image_pad|>" + right(q), wrong], [right] * 4)
    trainer = trainer_of(qwen3_vl, tmp_path, rows)
    assert "pixel_values" not in one_step(trainer)
    banned = trainer.args.generation_kwargs["suppress_tokens"]
    assert TurnTokens(trainer.processing_class).image_token_id in banned
    assert trainer.generation_config.suppress_tokens == banned


def test_a_template_without_tools_is_refused_by_trl(random_tiny, tmp_path, rows):
    """That of Qwen2.5-VL has none."""
    with pytest.raises(ValueError, match="does not support tool calling"):
        trainer_of(random_tiny, tmp_path, rows)


THOUSANDTHS = BoxRules(form=BoxForm(Coordinates.RELATIVE_1000))
PROTOCOL = Protocol(Method.ADAPTIVE, 2, box=THOUSANDTHS, budget=PixelBudget(4 * 1024, 36 * 1024, 32), tool="zoom")


def environment_of(row, protocol=PROTOCOL, photographs=None):
    environment = ZoomEnvironment(protocol, photographs)
    shown = environment.reset(**{("photograph" if key == "image" else key): value for key, value in row.items()})
    return environment, shown


ARGUMENTS = [
    {"bbox_2d": VALID}, {"bbox_2d": VALID, "label": "```"}, {"bbox_2d": VALID, "label": "</think>"}, {"bbox_2d": OUTSIDE},
    {"bbox_2d": VALID, "label": 'in \\boxed{A} "\n'},
    {"bbox_2d": INVERTED}, {"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": "100, 100, 600, 500"}, {"bbox_2d": VALID[:3]},
    {"bbox_2d": [[1], 2, 3, 4]}, {"bbox_2d": [100.5, 100, 600, 500]}, {"bbox_2d": [float("nan")] * 4}, {"bbox_2d": None},
    {"bbox_2d": VALID, "label": 5}, {"bbox_2d": {"x1": 1}}, {"bbox_2d": [10**30] * 4}, {"bbox_2d": VALID, "image": 2},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_a_call_is_answered_as_the_same_box_in_json(rows, arguments):
    environment, _ = environment_of(rows[0])
    returned = environment.zoom(**arguments)
    question = Question.from_row(rows[0])
    episode = Episode(question, (question.image,), PROTOCOL)
    episode.opening()
    plain = {"bbox_2d": arguments["bbox_2d"], "label": "it" if isinstance(arguments.get("label", ""), str) else 5}
    turn = episode.reply(f"```json\n{json.dumps([plain])}\n```")
    assert environment.episode.first_grounding.status == episode.first_grounding.status
    assert [part["type"] for part in returned] == ["image", "text"] and returned[1]["text"] == turn.text
    assert turn.text.startswith(SHOW_CROP if arguments["bbox_2d"] == VALID and plain["label"] == "it" else SHOW_AGAIN)
    assert returned[0]["image"].tobytes() == turn.image.tobytes()


def test_what_the_overview_loses_is_in_the_crop(tmp_path):
    """Lines one pixel wide: grey in the overview, black and white in the crop."""
    pixels = np.zeros((1000, 1000), np.uint8)
    pixels[:, ::2] = 255
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "lines.png")
    row = {"image": str(tmp_path / "lines.png"), "question": "Which?", "choices": ["a", "b"], "answer": "A"}
    environment, shown = environment_of(row)
    assert np.ptp(np.asarray(shown[0]["image"])[20:-20, 20:-20]) < 100
    crop = np.asarray(environment.zoom([400, 400, 592, 592])[0]["image"])
    assert crop.shape[0] == 192 and crop.min() == 0 and crop.max() == 255


def test_turns_run_out(rows):
    """With three turns a second region is offered, then none; further calls of one message are answered too."""
    environment, shown = environment_of(rows[0], Protocol(**vars(PROTOCOL) | {"max_turns": 3}))
    assert "call zoom with the box" in shown[1]["text"] and "```json" not in shown[1]["text"]
    assert "in thousandths of the width and height of this image" in shown[1]["text"]
    assert "call zoom again" in environment.zoom(VALID)[1]["text"]
    assert "call zoom" not in environment.zoom(OUTSIDE)[1]["text"]
    for _ in range(2):
        (part,) = environment.zoom(VALID)
        assert part["text"].startswith(NO_MORE) and "\\boxed{}" in part["text"]
    assert environment.episode.end is End.NO_ANSWER


def test_rollouts_share_a_photograph_and_nothing_else(rows):
    made = zoom_factory(PROTOCOL)
    one, other, third = made(), made(), made()
    for environment, row in ((one, rows[0]), (other, rows[0]), (third, rows[1])):
        environment.reset(**{"photograph" if key == "image" else key: value for key, value in row.items()})
    assert one.episode.originals[0] is other.episode.originals[0] is not third.episode.originals[0]
    assert one.episode.user_turns[0].image is other.episode.user_turns[0].image
    one.zoom(VALID)
    assert (len(one.episode.model_turns), len(other.episode.model_turns)) == (1, 0)


def test_a_box_names_its_image_by_number(rows):
    row = rows[0] | {"more_images": [rows[1]["image"]], "gold_image": 1}
    environment, shown = environment_of(row)
    assert [part["type"] for part in shown] == ["text", "image", "text", "image", "text"]
    assert "call zoom with the number of the image" in shown[-1]["text"]
    assert "the region of image 2 that you named" in environment.zoom(VALID, image=2)[1]["text"]


def test_what_cannot_be_is_a_sentence(rows, qwen3_vl):
    with pytest.raises(ValueError, match="the column 'images', which TRL would show"):
        zoom_dataset(datasets.Dataset.from_list([row | {"images": []} for row in rows]))
    processor = load_processor(str(qwen3_vl))
    with pytest.raises(ValueError, match="takes whole numbers"):
        zoom_protocol(str(qwen3_vl), processor, coordinates="relative_1")
    with pytest.raises(RuntimeError, match="before reset"):
        ZoomEnvironment(PROTOCOL).zoom(VALID)
    with pytest.raises(ValueError, match="has no 'image' column"):
        ZoomEnvironment(PROTOCOL).reset(question="Which?")


def test_the_model_reads_the_tools_arguments():
    """What TRL renders into the prompt: two arguments that may be left out, and no method but `zoom`."""
    from transformers.utils import get_json_schema

    schema = get_json_schema(ZoomEnvironment(PROTOCOL).zoom)["function"]
    assert schema["name"] == PROTOCOL.tool and schema["parameters"]["required"] == ["bbox_2d"]
    assert set(schema["parameters"]["properties"]) == {"bbox_2d", "label", "image"}
    assert [name for name in dir(ZoomEnvironment) if not name.startswith("_")] == ["reset", "zoom"]

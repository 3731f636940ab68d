"""Images, settings and rows of the agent loop at their edges."""

import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image
from support import TALL, WIDE, Script, box
from verl.workers.rollout.replica import TokenOutput
from worker import LOOP, Scripted, batch_of, config_of, make_worker, rollouts_of

from mgpo.data.convert import convert
from mgpo.images.imaging import PixelBudget
from mgpo.images.photograph import Photograph
from mgpo.method.boxes import Frame
from mgpo.policies.tokens import TurnTokens
from mgpo.verl.reward import compute_score
from mgpo.verl.rows import question_of

BUDGET = PixelBudget(LOOP["min_pixels"], LOOP["max_pixels"])
RLHF = ("data.custom_cls.path=null", "data.custom_cls.name=null")


def ask(config, file, said, numbers=(0,)):
    """Run rows that all say the same; gives the server and the batch."""
    worker = make_worker(config, None)
    tokens = TurnTokens(worker.processor)
    server = worker.llm_client = Scripted([[Script.ids(tokens, text) for text in said]])
    return server, rollouts_of(worker, batch_of(config, file, worker, numbers))


@pytest.mark.parametrize("dataset", ["ours", "verl's"])
def test_a_box_is_cut_from_the_files_own_pixels(tiny, tmp_path, dataset):
    """Three sizes: the file's 2810x2105, what qwen_vl_utils would make of it, and the overview that the model sees."""
    from qwen_vl_utils import process_vision_info

    noise = torch.randint(0, 256, (2105, 2810, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(tmp_path / "large.png")
    row = {"id": "q", "image": str(tmp_path / "large.png"), "question": "Which?", "choices": ["H", "K"], "answer": "A"}
    file, _ = convert(iter([row]), "verl", tmp_path / "verl", "train")
    server, batch = ask(
        config_of(tiny, tmp_path, *(RLHF if dataset != "ours" else ())), file, (box(WIDE), "\\boxed{A}")
    )
    overview, crop = server.asked[1]["images"]
    resized = process_vision_info([{"role": "user", "content": [{"type": "image", "image": row["image"]}]}])[0][0]
    original = Photograph(row["image"])
    assert len({original.size, resized.size, overview.size}) == 3
    region = Frame(overview.size, (0, 0, *original.size)).to_original(WIDE)
    assert crop.tobytes() == original.crop(region, BUDGET).tobytes()
    assert (
        crop.tobytes()
        != Photograph(resized).crop(Frame(overview.size, (0, 0, *resized.size)).to_original(WIDE), BUDGET).tobytes()
    )
    grids = batch.non_tensor_batch["multi_modal_inputs"][0]["image_grid_thw"].tolist()
    assert grids == [[1, image.height // 14, image.width // 14] for image in (overview, crop)]


def test_images_stay_files_until_the_agent_loop_opens_them(tiny, parquet, tmp_path):
    config = config_of(tiny, tmp_path)
    worker = make_worker(config, None)
    (part,) = [
        p
        for p in batch_of(config, parquet, worker, (0,)).non_tensor_batch["raw_prompt"][0][0]["content"]
        if p["type"] == "image"
    ]
    assert part["bytes"][:4] == b"\x89PNG" and "image" not in part
    with pytest.raises(ValueError, match="set data.filter_overlong_prompts=False"):
        batch_of(config_of(tiny, tmp_path, "data.filter_overlong_prompts=True"), parquet, worker, (0,))


@pytest.mark.parametrize("where", ["the agent loop", "verl's data"])
def test_both_pixel_limits_reach_engine_and_update(tiny, parquet, tmp_path, where):
    """The checkpoint's processor allows 36 tokens; a budget above that would be resized back without them."""
    least, most = 40 * 784, 64 * 784
    given = {"min_pixels": least, "max_pixels": most}
    if where == "the agent loop":
        config = config_of(tiny, tmp_path, **given)
    else:
        config = config_of(
            tiny, tmp_path, f"+data.mm_processor_kwargs.min_pixels={least}", f"+data.mm_processor_kwargs.max_pixels={most}",
            min_pixels=None, max_pixels=None,
        )  # fmt: skip
    server, batch = ask(config, parquet, (box(TALL), "\\boxed{A}"), (0, 1))
    assert all(asked["mm_processor_kwargs"] == given for asked in server.asked)
    for row in range(2):
        tokens = batch.non_tensor_batch["multi_modal_inputs"][row]["image_grid_thw"].prod(1) // 4
        assert (tokens > 36).all() and (tokens <= 64).all()


@pytest.mark.parametrize(
    ("overrides", "loop", "message"),
    [
        (["data.max_response_length=100"], {}, "The longest episode takes 198 tokens of prompt and 228 of response, more than verl's 256 and 100. Set data.max_prompt_length=198 and data.max_response_length=228"),
        (["actor_rollout_ref.rollout.max_model_len=300"], {}, "max_model_len=300 cannot hold the longest episode of 426"),
        (["actor_rollout_ref.rollout.enable_rollout_routing_replay=True"], {}, "set enable_rollout_routing_replay=False"),
        (["+data.mm_processor_kwargs.max_pixels=99999"], {}, "max_pixels is 28224 for MGPOAgentLoop and 99999 in data.mm_processor_kwargs"),
        ([], {"max_turn": 3}, "unknown setting 'max_turn'. Did you mean 'max_turns'?"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(tiny, parquet, tmp_path, overrides, loop, message):
    with pytest.raises(InstantiationException) as refused:
        ask(config_of(tiny, tmp_path, *overrides, **loop), parquet, (box(WIDE), "\\boxed{A}"))
    assert message in str(refused.value)


def test_a_turn_that_the_server_aborted_is_not_scored(tiny, parquet, tmp_path):
    class Aborting(Scripted):
        async def generate(self, request_id, **more):
            return TokenOutput(token_ids=[], stop_reason="aborted")

    config = config_of(tiny, tmp_path)
    worker = make_worker(config, Aborting([]))
    with pytest.raises(RuntimeError, match="aborted a turn of question 'q0'"):
        rollouts_of(worker, batch_of(config, parquet, worker, (0,)))


def test_turns_limits_bind_even_if_a_server_ignores_them(tiny, parquet, tmp_path):
    _, batch = ask(config_of(tiny, tmp_path), parquet, ("very " * 60, "\\boxed{A}"))
    assert batch.batch["response_mask"][0].sum() == 24 + 4


def test_engines_that_give_no_log_probabilities_leave_them_out(tiny, parquet, tmp_path):
    class Silent(Scripted):
        async def generate(self, request_id, **more):
            return (await super().generate(request_id, **more)).model_copy(update={"log_probs": None})

    config = config_of(tiny, tmp_path)
    worker = make_worker(config, None)
    tokens = TurnTokens(worker.processor)
    worker.llm_client = Silent([[Script.ids(tokens, text) for text in (box(WIDE), "\\boxed{A}")]])
    assert "rollout_log_probs" not in rollouts_of(worker, batch_of(config, parquet, worker, (0,))).batch


def test_the_reward_loop_scores_the_last_turn_alone(tiny, parquet, tmp_path):
    """The whole response repeats the choices and may hold a boxed answer of an earlier turn."""
    _, batch = ask(config_of(tiny, tmp_path, score=False), parquet, ("\\boxed{A}", "\\boxed{B}"), (0, 1))
    assert "rm_scores" not in batch.batch
    for row, right in ((0, 0.0), (1, 1.0)):
        extra = {name: batch.non_tensor_batch[name][row] for name in ("mgpo_last_turn", "mgpo_choices", "mgpo_answer")}
        assert compute_score("c", "\\boxed{A} ... \\boxed{B}", "A", extra) == {"score": right, "acc": right}
    with pytest.raises(ValueError, match="extra_info has no 'mgpo_last_turn'"):
        compute_score("c", "\\boxed{A}", "A", {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward_model": {"ground_truth": ""}}, "it has no answer"),
        ({"reward_model": {}}, "it has no 'ground_truth'"),
        ({"raw_prompt": [{"role": "system", "content": "?"}]}, "its prompt has no user turn"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(changed, message):
    row = {
        "raw_prompt": [{"role": "user", "content": "Which?"}],
        "reward_model": {"ground_truth": "x"},
        "extra_info": {"index": "r"},
    }
    with pytest.raises(ValueError, match=f"Row 'r' of verl's data cannot be asked: {message}"):
        question_of(row | changed)


def test_paths_of_images_are_read_as_well(tmp_path):
    for name in (str(tmp_path / "a.png"), f"file://{tmp_path}/a.png"):
        content = [{"type": "image", "image": name}, {"type": "text", "text": "Which?\nA. x\nB. y"}]
        row = {"raw_prompt": [{"role": "user", "content": content}], "reward_model": {"ground_truth": "B"}}
        question = question_of(row)
        assert (question.image, question.choices, question.answer) == (str(tmp_path / "a.png"), ("x", "y"), "B")


@pytest.mark.parametrize("method", ["grpo", "direct"])
def test_single_turn_methods_end_after_one_turn(tiny, parquet, tmp_path, method):
    server, batch = ask(config_of(tiny, tmp_path, method=method), parquet, ("\\boxed{A}",), (0, 1))
    assert len(server.asked) == 2 and batch.non_tensor_batch["acc"].tolist() == [1.0, 0.0]
    assert batch.batch["response_mask"].sum(1).tolist() == [4, 4]


def test_several_images_are_asked_about_together(tiny, rows, tmp_path):
    from support import several

    file, _ = convert(iter(several(rows, (0,))[:1]), "verl", tmp_path / "verl", "train")
    with pytest.raises(ValueError, match="shows 2 images, more than max_images=1"):
        ask(config_of(tiny, tmp_path), file, (box(WIDE), "\\boxed{A}"))
    lengths = ("data.max_prompt_length=400", "data.max_response_length=300")
    server, batch = ask(config_of(tiny, tmp_path, *lengths, max_images=2), file, (box(WIDE), "\\boxed{A}"))
    assert [len(asked["images"]) for asked in server.asked] == [2, 3]

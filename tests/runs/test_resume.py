"""A run that was stopped and resumed is the run that was not stopped: weights, optimizer and metrics, to the bit."""

import json
import pickle
import shutil

import datasets
import pytest
import torch
from safetensors.torch import load_file
from support import make_trainer

from mgpo.errors import CheckpointError
from mgpo.runs import folder as run_folder
from mgpo.runs import resuming
from mgpo.runs.checkpoints import seal
from mgpo.runs.tree import load_tree
from mgpo.training import run as training
from mgpo.training.run import parse, train

TIMES = ("time", "runtime", "per_second")


def run(folder, model, *more):
    """`mgpo train` with a recipe's arguments; a reward that varies, since a random model answers nothing."""
    data, config = parse(
        [
            "--model_name_or_path", str(model), "--output_dir", str(folder),
            "--per_device_train_batch_size", "4", "--num_generations", "2", "--learning_rate", "2e-4",
            "--lr_scheduler_type", "constant", "--beta", "0.0", "--max_grounding_tokens", "12",
            "--max_answer_tokens", "6", "--max_reply_tokens", "160", "--no_gradient_checkpointing",
            "--extra_reward_funcs", "support.even_ids", "--logging_steps", "1", "--save_steps", "4",
            "--use_cpu", "true", "--disable_tqdm", "true", "--seed", "0", "--freeze_vision_tower", "true", *more,
        ]
    )  # fmt: skip
    train(data, config)
    return folder


def lines(folder, steps):
    """Lines of metrics.jsonl of these steps, without times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if not any(part in key for part in TIMES)}
        for row in rows
        if "loss" in row and row["step"] in steps
    ]


@pytest.fixture(scope="module")
def runs(random_tiny, rows, tmp_path_factory):
    """An uninterrupted run of eight steps, and one that was stopped after four and started again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_questions", lambda *_: datasets.Dataset.from_list(rows))
        whole = run(tmp_path_factory.mktemp("whole"), random_tiny, "--max_steps", "8")
        stopped = run(tmp_path_factory.mktemp("stopped"), random_tiny, "--max_steps", "4")
        torch.manual_seed(12345)  # another process would not know where this one's generators stand
        run(stopped, random_tiny, "--max_steps", "8")
    return whole, stopped


def test_the_run_learns_something(runs):
    """Three steps are an epoch of six questions, so step four is in the middle of one."""
    whole, _ = runs
    metrics = lines(whole, range(1, 9))
    moved = [row["step"] for row in metrics if row["grad_norm"] > 0]  # two rollouts of a question can tie
    assert len(metrics) == 8 and len(moved) >= 6 and set(moved) & {5, 6, 7, 8}
    first, last = (load_file(whole / f"checkpoint-{step}" / "model.safetensors") for step in (4, 8))
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_weights_are_equal_to_the_bit(runs):
    one, other = (load_file(folder / "checkpoint-8" / "model.safetensors") for folder in runs)
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_optimizer_states_are_equal_to_the_bit(runs):
    one, other = (load_tree(folder / "checkpoint-8" / "optimizer.safetensors")["optimizer"] for folder in runs)
    assert one["param_groups"] == other["param_groups"] and one["state"].keys() == other["state"].keys()
    for index, state in one["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["state"][index][name])), (index, name)


def test_metrics_after_the_stop_are_equal(runs):
    whole, stopped = (lines(folder, range(5, 9)) for folder in runs)
    assert len(whole) == 4
    assert stopped == whole


def test_a_run_folder_is_complete(runs):
    for folder in runs:
        assert {"config.yaml", "environment.json", "metrics.jsonl", "model.safetensors", "trajectories"} <= {
            file.name for file in folder.iterdir()
        }


def test_no_file_of_a_run_is_a_pickle(runs):
    """Pickles of torch are zip archives or begin with byte 0x80."""
    for folder in runs:
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert not [
            f
            for f in files
            if f.suffix in (".pt", ".pth", ".bin", ".pkl") or f.read_bytes()[:2] in (b"PK", b"\x80\x02")
        ]


class Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_pickled_checkpoint_is_refused_and_never_read(name, runs, random_tiny, rows, tmp_path):
    whole, _ = runs
    run = tmp_path / "run"
    shutil.copytree(whole / "checkpoint-4", run / "checkpoint-4")
    shutil.copy(whole / "config.yaml", run)
    with open(run / "checkpoint-4" / name, "wb") as out:
        pickle.dump(Exploit(tmp_path / "owned"), out)
    trainer = make_trainer(random_tiny, run, rows, max_steps=8)
    with pytest.raises(CheckpointError, match=f"{name}, a pickle. It is refused"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_program_is_refused(runs, random_tiny, rows, tmp_path):
    shutil.copytree(runs[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "manifest.json").unlink()
    trainer = make_trainer(random_tiny, tmp_path / "run", rows, max_steps=8)
    with pytest.raises(CheckpointError, match="cannot be resumed from: it has no manifest.json"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_reference_model_that_moves_is_resumed_too(random_tiny, rows, tmp_path):
    """sync_ref_model: the reference is not the model that the run began with."""

    def trained(folder, steps, resume=None):
        moves = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
        more = {
            "extra_reward_funcs": ["support.even_ids"],
            "save_strategy": "steps",
            "save_steps": 2,
            "learning_rate": 1e-2,
        }
        trainer = make_trainer(random_tiny, folder, rows, max_steps=steps, **moves, **more)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained(tmp_path / "whole", 4)
    trained(tmp_path / "stopped", 2)
    other = trained(tmp_path / "stopped", 4, str(tmp_path / "stopped" / "checkpoint-2"))
    one, two = whole.ref_model.state_dict(), other.ref_model.state_dict()
    assert not [name for name in one if not torch.equal(one[name], two[name])]
    began = make_trainer(random_tiny, tmp_path / "new", rows, beta=0.1).ref_model.state_dict()
    assert [name for name in one if not torch.equal(one[name], began[name])]


@pytest.mark.parametrize(
    "how", [("--method", "sft"), ("--use_peft", "true"), ("--use_peft", "true", "--beta", "0.1")], ids=" ".join
)
def test_other_ways_of_training_resume_too(how, random_tiny, rows, tmp_path, monkeypatch):
    """Short answers and LoRA adapters, saved between two lines of the log."""
    monkeypatch.setattr(training, "_questions", lambda *_: datasets.Dataset.from_list(rows))
    words = (*how, "--logging_steps", "3", "--max_steps", "6")
    whole = run(tmp_path / "whole", random_tiny, *words)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole / "checkpoint-4", stopped / "checkpoint-4")
    shutil.copy(whole / "metrics.jsonl", stopped)
    run(stopped, random_tiny, *words)
    weights = "adapter_model" if "--use_peft" in how else "model"
    one, other = (load_file(folder / "checkpoint-6" / f"{weights}.safetensors") for folder in (whole, stopped))
    before = load_file(whole / "checkpoint-4" / f"{weights}.safetensors")
    assert not [name for name in one if not torch.equal(one[name], other[name])]
    assert [name for name in one if not torch.equal(one[name], before[name])]
    assert lines(stopped, range(1, 7)) == lines(whole, range(1, 7)) and len(lines(whole, range(1, 7))) == 2


def test_the_best_model_is_loaded_at_the_end(random_tiny, rows, tmp_path):
    """Its checkpoint is named as it lies on disk, and its weights are really taken."""
    more = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_eval_batch_size": 4,
    }
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_num_tokens", "greater_is_better": False}
    trainer = make_trainer(
        random_tiny, tmp_path, rows, max_steps=4, eval_dataset=datasets.Dataset.from_list(rows[:2]),
        extra_reward_funcs=["support.even_ids"], learning_rate=1e-2, save_total_limit=2, **more, **best,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")  # fewest tokens were seen then
    for step in (2, 4):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
    kept = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2").state_dict()
    last = type(trainer.model).from_pretrained(tmp_path / "checkpoint-4").state_dict()
    now = trainer.model.state_dict()
    assert not [name for name in kept if not torch.equal(kept[name], now[name])]
    assert [name for name in kept if not torch.equal(kept[name], last[name])]
    again = make_trainer(
        random_tiny, tmp_path, rows, max_steps=4, eval_dataset=datasets.Dataset.from_list(rows[:2]), save_total_limit=2,
        **more, **best,
    )  # fmt: skip
    again.take_finished(str(tmp_path / "checkpoint-4"))  # as `mgpo train` does with a run that has made all steps
    now = again.model.state_dict()
    assert not [name for name in kept if not torch.equal(kept[name], now[name])]


def test_weights_alone_cannot_be_resumed_from(random_tiny, rows, tmp_path):
    trainer = make_trainer(
        random_tiny, tmp_path, rows, max_steps=1, save_strategy="steps", save_steps=1, save_only_model=True
    )
    trainer.train()
    again = make_trainer(random_tiny, tmp_path, rows, max_steps=2)
    with pytest.raises(CheckpointError, match="holds no optimizer .save_only_model."):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_the_card_says_what_was_trained_and_how_it_is_asked(runs, random_tiny):
    card = (runs[0] / "README.md").read_text()
    assert f"base_model: {random_tiny}" in card and f'GroundedVQA.from_pretrained("{runs[0]}")' in card
    assert "by MGPO: it names the region" in card and "None" not in card
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.pipeline_tag == "image-text-to-text"


def metric_rows(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(part in k for part in TIMES)} for row in rows]


@pytest.mark.parametrize("asked", [("--max_steps", "3"), ("--num_train_epochs", "1")], ids=" ".join)
def test_a_run_killed_before_its_last_line_gets_it_and_loses_none(asked, random_tiny, rows, tmp_path, monkeypatch):
    """Between the last checkpoint and the end of the log; and a finished run that is started once more stays as it is."""
    monkeypatch.setattr(training, "_questions", lambda *_: datasets.Dataset.from_list(rows))
    folder = run(tmp_path / "run", random_tiny, "--logging_steps", "2", *asked)
    whole = metric_rows(folder)
    assert whole[-1]["step"] == 3 and "train_loss" in whole[-1]
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    (folder / "model.safetensors").unlink()
    for _ in range(2):
        run(folder, random_tiny, "--logging_steps", "2", *asked)
        assert metric_rows(folder) == whole and (folder / "model.safetensors").is_file()


def test_no_run_is_overwritten(runs, random_tiny, rows, tmp_path, monkeypatch):
    """Neither by other settings, where no checkpoint is left, nor from the beginning, where none is complete."""
    monkeypatch.setattr(training, "_questions", lambda *_: datasets.Dataset.from_list(rows))
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    settings = (folder / "config.yaml").read_text().replace(str(runs[0]), str(folder))
    (folder / "config.yaml").write_text(settings)
    for place in folder.glob("checkpoint-*"):
        (place / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds checkpoints, but none that is complete"):
        run(folder, random_tiny, "--max_steps", "8")
    for place in folder.glob("checkpoint-*"):
        shutil.rmtree(place)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a run with other settings .learning_rate"):
        run(folder, random_tiny, "--max_steps", "8", "--learning_rate", "0.1")
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_pickled_weights_in_a_checkpoint_are_refused(name, runs, random_tiny, rows, tmp_path):
    place = tmp_path / "checkpoint-4"
    shutil.copytree(runs[0] / "checkpoint-4", place)
    (place / "model.safetensors").unlink()
    with open(place / name, "wb") as out:
        pickle.dump(Exploit(tmp_path / "owned"), out)
    seal(place)
    trainer = make_trainer(random_tiny, tmp_path / "run", rows, max_steps=8)
    with pytest.raises(CheckpointError, match=f"{name}, a pickle"):
        trainer.train(resume_from_checkpoint=str(place))
    assert not (tmp_path / "owned").exists()


def test_pushing_uploads_no_pickle_no_checkpoint_and_no_token(random_tiny, rows, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(resuming, "upload_folder", lambda **kwargs: pushed.append(kwargs))
    trainer = make_trainer(
        random_tiny, tmp_path, rows, max_steps=1, save_strategy="steps", save_steps=1, hub_token="s3cr3t"
    )
    trainer.train()
    trainer.hub_model_id, trainer.args.push_to_hub = "me/mine", True
    trainer.save_model()
    assert len(pushed) == 1 and pushed[0]["repo_id"] == "me/mine" and pushed[0]["token"] == "s3cr3t"
    assert "checkpoint-*/*" in pushed[0]["ignore_patterns"] and ".saving/*" in pushed[0]["ignore_patterns"]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix == ".bin" or b"s3cr3t" in file.read_bytes()]


def test_what_is_evaluated_on_is_not_what_is_trained_on(random_tiny, rows, tmp_path):
    folder = tmp_path / "data"  # one file, of no split: it would be taken for both
    folder.mkdir()
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in (folder, folder / "mine.jsonl"):
        with pytest.raises(
            ValueError, match="eval_strategy: the split 'test' of .* would be the rows that are trained on"
        ):
            more = ("--eval_strategy", "steps", "--eval_steps", "2", "--per_device_eval_batch_size", "4")
            run(tmp_path / "run", random_tiny, "--dataset_name", str(name), "--max_steps", "2", *more)


def test_a_run_folder_may_move_and_its_data_may_not_change(random_tiny, rows, tmp_path, monkeypatch, capsys):
    """Moved, copied and spelled otherwise it goes on; with other questions in the same file it does not."""
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run", random_tiny, "--dataset_name", "train.jsonl", "--max_steps", "2", "--save_steps", "2")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    run(tmp_path / "moved", random_tiny, "--dataset_name", str(data), "--max_steps", "3", "--save_steps", "2")
    assert f"Going on from {tmp_path}/moved/checkpoint-2." in capsys.readouterr().out
    data.write_text("".join(json.dumps(row | {"answer": "A"}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="holds a run on other questions: those of .*train.jsonl have changed"):
        run(tmp_path / "moved", random_tiny, "--dataset_name", str(data), "--max_steps", "5")


def test_two_runs_in_one_folder_are_refused(random_tiny, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_questions", lambda *_: datasets.Dataset.from_list(rows))
    with run_folder.only_one(tmp_path), pytest.raises(ValueError, match="Another process writes to"):
        run(tmp_path, random_tiny, "--max_steps", "1")
    run(tmp_path, random_tiny, "--max_steps", "1")


def test_a_damaged_file_of_the_right_size_is_a_sentence(runs, random_tiny, rows, tmp_path):
    place = tmp_path / "checkpoint-4"
    shutil.copytree(runs[0] / "checkpoint-4", place)
    for name in ("optimizer", "process_0"):
        file = place / f"{name}.safetensors"
        whole = file.read_bytes()
        file.write_bytes(b"\xff" * 64 + whole[64:])
        trainer = make_trainer(random_tiny, tmp_path / "run", rows, max_steps=8, freeze_vision_tower=True)
        with pytest.raises(CheckpointError, match=f"{name}.safetensors is damaged"):
            trainer.train(resume_from_checkpoint=str(place))
        file.write_bytes(whole)

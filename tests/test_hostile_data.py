"""A thousand hostile rows: each is refused by file, row and reason, or trained on with image tokens = image features."""

import json
import re

import pytest
from hostile_rows import BAD, GOOD, hostile_lines
from support import Script, box, make_trainer

from mgpo.data.admitting import Admission, admitted, write_listing
from mgpo.data.check import check
from mgpo.data.loading import load_questions, load_rows, read_all
from mgpo.images.imaging import PixelBudget
from mgpo.method.boxes import BoxForm
from mgpo.policies.tokens import TurnTokens
from mgpo.training.run import parse
from mgpo.training.run import train as run

REPLY = 640


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The file, and what must become of each line."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = hostile_lines(folder)
    (folder / "train.jsonl").write_bytes(b"\n".join(line for line, _ in lines) + b"\n")
    return folder / "train.jsonl", [fate for _, fate in lines]


def admission_for(processor, folder):
    from mgpo.config import MGPOConfig

    protocol = MGPOConfig(str(folder), use_cpu=True).protocol(PixelBudget(4 * 784, 36 * 784), BoxForm())
    return Admission(protocol, TurnTokens(processor).text_tokens, REPLY, decode=True)


@pytest.fixture(scope="module")
def kept(hostile, processor, tmp_path_factory):
    """What training is given, and the listing of what it is not."""
    file, _ = hostile
    listing = tmp_path_factory.mktemp("listing") / "skipped.jsonl"
    admission = admission_for(processor, listing.parent)
    questions, bad = admitted(load_rows(str(file)), str(file), admission, "skip")
    write_listing(bad, listing)
    return questions, [json.loads(line) for line in listing.read_text().splitlines()]


def number_of(place):
    return int(re.search(r"row (\d+)$", place).group(1))


def test_there_are_a_thousand(hostile):
    assert len(hostile[1]) >= 1_000 and min(hostile[1].count(GOOD), hostile[1].count(BAD)) > 200


def test_every_row_is_used_or_listed_and_none_is_lost(hostile, kept):
    file, fates = hostile
    used, listed = [number_of(row["source"]) for row in kept[0]], [number_of(row["where"]) for row in kept[1]]
    assert sorted(used + listed) == list(range(1, len(fates) + 1))
    wrong = [number for number in used if fates[number - 1] == BAD] + [n for n in listed if fates[n - 1] == GOOD]
    lines = file.read_bytes().split(b"\n")
    why = {number_of(row["where"]): row["why"] for row in kept[1]}
    assert not wrong, [(n, lines[n - 1][:200], why.get(n)) for n in wrong[:10]]


def test_check_and_train_see_the_same_bad_rows(hostile, kept, processor, tmp_path):
    """Row by row and in the same words: with a recipe all of them, without one all but those over a policy's limits."""
    trained = [(row["where"], row["why"]) for row in kept[1]]
    loaded = read_all(str(hostile[0]))
    found = check(loaded, admission_for(processor, tmp_path))
    assert [(row.where, row.reason) for row in found.bad] == trained
    assert found.rows == len(kept[0])
    of_policy = {where for where, why in trained if "max_reply_tokens" in why or "max_images" in why}
    alone = {row.where: row.reason for row in check(loaded).bad}
    assert {where: why for where, why in trained if where not in of_policy}.items() <= alone.items()
    assert alone.keys() - of_policy == {where for where, _ in trained} - of_policy
    assert 10 < len(of_policy - alone.keys()) < len(trained) / 2  # others have a bad image besides


def test_every_reason_is_a_sentence_about_that_row(hostile, kept):
    for row in kept[1]:
        assert row["where"].startswith(f"{hostile[0]} row ")
        assert 8 < len(row["why"]) < 600 and "Traceback" not in row["why"], row


def test_what_is_used_is_trained_on_whole(kept, random_tiny, tmp_path, monkeypatch):
    """Through the trainer, crops and all: image tokens equal image features, and no text of data made a special token."""
    questions, _ = kept
    assert len(questions) > 200
    replies = (box((5, 5, 50, 40)), "no box", box((0, 0, 40, 40)), box((9, 9, 3, 3)))
    Script((replies, ("\\boxed{A}",))).install(monkeypatch)
    trainer = make_trainer(random_tiny, tmp_path, list(questions)[:2], max_reply_tokens=REPLY, max_grounding_tokens=60)
    tokens = trainer.turn_tokens
    special = {number for name, number in trainer._tokenizer.get_added_vocab().items() if name.startswith("<|")}
    features = 0
    for first in range(0, len(questions), 32):
        rows = [questions[number] for number in range(first, min(first + 32, len(questions))) for _ in range(2)]
        output = trainer._generate_and_score_completions(rows)
        grids, at = output["image_grid_thw"], 0
        for row, count in enumerate(output["num_images"]):
            ids = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
            ids += output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
            merged = sum(int(grid.prod()) // 4 for grid in grids[at : at + count])
            at += count
            assert ids.count(tokens.image_token_id) == merged > 0, rows[row]["source"]
            written = sum(token in special and token != tokens.image_token_id for token in ids)
            assert written == 12, (rows[row]["source"], trainer._tokenizer.decode(ids))
            features += merged
        assert sum(int(grid.prod()) for grid in grids) == len(output["pixel_values"])
    assert features > 10_000


def arguments(file, model, folder, *more):
    return parse(
        [
            "--model_name_or_path", str(model), "--dataset_name", str(file), "--output_dir", str(folder), "--max_steps", "1",
            "--per_device_train_batch_size", "4", "--num_generations", "2", "--max_grounding_tokens", "12", "--max_answer_tokens",
            "6", "--max_reply_tokens", str(REPLY), "--no_gradient_checkpointing", "--use_cpu", "true", "--disable_tqdm", "true", *more,
        ]
    )  # fmt: skip


def test_training_fails_before_the_first_step_by_default(hostile, random_tiny, tmp_path):
    file, fates = hostile
    with pytest.raises(ValueError, match=r"\d+ of 1\d\d\d rows of (.|\n)*row (.|\n)*--on_bad_row skip") as told:
        run(*arguments(file, random_tiny, tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and str(file) in str(told.value)


def test_training_skips_and_lists_on_request(hostile, kept, random_tiny, tmp_path, capsys):
    folder = run(*arguments(hostile[0], random_tiny, tmp_path / "run", "--on-bad-row", "skip"))
    listed = [json.loads(line) for line in (folder / "skipped_train.jsonl").read_text().splitlines()]
    assert listed == kept[1] and (folder / "model.safetensors").is_file()
    assert f"{len(listed)} rows are skipped; " in capsys.readouterr().out


def test_an_unknown_way_is_refused(hostile, random_tiny, tmp_path):
    with pytest.raises(ValueError, match="on_bad_row='drop' is unknown. Choose one of: fail, skip"):
        arguments(hostile[0], random_tiny, tmp_path, "--on_bad_row", "drop")


def test_rows_of_a_table_are_named_too(hostile, processor, tmp_path):
    """Parquet with pictures inside: the row's number is that of the file."""
    import datasets

    good = (hostile[0].parent / "plain.jpg").read_bytes()
    pictures = [good, good[: len(good) // 2], b"", good, None]
    rows = [
        {
            "image": {"bytes": data, "path": None},
            "question": "Which?",
            "choices": ["red", "blue"],
            "answer": "A" if i != 3 else "Z",
        }
        for i, data in enumerate(pictures)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    loaded = load_rows(str(tmp_path / "train.parquet"))
    from mgpo.method.protocol import Protocol

    admission = Admission(Protocol(), TurnTokens(processor).text_tokens, REPLY, decode=True)
    questions, bad = admitted(loaded, "table", admission, "skip")
    listed = [row.where for row in bad]
    assert len(questions) == 1 and [number_of(place) for place in listed] == [2, 3, 4, 5]
    checked = check(read_all(str(tmp_path / "train.parquet")), admission)
    assert checked.bad == bad and checked.rows == 1
    with pytest.raises(ValueError, match="row 4"):
        load_questions(str(tmp_path / "train.parquet"))

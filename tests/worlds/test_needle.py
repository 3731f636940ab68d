"""`needle` is exact, unambiguous, and cannot be read from the overview: the last is measured with probes."""

import math
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from mgpo.images.imaging import PixelBudget, crop, overview
from mgpo.method.question import LETTERS as CHOICE_LETTERS
from mgpo.method.question import Question
from mgpo.worlds import needle, scene
from mgpo.worlds.needle import load_needle, make_question, needle_rows, references
from mgpo.worlds.render import FONT_FILES, PRINT_HEIGHT, render
from mgpo.worlds.scene import EVAL_SPLITS, LETTERS, LOOKS, PRINT, sample_scene

TINY = PixelBudget(20 * 784, 36 * 784)
"""The budget of `mgpo-tiny`."""


@pytest.fixture(scope="module")
def questions():
    return [make_question("train", 3, index) for index in range(2000)]


def test_a_row_is_exact_by_split_seed_and_index():
    def pixels(*key):
        return np.asarray(render(sample_scene(*key)))

    assert np.array_equal(pixels("train", 0, 5), pixels("train", 0, 5))
    for other in (("train", 0, 6), ("train", 1, 5), ("test", 0, 5)):
        assert sample_scene(*other) != sample_scene("train", 0, 5)
        assert not np.array_equal(pixels(*other), pixels("train", 0, 5))
    assert make_question("train", 0, 5) == make_question("train", 0, 5)


def test_every_question_is_well_formed(questions):
    for question, where in questions:
        width, height = where.size_px
        assert len(set(question.choices)) == 4 and question.answer in CHOICE_LETTERS[:4]
        for x1, y1, x2, y2 in question.gold_boxes_px_original:
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        for sign in where.signs:
            x1, y1, x2, y2 = sign.box_px_original
            assert x1 < sign.print_px[0] < x2 and y1 < sign.print_px[1] < y2


def test_the_answers_letter_names_the_right_choice(questions):
    for question, where in questions:
        right = question.choices[CHOICE_LETTERS.index(question.answer)]
        present = [sign.colour for sign in where.signs]
        if question.category == "overview/count":
            assert right == str(len(where.signs))
        elif question.category == "overview/colour":
            assert [choice in present for choice in question.choices].count(True) == 1 and right in present
        else:
            (box,) = question.gold_boxes_px_original
            (sign,) = [sign for sign in where.signs if sign.box_px_original == box]
            assert right == sign.value and question.category.endswith(sign.kind)
            name = question.question.removeprefix(needle.ASK[sign.kind]).removesuffix("?")
            assert name in references(where, sign)


def test_the_letter_of_the_answer_is_no_hint(questions):
    counts = Counter(question.answer for question, _ in questions)
    assert all(abs(counts[letter] / len(questions) - 0.25) < 0.05 for letter in "ABCD")


def test_shares_are_as_declared(questions):
    kinds = Counter(question.category.split("/")[0] for question, _ in questions)
    assert abs(kinds["overview"] / len(questions) - needle.OVERVIEW_SHARE) < 0.04
    with_place = [q for q, where in questions if any(len(references(where, sign)) > 1 for sign in where.signs)]
    assert len(with_place) > 0.8 * len(questions), "most scenes can name a sign by its place"
    share = sum(q.category.startswith("by_place") for q in with_place) / len(with_place)
    assert abs(share - needle.PLACE_SHARE) < 0.04


def test_each_name_means_exactly_one_sign(questions):
    for _, where in questions[:500]:
        names = [name for sign in where.signs for name in references(where, sign)]
        assert len(names) == len(set(names))


def test_a_place_is_where_its_name_says(questions):
    for _, where in questions[:300]:
        by_colour = {sign.colour: sign for sign in where.signs}
        for sign in where.signs:
            for name in references(where, sign)[1:]:
                direction = next(d for d in scene.DIRECTIONS if d in name)
                other = by_colour[name.removesuffix(" sign").split()[-1]]
                dx, dy = (a - b for a, b in zip(sign.centre_px, other.centre_px))
                along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[direction]
                assert along > 0.7 * math.hypot(dx, dy), f"{name}: it stands as much to another side"


def test_signs_neither_touch_nor_share_a_colour(questions):
    for _, where in questions[:500]:
        assert len({sign.colour for sign in where.signs}) == len(where.signs)
        boxes = [sign.box_px_original for sign in where.signs]
        for i, (a, b, c, d) in enumerate(boxes):
            assert all(c < x1 or x2 < a or d < y1 or y2 < b for x1, y1, x2, y2 in boxes[:i])


def test_no_print_is_a_choices_letter():
    assert not set(LETTERS) & set(CHOICE_LETTERS[:6]) and len(set(LETTERS)) == len(LETTERS)


@pytest.mark.parametrize("split", LOOKS)
def test_every_split_draws(split):
    look = LOOKS[split]
    for index in range(3):
        where = sample_scene(split, 0, index)
        image = render(where)
        assert image.mode == "RGB" and image.size == where.size_px
        assert look.signs[0] <= len(where.signs) <= look.signs[1]
        for sign in where.signs:  # the plate can be seen: its colour differs from plate to plate, its print is inked
            x1, y1, x2, y2 = sign.box_px_original
            plate = np.asarray(image.crop((x1, y1, x2, y2)).convert("L"), float)
            assert plate.std() > 3


def test_evaluation_splits_change_what_they_claim():
    train = LOOKS["train"]
    assert LOOKS["test"] == train
    for split in EVAL_SPLITS[1:]:
        changed = [f.name for f in fields(train) if getattr(LOOKS[split], f.name) != getattr(train, f.name)]
        assert len(changed) == 1 and split in scene.IN_THE_OVERVIEW, (split, changed)
    assert not set(LOOKS["ood_fonts"].fonts) & set(train.fonts)
    assert LOOKS["ood_crowded"].signs[0] > train.signs[1] and LOOKS["ood_small"].side[1] < train.side[0]
    assert not set(LOOKS["ood_shapes"].aspects) & set(train.aspects)
    assert set(FONT_FILES) >= {font for look in LOOKS.values() for font in look.fonts}
    for split in EVAL_SPLITS:
        sizes = [sample_scene(split, 0, index) for index in range(50)]
        areas = [s.size_px[0] * s.size_px[1] / 1e6 for s in sizes]
        low, high = LOOKS[split].megapixels
        assert 0.99 * low < min(areas) and max(areas) < 1.01 * high
        if split == "ood_shapes":
            assert all(max(s.size_px) > 1.8 * min(s.size_px) for s in sizes)
        else:
            assert all(max(s.size_px) < 1.5 * min(s.size_px) for s in sizes)


def test_fonts_cannot_be_seen_in_the_overview():
    """The same scenes in other fonts: the overview stays as good as the same, the crop of a letter does not."""
    whole, near = [], []
    for index in range(12):
        where = sample_scene("test", 3, index)
        drawn = [render(replace(where, look=look)) for look in (LOOKS["test"], LOOKS["ood_fonts"])]
        one, other = (np.asarray(overview(image, TINY), float) for image in drawn)
        whole.append(np.abs(one - other).mean())
        for sign in where.signs:
            if sign.kind == "letter":
                x, y = sign.print_px
                half = 0.05 * (sign.box_px_original[2] - sign.box_px_original[0])
                box = (round(x - half), round(y - half), round(x + half), round(y + half))
                one, other = (np.asarray(image.crop(box), float) for image in drawn)
                near.append(np.abs(one - other).mean())
    assert np.mean(whole) < 1 and np.mean(near) > 10, (np.mean(whole), np.mean(near))


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="'validation'.*train"):
        sample_scene("validation", 0, 0)


def test_streamed_rows_equal_mapped_rows_and_are_questions():
    mapped, streamed = load_needle("test", 1, 4), list(load_needle("test", 1, 4, streaming=True))
    assert len(mapped) == len(streamed) == 4
    for row, other in zip(mapped, streamed):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(other["image"]))
        assert all(row[key] == other[key] for key in ("id", "question", "choices", "answer", "gold_boxes", "category"))
        question = Question.from_row(row)
        drawn, _ = make_question("test", 1, int(row["id"].split("/")[-1]))
        assert replace(question, image=None) == drawn


def test_rows_can_start_anywhere():
    (row,) = needle_rows("test", 0, 1, start=7)
    assert row["id"] == "needle/test/0/7"


def test_a_row_is_drawn_once_while_it_is_kept(monkeypatch):
    drawn = []
    monkeypatch.setattr(needle, "render", lambda where, backgrounds: drawn.append(1) or Image.new("RGB", where.size_px))
    rows = load_needle("test", 1, 3)
    for _ in range(4):
        assert rows[1]["image"].mode == "RGB"
    assert len(drawn) == 1


def test_photographs_can_stand_behind(tmp_path):
    Image.new("RGB", (300, 200), (1, 200, 3)).save(tmp_path / "green.png")
    where = sample_scene("test", 0, 0)
    image = render(where, tmp_path)
    assert image.size == where.size_px and image.getpixel((0, 0)) == (1, 200, 3)
    (tmp_path / "green.png").unlink()
    with pytest.raises(FileNotFoundError, match="has no photographs"):
        render(where, tmp_path)


# --- What can be read from the overview -----------------------------------------------------------------------------
# Probes that are told where the print is, to a fraction of a pixel, and learn from half of the signs. They are stronger
# than a policy, which has to find the place first: what they cannot read, no policy reads from the overview.

PROBE_SCENES = 400


def _patch(image, centre, half, size):
    """Grey levels (size, size) around `centre`, resampled so that the centre is exact."""
    (x, y), (hx, hy) = centre, half
    box = (max(0, x - hx), max(0, y - hy), min(image.width, x + hx), min(image.height, y + hy))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box).convert("L"), np.float32)


@pytest.fixture(scope="module", params=PRINT)
def patches(request):
    """{view: (signs, size, size)} around the print of each sign, and the number of its value (signs,): one kind of print."""
    kind = request.param
    views, values = {"overview, pixels": [], "overview, aligned": [], "crop": []}, []
    for index in range(PROBE_SCENES):
        where, rng = sample_scene("train", 991, index), np.random.default_rng([5, index])
        drawn = rng.integers(len(PRINT[kind]), size=len(where.signs))
        signs = tuple(replace(s, kind=kind, value=PRINT[kind][i]) for s, i in zip(where.signs, drawn))
        image = render(replace(where, signs=signs))
        whole = overview(image, TINY)
        sx, sy = whole.width / image.width, whole.height / image.height
        for sign in signs:
            (px, py), (x1, y1, x2, y2) = sign.print_px, sign.box_px_original
            half = 0.085 * min(x2 - x1, y2 - y1)  # the panel under the print
            near = round(px * sx), round(py * sy)
            views["overview, pixels"].append(_patch(whole, near, (4, 4), 8))
            views["overview, aligned"].append(_patch(whole, (px * sx, py * sy), (half * sx, half * sy), 12))
            region = crop(image, sign.box_px_original, TINY)
            cx, cy = region.width / (x2 - x1), region.height / (y2 - y1)
            views["crop"].append(_patch(region, ((px - x1) * cx, (py - y1) * cy), (half * cx, half * cy), 16))
        values.extend(drawn)
    return {name: _normalised(np.stack(rows)) for name, rows in views.items()}, np.array(values)


def _normalised(rows):
    """Mean 0, deviation 1, ink always the brighter: the middle against its surroundings tells the polarity."""
    size = rows.shape[1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(x, y) / size
    paper = np.median(rows[:, (radius > 0.32) & (radius < 0.44)], axis=1)
    ink = np.sign(rows[:, radius < 0.25].mean(1) - paper + 1e-3)
    rows = rows - rows.mean((1, 2), keepdims=True)
    return rows / (rows.std((1, 2), keepdims=True) + 1e-6) * ink[:, None, None]


def _ridge(seen, labels, held_out, strength=30.0):
    """Scores (held out, classes) of a linear probe."""
    seen, held_out = seen.reshape(len(seen), -1), held_out.reshape(len(held_out), -1)
    wanted = np.eye(labels.max() + 1)[labels]
    weights = np.linalg.solve(seen.T @ seen + strength * np.eye(seen.shape[1]), seen.T @ (wanted - wanted.mean(0)))
    return held_out @ weights


def _convolution(seen, labels, held_out):
    """Scores of a small convolutional probe, trained with noise and shifts of a pixel."""
    torch.manual_seed(0)
    size = seen.shape[1]
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 24, 3, padding=1), torch.nn.GELU(), torch.nn.Conv2d(24, 24, 3, 2, 1), torch.nn.GELU(),
        torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(24 * (size // 2) ** 2, 64), torch.nn.GELU(),
        torch.nn.Dropout(0.3), torch.nn.Linear(64, int(labels.max()) + 1),
    )  # fmt: skip
    steps = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    seen, labels = torch.tensor(seen[:, None]).float(), torch.tensor(labels)
    for _ in range(25):
        for rows in torch.randperm(len(seen)).split(64):
            shift = tuple(int(v) for v in torch.randint(-1, 2, (2,))) if size > 8 else (0, 0)
            batch = (seen[rows] + 0.1 * torch.randn_like(seen[rows])).roll(shift, (2, 3))
            steps.zero_grad()
            torch.nn.functional.cross_entropy(net(batch), labels[rows]).backward()
            steps.step()
    net.eval()
    with torch.no_grad():
        return net(torch.tensor(held_out[:, None]).float()).numpy()


def _four_choice(scores, labels):
    """Share of four-choice questions answered: the right value scores above three random others. Chance is 0.25."""
    rng, won = np.random.default_rng(0), []
    for row, label in zip(scores, labels):
        for _ in range(5):
            wrong = rng.permutation(np.delete(np.arange(len(row)), label))[:3]
            won.append(row[label] > row[wrong].max())
    return float(np.mean(won))


@pytest.fixture(scope="module")
def probed(patches):
    """{view: {probe: four-choice accuracy on held-out signs}}."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    views, values = patches
    half = len(values) // 2
    result = {
        view: {
            probe.__name__.strip("_"): _four_choice(probe(rows[:half], values[:half], rows[half:]), values[half:])
            for probe in (_ridge, _convolution)
        }
        for view, rows in views.items()
    }
    torch.set_num_threads(threads)
    return result


def test_a_probe_reads_the_crop(probed):
    assert max(probed["crop"].values()) > 0.6, probed


def test_a_probe_that_knows_where_to_look_cannot_read_the_overview(probed):
    best = max(score for view in ("overview, pixels", "overview, aligned") for score in probed[view].values())
    assert best < 0.40, (
        f"PRINT_HEIGHT={PRINT_HEIGHT} gives the print away (four-choice accuracy, chance 0.25): {probed}"
    )


def test_the_probes_measure_what_they_claim(patches):
    """On shuffled labels they are at chance: the split leaks nothing."""
    views, values = patches
    half = len(values) // 2
    shuffled = np.random.default_rng(1).permutation(values)
    rows = views["crop"]
    assert abs(_four_choice(_ridge(rows[:half], shuffled[:half], rows[half:]), shuffled[half:]) - 0.25) < 0.05


def test_canvases_of_another_size_hold_the_same_kind_of_question():
    """8K is a setting of any split; an unknown split is refused as ever."""
    look = needle.resized("test", 33)
    question, scene = needle.make_question("test", 3, 0, look)
    assert scene.size_px[0] * scene.size_px[1] == pytest.approx(33e6, rel=0.01)
    assert question.chance == 0.25 and needle.resized("test", None) is None
    (row,) = needle.load_needle("test", 3, 1, look=needle.resized("test", 0.5))
    assert row["image"].width * row["image"].height == pytest.approx(0.5e6, rel=0.02)

"""The next step's photographs are opened during this step, and nothing but time changes."""

import io
import threading

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support import Script, box, make_trainer, settings

from mgpo.images import imaging, photograph
from mgpo.images.imaging import ImageError, PixelBudget
from mgpo.training.ahead import PicturesAhead
from mgpo.training.trainer import MGPOTrainer

BUDGET = PixelBudget(20 * 784, 36 * 784)
SIZE = (2400, 1800)
BYTES = SIZE[0] * SIZE[1] * 4


def jpeg(seed, size=SIZE):
    rng, out = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (18, 24, 3), np.uint8)).resize(size).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{number}.jpg" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(number))
    return [str(path) for path in paths]


def rows_of(paths, each=2):
    """Every rollout has its own copy of the row, as from a data loader."""
    return [{"image": str(path), "question": "?", "id": str(path)} for path in paths for _ in range(each)]


def all_done():
    """Wait until the threads have done what they were given, and what that led to."""
    for _ in range(2):
        photograph.in_background(int).result()
        barrier = threading.Barrier(photograph._threads._max_workers)
        for waiting in [photograph.in_background(barrier.wait) for _ in range(barrier.parties)]:
            waiting.result()


@pytest.fixture(autouse=True)
def no_other_pictures(monkeypatch):
    all_done()
    monkeypatch.setattr(photograph, "_decoded", photograph.DecodedPictures())


@pytest.fixture
def ahead(no_other_pictures):
    return PicturesAhead(BUDGET, regions=True, decoded_bytes=100 * BYTES)


@pytest.fixture
def main_thread_decodes(monkeypatch):
    """Sizes of what the main thread decoded itself."""
    sizes, pixels = [], imaging._pixels

    def note(image, source):
        if threading.current_thread() is threading.main_thread():
            sizes.append(image.size)
        return pixels(image, source)

    monkeypatch.setattr(imaging, "_pixels", note)
    return sizes


def sampled(ahead, rows):
    """What the rollouts of a batch are shown: overviews and a region of each."""
    ahead.begin(rows)
    opened = [ahead.open(row["image"], row["id"]) for row in rows]
    crops = [each.photograph.crop((300, 200, 1500, 1300), BUDGET) for each in opened]
    return [(np.asarray(each.shown), np.asarray(crop)) for each, crop in zip(opened, crops)]


def equal(one, other):
    return all(np.array_equal(a, b) for pair, same in zip(one, other, strict=True) for a, b in zip(pair, same))


def test_the_next_batch_is_opened_before_it_is_asked_for(ahead, files, main_thread_decodes):
    batches = [rows_of(files[:2]), rows_of(files[2:4])]
    taken = ahead.look(iter(batches), last_step=False)
    assert next(taken) is batches[0]
    all_done()
    shown = sampled(ahead, batches[0])
    ahead.release()
    assert next(taken) is batches[1]
    all_done()
    more = sampled(ahead, batches[1])
    assert not main_thread_decodes
    assert next(taken, None) is None
    alone = PicturesAhead(BUDGET, regions=True, decoded_bytes=100 * BYTES)
    assert equal(shown, sampled(alone, batches[0])) and equal(more, sampled(alone, batches[1]))


def test_decoded_pictures_stay_within_the_bound_and_make_room_for_the_next(ahead, files, monkeypatch):
    """Room for three of four: this batch's two and one of the next, until this batch has been sampled."""
    photograph.keep_at_most(3 * BYTES)
    held, keep = [], photograph.DecodedPictures.keep

    def note(decoded, *arguments):
        keep(decoded, *arguments)
        held.append(sum(holder.decoded_bytes for holder in list(decoded._holders)))

    monkeypatch.setattr(photograph.DecodedPictures, "keep", note)
    taken = ahead.look(iter([rows_of(files[:2]), rows_of(files[2:4])]), last_step=False)
    rows = next(taken)
    all_done()
    following = [opened.photograph for opened in dict.fromkeys(ahead._next[-1][1].values())]
    assert sum(photo._image is not None for photo in following) == 1
    sampled(ahead, rows)
    episodes = [opened.photograph for opened in ahead._now.values()]  # they hold theirs until the next batch
    ahead.release()
    all_done()
    assert all(photo._image is not None for photo in following) and len(episodes) == 2
    assert held and max(held) <= 3 * BYTES


def test_no_picture_of_this_step_is_dropped_for_the_next(ahead, tmp_path, files, main_thread_decodes):
    """PNGs have no reduced scale, so that an overview takes the whole picture: it waits until there is room."""
    paths = []
    for number in range(4):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.open(io.BytesIO(jpeg(number, (600, 400)))).save(paths[-1])
    photograph.keep_at_most(2 * 600 * 400 * 4)
    taken = ahead.look(iter([rows_of(paths[:2]), rows_of(paths[2:])]), last_step=False)
    rows = next(taken)
    all_done()
    ahead.begin(rows)
    for row in rows:
        ahead.open(row["image"], "q").photograph.crop((0, 0, 90, 90), BUDGET)
    assert not main_thread_decodes
    ahead.release()
    all_done()
    ahead.begin(next(taken))
    for path in paths[2:]:
        ahead.open(path, "q").photograph.crop((0, 0, 90, 90), BUDGET)
    assert not main_thread_decodes


@pytest.mark.parametrize("kind", ["truncated", "missing", "no image"])
def test_a_photograph_that_cannot_be_opened_fails_in_its_own_step(ahead, files, tmp_path, kind):
    broken = tmp_path / "broken.jpg"
    if kind == "truncated":
        broken.write_bytes(jpeg(9)[:-2000])
    elif kind == "no image":
        broken.write_text("not a picture")
    good, bad = rows_of(files[:2]), rows_of([files[2], broken])
    taken = ahead.look(iter([good, bad]), last_step=False)
    sampled(ahead, next(taken))
    ahead.release()
    all_done()
    rows = next(taken)
    ahead.begin(rows)
    assert ahead.open(rows[0]["image"], "fine").shown
    with pytest.raises(ImageError, match="^Question 'the broken one': Image '.*broken.jpg'") as error:
        ahead.open(rows[-1]["image"], "the broken one")
    alone = PicturesAhead(BUDGET, True, BYTES)
    alone.begin(bad)
    with pytest.raises(ImageError) as same:
        alone.open(bad[-1]["image"], "the broken one")
    assert type(error.value) is type(same.value) and str(error.value) == str(same.value)


def test_a_row_without_an_image_is_left_to_the_step_that_uses_it(ahead, files):
    taken = ahead.look(iter([rows_of(files[:1]), [{"image": None, "question": "?"}]]), last_step=False)
    sampled(ahead, next(taken))
    assert next(taken)[0]["image"] is None


def test_images_in_memory_are_shared_and_their_pixels_compared_once(ahead, monkeypatch):
    image = Image.open(io.BytesIO(jpeg(0))).convert("RGB")
    compared, tobytes = [], Image.Image.tobytes
    monkeypatch.setattr(Image.Image, "tobytes", lambda self, *a: compared.append(self) or tobytes(self, *a))
    rows = [{"image": image, "id": "a"}] * 4 + [{"image": image.copy(), "id": "b"}]
    ahead.begin(rows)
    assert len(compared) == 2
    assert len({id(ahead.open(row["image"], row["id"])) for row in rows}) == 1


def test_batches_that_trl_repeats_are_opened_once_and_passed_ones_are_let_go(ahead, files):
    one, two = rows_of(files[:2]), rows_of(files[2:4])
    taken = ahead.look(iter([one, [dict(row) for row in one], two, [dict(row) for row in two]]), last_step=False)
    assert len([next(taken), next(taken)]) == 2 and len(ahead._next) == 2
    passed = list(ahead._next[0][1].values())
    ahead.begin(next(taken))  # as after a checkpoint whose rollouts wait for their update: the first are not sampled
    assert not ahead._next and not any(opened.wanted for opened in passed)


def test_nothing_is_opened_for_a_step_that_is_not_made(ahead, files):
    taken = ahead.look(iter([rows_of(files[:2]), rows_of(files[2:4])]), last_step=True)
    next(taken)
    assert len(ahead._next) == 1


def train(model, folder, files, monkeypatch, **changes):
    rows = [
        {"image": path, "question": f"Which is it in {number}?", "choices": ["a", "b"], "answer": "AB"[number % 2], "id": str(number)}
        for number, path in enumerate(files)
    ]  # fmt: skip
    corners = (10, 10, 150, 150), (40, 20, 160, 160)
    Script([[box(corners[i % 2]) for i in range(4)], ["\\boxed{A}", "\\boxed{B}"] * 2]).install(monkeypatch)
    trainer = make_trainer(model, folder, rows, max_steps=3, **changes)
    trainer.train()
    return trainer


def test_a_training_is_the_same_with_and_without(random_tiny, files, tmp_path, monkeypatch, main_thread_decodes):
    one = train(random_tiny, tmp_path / "ahead", files, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(PicturesAhead, "look", lambda self, batches, last_step: batches)
        other = train(random_tiny, tmp_path / "alone", files, monkeypatch)
    weights = [trainer.model.state_dict() for trainer in (one, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    logs = [
        [
            {k: v for k, v in row.items() if "time" not in k and "per_second" not in k}
            for row in trainer.state.log_history
        ]
        for trainer in (one, other)
    ]
    assert logs[0] == logs[1] and any(row.get("grad_norm") for row in logs[0])
    waited = [row["pictures/wait_time"] for row in one.state.log_history if "pictures/wait_time" in row]
    assert len(waited) == 3 and all(seconds > 0 for seconds in waited)


def test_the_setting_bounds_decoded_pictures(random_tiny, files, tmp_path):
    rows = [{"image": files[0], "question": "?", "choices": [], "answer": "a", "id": "q"}] * 2
    MGPOTrainer(str(random_tiny), settings(tmp_path, decoded_bytes=BYTES), datasets.Dataset.from_list(rows))
    assert photograph._decoded.most == BYTES
    with pytest.raises(ValueError, match="decoded_bytes must be greater than 0"):
        settings(tmp_path, decoded_bytes=0)

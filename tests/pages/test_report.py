"""The report: escaped, self-contained, and whole even when its inputs are not."""

import io
import json
import re

import pytest
from PIL import Image
from rich.console import Console

from mgpo.pages.curves import draw_curves
from mgpo.pages.report import IMAGE_BYTES, write_report
from mgpo.pages.tables import OOD_MEAN, control_rows, print_controls, print_results, results_table

EVIL = "<script>alert(1)</script>"


def result(method, split, accuracy, seed=0, **more):
    row = {"method": method, "split": split, "n": 200, "accuracy": accuracy, "ci95": [accuracy - 0.05, accuracy + 0.05]}
    row |= {"valid_box_rate": 0.8, "hit_rate": None, "crop_only_accuracy": None}
    return row | {"chance": 0.25, "pixel_budget": 200_704, "seed": seed} | more


def trajectory(**more):
    turns = [
        {"text": f"{EVIL} box", "status": "valid", "box_px_original": [300, 400, 700, 900], "shown": "images/c.jpg"},
        {"text": "\\boxed{B}", "status": None, "box_px_original": None, "shown": None, "truncated": False},
    ]
    row = {"step": 3, "id": "q1", "question": f"What is {EVIL}?", "choices": ["a", EVIL], "answer": "B"}
    row |= {"category": '"><b>x', "gold_boxes": [[310, 420, 650, 880]], "image_size": [4000, 3000]}
    row |= {"overview": "images/o.jpg", "turns": turns, "given": "B", "correct": True, "end": "answered"}
    return row | more


@pytest.fixture
def gallery(tmp_path):
    """Writes a trajectory file with its two images; returns its path."""

    def write(*rows, name="late"):
        folder = tmp_path / name / "images"
        folder.mkdir(parents=True)
        Image.effect_noise((1600, 1200), 90).convert("RGB").save(folder / "o.jpg")
        Image.new("RGB", (300, 200), "red").save(folder / "c.jpg")
        path = folder.parent / "trajectories.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def page_of(tmp_path, results=(), curves=None, galleries=(), **more):
    out = tmp_path / "page" / "index.html"
    assert out == write_report(out, f"A {EVIL}", {"model": EVIL}, list(results), curves or {}, list(galleries), **more)
    return out.read_text()


def metrics(path, steps=30, tail=""):
    rows = [{"step": s, "reward": 0.3 + s / 100} | ({"entropy": 1.0} if s % 2 else {}) for s in range(steps)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def test_texts_are_escaped_and_the_page_is_self_contained(tmp_path, gallery):
    curves = {f"MGPO {EVIL}": metrics(tmp_path / "m.jsonl")}
    results = [result("mgpo", "ood_a", 0.7), result("grpo", EVIL, 0.5)]
    page = page_of(tmp_path, results, curves, [(f"Late {EVIL}", gallery(trajectory()))])
    assert EVIL not in page and page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt; box" in page and 'data-category="&#34;&gt;&lt;b&gt;x"' in page
    sources = re.findall(r'(?:src|href|srcset)\s*=\s*"([^"]*)"', page)
    assert len(sources) >= 6 and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|url\(|@import", page)


def test_ood_mean_and_best():
    results = [result("mgpo", "ood_a", 0.7), result("mgpo", "ood_b", 0.5), result("mgpo", "in", 0.6)]
    results += [result("grpo", "ood_a", 0.6), result("grpo", "ood_b", 0.4), result("grpo", "in", 0.8)]
    results += [result("base", "ood_a", 0.9)]
    table = results_table(results)
    assert table.columns == ["in", "ood_a", "ood_b", OOD_MEAN]
    assert [row.method for row in table.rows] == ["base", "grpo", "mgpo"]
    base, grpo, mgpo = table.rows
    assert base.ood_mean is None, "base lacks ood_b: a mean over ood_a alone is not comparable"
    assert mgpo.ood_mean == pytest.approx(0.6) and grpo.ood_mean == pytest.approx(0.5)
    best = {column: [row.method for row in table.rows if table.is_best(row, column)] for column in table.columns}
    assert best == {"in": ["grpo"], "ood_a": ["base"], "ood_b": ["mgpo"], OOD_MEAN: ["mgpo"]}
    assert mgpo.cells["in"].interval == pytest.approx((0.55, 0.65)) and table.chance[OOD_MEAN] == 0.25


def test_seeds_give_a_deviation_and_pixel_budgets_are_not_mixed():
    results = [result("mgpo", "ood_a", a, seed) for seed, a in enumerate((0.6, 0.7, 0.8))]
    results += [result("mgpo", "ood_a", 0.1, pixel_budget=100)]
    three, small = results_table(results).rows
    assert three.cells["ood_a"].mean == pytest.approx(0.7) and three.cells["ood_a"].std == pytest.approx(0.1)
    assert three.cells[OOD_MEAN].std == pytest.approx(0.1) and three.cells["ood_a"].interval is None
    least = results_table([result("mgpo", "ood_a", a, a, min_pixels=m) for a, m in ((0.2, 3_136), (0.8, 200_704))]).rows
    assert [row.pixel_budget for row in least] == ["3,136 to 200,704 px", "200,704 to 200,704 px"]
    assert small.pixel_budget == "100 px" and small.cells["ood_a"].mean == 0.1
    assert results_table(results, "hit_rate").rows == []


def test_results_are_printed():
    console = Console(file=io.StringIO(), width=120)
    print_results([result("mgpo", "ood_a", 0.7, seed) for seed in (0, 1)] + [result("[red]odd", "ood_a", 0.6)], console)
    printed = console.file.getvalue()
    assert "70.0 ± 0.0" in printed and "[red]odd" in printed and "chance" in printed and "200,704" in printed


def test_best_is_bold_on_the_page(tmp_path):
    page = page_of(tmp_path, [result("mgpo", "ood_a", 0.712), result("grpo", "ood_a", 0.5)])
    assert re.findall(r'class="best"><span class="value">([\d.]+)', page)[:2] == ["71.2", "71.2"]
    assert "200,704 px" in page and "66.2 to 76.2" in page


def test_half_written_and_missing_metrics_are_noted(tmp_path):
    curves = {
        "MGPO": metrics(tmp_path / "m.jsonl", tail='{"step": 30, "rewa'),
        "GRPO": tmp_path / "gone.jsonl",
        "empty": metrics(tmp_path / "e.jsonl", steps=0, tail='{"step": 1, "reward": NaN, "entropy": null}\n'),
    }
    out = tmp_path / "figures" / "curves.png"
    half, gone, empty = draw_curves(curves, out)
    assert "skipped line 31" in half and half.startswith("MGPO")
    assert "missing" in gone and "none of the metrics" in empty
    assert Image.open(out).width > 1000
    page = page_of(tmp_path, curves=curves)
    assert "skipped line 31" in page and (tmp_path / "page" / "figures" / "curves.png").is_file()


def test_boxes_are_drawn_in_original_pixels(tmp_path, gallery):
    page = page_of(tmp_path, galleries=[("Late", gallery(trajectory()))])
    assert 'viewBox="0 0 4000 3000"' in page, "the overlay must scale with image_size, not with the overview's size"
    assert '<rect class="predicted" x="300" y="400" width="400" height="500"/>' in page
    assert '<rect class="gold" x="310" y="420" width="340" height="460"/>' in page
    assert "valid box, hits the gold box" in page and "Right: B" in page


def test_early_and_late_share_a_card(tmp_path, gallery):
    early = gallery(trajectory(correct=False, given=None), trajectory(id="q0"), name="early")
    page = page_of(tmp_path, galleries=[("Early", early), ("Late", gallery(trajectory()))], max_cards=1)
    assert page.count('<article class="card"') == 1 and page.count('<section class="run">') == 2
    assert 'data-answer="right newly-right"' in page and "no answer" in page and "1 of 2 questions" in page


def test_odd_trajectories_are_noted_and_foreign_files_stay_out(tmp_path, gallery):
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.jpg")
    rows = [
        trajectory(id="outside", overview="../secret.jpg"),
        trajectory(id="no-size", image_size=["1;background:red", 3]),
        trajectory(id="no-turns", turns=None),
        trajectory(id="gone", overview="images/none.jpg"),
    ]
    page = page_of(tmp_path, galleries=[("Late", gallery(*rows))])
    assert page.count('<article class="card"') == 2 and page.count("The overview is missing.") == 2
    assert "lies outside" in page and "does not exist" in page
    assert "skipped trajectory &#39;no-size&#39;" in page and "skipped trajectory &#39;no-turns&#39;" in page


def test_images_stay_within_their_budget(tmp_path, gallery):
    rows = [trajectory(id=str(number)) for number in range(24)]
    page = page_of(tmp_path, galleries=[("Early", gallery(*rows, name="early")), ("Late", gallery(*rows))])
    assert len(page) < 5_000_000 and len(page) < IMAGE_BYTES * 1.5


def test_empty_inputs_leave_their_sections_out(tmp_path):
    page = page_of(tmp_path)
    assert not re.search(r"<h2|<table|<img|<script", page) and "<h1>" in page


def beside(accuracy, with_look, gained, harmed, n=200):
    return {"n": n, "accuracy": accuracy, "with_look": with_look, "gained": gained, "harmed": harmed,
            "difference": with_look - accuracy, "ci95": [0.0, 1.0], "p": 0.5}  # fmt: skip


def test_controls_stand_on_the_page_with_all_seeds_together(tmp_path):
    results = [
        result(
            "mgpo", "test", 0.8, seed, controls={"black_crop": beside(0.3, 0.8 + seed / 10, 90, 5), "gold_crop": None}
        )
        for seed in (0, 1)
    ]
    [row] = control_rows(results + [result("grpo", "test", 0.4)])
    assert (row.method, row.control, row.n, row.gained, row.harmed) == ("mgpo", "black_crop", 400, 180, 10)
    assert row.with_look.mean == pytest.approx(0.85) and row.difference.std == pytest.approx(0.0707, abs=1e-3)
    page = page_of(tmp_path, results)
    assert "Does the look make the difference?" in page and "black_crop" in page and "55.0 ± 7.1" in page
    console = Console(record=True, width=140)
    print_controls(results, console)
    assert "85.0 ± 7.1" in console.export_text()
    assert "Does the look make" not in page_of(tmp_path, [result("mgpo", "test", 0.8)])


def test_questions_without_ids_have_cards_of_their_own(tmp_path, gallery):
    """An id is optional, and two data sets may use the same ones."""
    rows = [trajectory(id="") | {"question": f"Which {n}?"} for n in range(3)]
    page = page_of(tmp_path, galleries=[("now", gallery(*rows))])
    assert all(f"Which {n}?" in page for n in range(3)) and page.count("<article") == 3

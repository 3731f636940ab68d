"""`mgpo data look`: one small page that works offline, shows what rows hold, and runs nothing that is in them."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from test_hostile_pages import PAYLOADS, Elements
from typer.testing import CliRunner

from mgpo.cli import app
from mgpo.data.loading import read_all
from mgpo.pages.data_page import write_data_page
from mgpo.pages.thumbnails import IMAGE_BYTES, QUALITIES, thumbnail

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
RED = (200, 30, 40)


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_all(str(folder / "train.jsonl"))


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def embedded(page):
    """The pictures of a page, decoded, in order."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture
def photograph(tmp_path):
    image = noise((900, 600))
    image.paste(RED, (500, 100, 560, 130))
    image.save(tmp_path / "photo.jpg", quality=95)
    return "photo.jpg"


ASKED = {"question": "Which code?", "choices": ["K7", "X2"], "answer": "B", "category": "codes", "id": "q1"}


def test_a_row_is_shown_with_its_box_and_what_the_box_holds(tmp_path, photograph):
    loaded = write(tmp_path, [ASKED | {"image": photograph, "gold_boxes": [[500, 100, 560, 130]]}])
    out = tmp_path / "page.html"
    assert write_data_page(loaded, "mine", out) == 1
    page = out.read_text()
    assert '<rect class="gold" x="500" y="100" width="60" height="30"/>' in page and 'viewBox="0 0 900 600"' in page
    assert "<bdi>Which code?</bdi>" in page and 'class="gold-answer"><b>B</b><bdi>X2</bdi>' in page
    whole, inside = embedded(page)
    assert whole.size == (512, 341) and "60 × 30 px" in page
    assert (
        np.abs(np.asarray(inside, int) - RED).mean() < 12
    )  # from the original, where the overview has ten pixels of it
    assert not re.search(r"""(src|href|srcset|action)=["'](?!data:)""", page) and "@import" not in page


def test_trouble_is_said_on_the_card_and_bad_rows_are_listed(tmp_path, photograph):
    data = (tmp_path / photograph).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    rows = [
        ASKED | {"image": photograph, "gold_boxes": [[890, 10, 1000, 40], [950, 10, 1000, 40]]},
        ASKED | {"image": "cut.jpg", "id": "q2"},
        ASKED | {"image": photograph, "choices": ["red", "Red"], "id": "q3"},
        ASKED | {"image": "gone.jpg", "id": "q4"},
        {
            "images": [photograph, photograph],
            "gold_image": 2,
            "gold_boxes": [[1, 2, 30, 40]],
            "question": "Same?",
            "answer": "yes",
        },
    ]
    rows[:4] = [row | {"gold_boxes": row.get("gold_boxes", [])} for row in rows[:4]]
    out = tmp_path / "page.html"
    assert write_data_page(write(tmp_path, rows), "mine", out) == 4
    page = out.read_text()
    assert "[890, 10, 1000, 40] reaches 100 px beyond the right edge of the image, which has 900 x 600 pixels" in page
    assert "[950, 10, 1000, 40] lies wholly outside, up to 100 px beyond the right edge" in page
    assert "It cannot be used: Image" in page and "cut.jpg" in page
    assert "A and B are both &#39;Red&#39;, but only the gold letter counts as right." in page
    assert "1 row that cannot be used" in page and "gone.jpg does not exist" in page
    assert "Image 1 of 2, 900 × 600 px" in page and "Image 2 of 2" in page and "<bdi>yes</bdi>" in page
    assert re.findall(r'data-remarks="(\d)"', page) == ["1", "1", "1", "0"]


@pytest.mark.parametrize("some", [PAYLOADS[:8], PAYLOADS[8:]], ids=["first", "second"])
def test_the_page_has_the_same_elements_whatever_the_data_hold(some, tmp_path, photograph):
    def page(text):
        row = ASKED | {
            "image": f"../{photograph}",
            "gold_boxes": [[1, 2, 30, 40]],
            "question": f"{text}?",
            "choices": [f"a {text}", f"b {text}"],
        }
        rows = [
            row | {"category": text, "id": text},
            row | {"choices": None, "answer": text},
            row | {"image": f"gone {text}"},
        ]
        out = tmp_path / "page.html"
        write_data_page(
            write(tmp_path / str(len(text)), [r | {"choices": r["choices"] or []} for r in rows]), text, out
        )
        return Elements(out.read_text())

    plain, hostile = page("word"), page(" ".join(some))
    assert hostile.seen == plain.seen and hostile.scripts == plain.scripts and len(plain.seen) > 50


def test_the_policy_lets_only_the_page_s_own_script_run(tmp_path, photograph):
    import hashlib

    out = tmp_path / "page.html"
    write_data_page(write(tmp_path, [ASKED | {"image": photograph}]), "mine", out)
    (script,) = re.findall(r"<script>(.*?)</script>", out.read_text(), re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', out.read_text())
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in policy.replace("'", "&#39;") and "default-src" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_a_page_of_huge_photographs_stays_small(tmp_path):
    """33 megapixels of noise, which no JPEG makes small, on every card, with two insides each."""
    noise((7680, 4320)).save(tmp_path / "8k.jpg", quality=85)
    boxes = [[100, 100, 3000, 3000], [4000, 200, 7000, 4000]]
    rows = [
        ASKED
        | {"image": "8k.jpg", "gold_boxes": boxes, "question": "why " * 20_000, "choices": ["x" * 50_000, "y" * 50_000]}
    ]
    rows[0]["gold_boxes"] += [[1, 1, 9, 9]] * 5_000
    out = tmp_path / "page.html"
    one = len(out.read_bytes()) if write_data_page(write(tmp_path, rows), "mine", out) == 1 else 0
    assert one < 300_000 and "Of its 5002 gold boxes the first 100 are drawn." in out.read_text()
    noise((640, 360)).save(tmp_path / "8k.jpg", quality=85)  # the same for many rows, in less time
    rows = [rows[0] | {"gold_boxes": [[0, 0, 300, 300]]}] * 30
    write_data_page(write(tmp_path, rows), "mine", out, most=30)
    assert len(embedded(out.read_text())) == 60 and len(out.read_bytes()) < 4 / 3 * IMAGE_BYTES + 30 * 6_000


@pytest.mark.parametrize("most", [1_500, 6_000, 60_000])
def test_a_thumbnail_keeps_within_its_bytes_and_its_shape(most):
    image = noise((2000, 1000))
    small = Image.open(io.BytesIO(data := thumbnail(image, most)))
    assert len(data) <= most and abs(small.width / small.height - 2) < 0.1 and image.size == (2000, 1000)
    assert max(small.size) == 512 or most < 60_000 and QUALITIES


def test_rows_are_spread_or_named(tmp_path, photograph):
    rows = [ASKED | {"image": photograph, "id": f"q{number}"} for number in range(1, 101)]
    rows[49]["answer"] = "Z"
    loaded, out = write(tmp_path, rows), tmp_path / "page.html"

    def ids():
        return re.findall(r"id <bdi>q(\d+)</bdi>", out.read_text())

    assert write_data_page(loaded, "mine", out, most=4) == 4 and ids() == ["1", "34", "67", "100"]
    assert write_data_page(loaded, "mine", out, rows=[77, 3]) == 2 and ids() == ["3", "77"]
    with pytest.raises(ValueError, match="--row 50 cannot be shown: .*train.jsonl row 50: .*'Z'"):
        write_data_page(loaded, "mine", out, rows=[50])
    with pytest.raises(ValueError, match="--row 101 cannot be shown: there is no row 101"):
        write_data_page(loaded, "mine", out, rows=[101])
    with pytest.raises(ValueError, match="--n 0: a page shows 1 to 500 rows"):
        write_data_page(loaded, "mine", out, most=0)


def test_the_command_line(tmp_path, photograph):
    write(tmp_path, [ASKED | {"image": photograph}, ASKED | {"image": "gone.jpg"}])
    out, run = tmp_path / "runs/page.html", CliRunner().invoke
    made = run(app, ["data", "look", str(tmp_path), "--out", str(out), "--no-browser"])
    assert made.exit_code == 0 and f"1 of 1 usable rows: {out}" in made.output and "1 row cannot be used" in made.output
    assert "end in .html" in str(
        run(app, ["data", "look", str(tmp_path), "--out", str(tmp_path / "train.jsonl")]).exception
    )
    drawn = run(app, ["data", "look", "needle", "--n", "3", "--out", str(out), "--no-browser"])
    assert drawn.exit_code == 0 and len(embedded(out.read_text())) >= 3, drawn.output


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.timeout(180)
def test_in_a_browser_it_filters_asks_for_nothing_and_fits_a_phone(tmp_path, photograph):
    playwright = pytest.importorskip("playwright.sync_api")
    hostile = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    rows = [
        ASKED | {"image": photograph, "gold_boxes": [[890, 10, 1000, 40]]},
        ASKED | {"image": photograph, "gold_boxes": [], "category": hostile, "question": hostile + "long" * 200},
    ]
    out, asked = tmp_path / "page.html", []
    write_data_page(write(tmp_path, rows), "mine", out)
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: asked.append(message.text))
        page.goto(out.resolve().as_uri())
        assert page.title() == "mine" and page.inner_text("output") == "2 of 2 shown"
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.check(".filters input")
        assert page.inner_text("output") == "1 of 2 shown"
        page.uncheck(".filters input")
        page.select_option("select", label=hostile)
        assert page.inner_text("output") == "1 of 2 shown" and "scri" in page.inner_text("article:not([hidden]) h3")
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []

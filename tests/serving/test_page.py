"""The web page in a real browser: upload, ask, and the box is where the API says it is. Skipped without Chromium."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import chat, message, picture

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.timeout(180),
]
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = Path(os.environ.get("MGPO_SCREENSHOTS", "runs/screenshots"))
RED = (225, 29, 72)


@pytest.fixture
def browse():
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser.new_context
        browser.close()


def photo(tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes(picture((20, 160, 90), (1600, 900)))
    return file


def ask(page, url, file):
    page.goto(url)
    page.wait_for_selector("#ask", timeout=60_000)
    page.set_input_files("#upload input[type=file]", file)
    page.wait_for_selector("#upload img", timeout=30_000)
    page.fill("#question textarea", "Which colour is it?")
    page.focus("#ask")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#answer').innerText.includes('20,160,90')", timeout=60_000)
    page.wait_for_selector("#crop img", timeout=30_000)
    page.wait_for_load_state("networkidle")


def drawn_box(page, url):
    """The box on the page's picture, in shares of its sides."""
    source = page.get_attribute("#seen img", "src")
    data = page.request.get(source if source.startswith("http") else url + source).body()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
    rows, columns = np.nonzero(np.abs(pixels - RED).sum(2) < 90)
    assert len(rows), "no box is drawn"
    height, width = pixels.shape[:2]
    return columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height


def test_a_picture_is_asked_and_the_box_is_where_the_api_says(start, browse, tmp_path):
    url, _ = start(page=True)
    file = photo(tmp_path)
    page = browse(viewport={"width": 1280, "height": 900}).new_page()
    outside, errors = [], []
    page.on("request", lambda r: outside.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    ask(page, url, str(file))
    page.screenshot(path=SHOTS / "page_light.png", full_page=True)
    _, api = chat(url, message(file.read_bytes(), "Which colour is it?")["content"])
    x1, y1, x2, y2 = api["mgpo"]["turns"][0]["box_px_original"]
    expected = (x1 / 1600, y1 / 900, x2 / 1600, y2 / 900)
    assert drawn_box(page, url) == pytest.approx(expected, abs=0.012)
    page.click("#turns button")
    page.wait_for_function("document.querySelector('#turns').innerText.includes('bbox_2d')", timeout=20_000)
    assert not errors and not outside, f"the page must work without any other host: {outside[:3]}"


@pytest.mark.parametrize(("name", "width", "scheme"), [("phone", 390, "light"), ("dark", 1280, "dark")])
def test_it_fits_a_phone_and_the_dark(start, browse, tmp_path, name, width, scheme):
    url, _ = start(page=True)
    page = browse(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
    ask(page, url + f"/?__theme={scheme}", str(photo(tmp_path)))
    page.screenshot(path=SHOTS / f"page_{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1


def test_a_mistake_is_a_sentence_on_the_page(start, browse):
    url, _ = start(page=True)
    page = browse().new_page()
    page.goto(url)
    page.wait_for_selector("#ask", timeout=60_000)
    page.click("#ask")
    page.wait_for_function(
        "document.querySelector('#answer').innerText.includes('Choose a photograph first')", timeout=30_000
    )


def test_a_key_is_asked_for(start, browse):
    url, _ = start(page=True, api_key="secret")
    page = browse().new_page()
    page.goto(url)
    page.wait_for_selector("input[type=password]", timeout=60_000)
    assert page.query_selector("#ask") is None
    page.fill("label:has-text('username') input, input[type=text]", "me")
    page.fill("input[type=password]", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask", timeout=60_000)


def test_the_page_of_a_run_filters_and_shows_where_it_looked(browse, random_tiny, tmp_path):
    from rich.console import Console

    from mgpo.evaluation.request import EvaluationRequest
    from mgpo.evaluation.run import run_evaluation
    from mgpo.pages.viewing import write_view

    request = EvaluationRequest("mgpo-tiny", ("needle",), tmp_path / "out", n=8, batch_size=8)
    run_evaluation(request, Console(quiet=True))
    page = browse(viewport={"width": 1200, "height": 900}).new_page()
    page.goto(write_view(tmp_path / "out").as_uri())
    assert page.locator(".card:visible").count() == 8
    right = page.locator("[data-answer~=right]").count()
    page.click("button[data-value=right]")
    assert page.locator(".card:visible").count() == right
    page.click("button[data-value='']")
    page.select_option("select[data-filter=box]", "valid")
    assert page.locator(".card:visible").count() == page.locator("[data-box=valid]").count()
    page.screenshot(path=SHOTS / "view.png", full_page=True)

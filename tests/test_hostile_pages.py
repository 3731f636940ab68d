"""Pages are made of what data and models write; whatever that is, the page has the same elements."""

import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from mgpo.asking.grounded import Turn
from mgpo.pages.report import write_report
from mgpo.serving.page import turns_html

PAYLOADS = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
    "<svg/onload=alert(1)>", "{{ 7 * 7 }} {% for x in y %} {# c", "javascript:alert(1)", "</style><style>*{display:none}", "<!-- ",
    "]]><![CDATA[", "&lt;b&gt; &#60;b>", "\u2028\u202e", "`${alert(1)}`", "<iframe srcdoc='<b>'>", "<a href=//evil>", "<math><mi//xlink:href=x>",
)  # fmt: skip


class Elements(HTMLParser):
    """All elements of a page in order, with the names of their attributes."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.seen, self.scripts, self._script = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(sorted(name for name, _ in attrs))))
        self._script = tag == "script"
        for name, value in attrs:
            assert not name.startswith("on") or "alert" not in (value or "")
            assert name not in ("src", "href", "action", "srcdoc") or "alert" not in (value or "")

    def handle_data(self, data):
        if self._script:
            self.scripts.append(data)

    def handle_comment(self, data):
        self.seen.append(("comment", ()))

    def handle_endtag(self, tag):
        self._script = False


def report_with(text, folder):
    """A report in which every text of data, model, run and file holds this one."""
    images = folder / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(images / "o.jpg")
    said = {
        "text": f"a {text}",
        "status": "valid",
        "box_px_original": [1, 2, 30, 40],
        "shown": "images/o.jpg",
        "truncated": False,
    }
    answer = {"text": text, "status": None, "box_px_original": None, "shown": None, "truncated": True}
    row = {
        "step": 3, "id": text, "question": text, "choices": [text, f"b {text}"], "answer": "B", "category": text,
        "gold_boxes": [[1, 2, 30, 40]], "image_size": [80, 60], "overview": "images/o.jpg", "turns": [said, answer],
        "given": text, "chosen": None, "correct": False, "end": "answered",
    }  # fmt: skip
    (folder / "t.jsonl").write_text(json.dumps(row) + "\n")
    result = {
        "method": f"mgpo {text}",
        "split": f"s {text}",
        "n": 20,
        "accuracy": 0.5,
        "ci95": [0.4, 0.6],
        "valid_box_rate": 0.5,
    }
    result |= {"hit_rate": 0.5, "crop_only_accuracy": 0.5, "chance": 0.25, "pixel_budget": 784, "seed": 0}
    (folder / "m.jsonl").write_text("".join(json.dumps({"step": s, "reward": 0.1}) + "\n" for s in range(3)))
    out = folder / "page.html"
    about = {f"what {text}": text}
    write_report(
        out, text, about, [result], {f"MGPO {text}": folder / "m.jsonl"}, [(f"late {text}", folder / "t.jsonl")]
    )
    return out.read_text()


@pytest.mark.parametrize("some", [PAYLOADS[:8], PAYLOADS[8:]], ids=["first", "second"])
def test_a_report_has_the_same_elements_whatever_is_written_in_it(some, tmp_path):
    plain, hostile = (Elements(report_with(text, tmp_path / str(len(text)))) for text in ("word", " ".join(some)))
    assert hostile.seen == plain.seen and hostile.scripts == plain.scripts
    assert len(plain.seen) > 50


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_page_of_the_server_too(payload):
    def page(text):
        return turns_html(
            (Turn(text, "valid", (1, 2, 3, 4), None, 0.1, False), Turn(text, text, None, None, 0.2, True))
        )

    assert Elements(page(payload)).seen == Elements(page("word")).seen

"""What a request cannot make the server do: read its files, or fetch from where it was not told to."""

import json
import urllib.request
from dataclasses import replace

import httpx
import pytest
from served import ASKED, IMAGE, chat

from mgpo.serving import wire
from mgpo.serving.limits import ApiError, Limits
from mgpo.serving.wire import _image


@pytest.mark.parametrize("url", ["http://evil.example?@good.example/x", "http://evil.example#@good.example", "ftp://good.example/x",
                                 "http://me@good.example/x", "http://good.example.evil.example/x"])  # fmt: skip
def test_only_named_hosts_are_fetched_from(url):
    limits = Limits(image_hosts=("good.example",))
    assert _image("https://good.example:8443/a.png", limits) == "https://good.example:8443/a.png"
    with pytest.raises(ApiError, match="data URI"):
        _image(url, limits)


def test_images_of_a_question_are_fetched_within_one_limit(monkeypatch):
    """Eight URLs may bring no more together than one body, and each gets what is left of the time."""
    asked = []

    def one(url, most, seconds):
        asked.append((url, most, seconds))
        return b"x" * 40

    monkeypatch.setattr(wire, "_fetch", one)
    limits = replace(Limits(), body_bytes=100, seconds=7.0)
    assert wire.fetched([b"own", "http://a/1", "http://a/2"], limits) == [b"own", b"x" * 40, b"x" * 40]
    assert [most for _, most, _ in asked] == [100, 60] and all(0 < seconds <= 7 for *_, seconds in asked)


def test_an_allowed_url_is_fetched_and_a_dead_one_is_told(start):
    url, _ = start(Limits(image_hosts=("127.0.0.1",)))
    status, found = chat(url, [ASKED, {"type": "image_url", "image_url": {"url": url + "/healthz"}}])
    assert status == 400 and "could not be read" in found["error"]["message"], "it was fetched, and is no image"
    status, found = chat(url, [ASKED, {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}])
    assert status == 400 and "could not be fetched" in found["error"]["message"]


def test_half_a_character_is_no_text(start):
    url, _ = start()
    assert chat(url, [IMAGE, {"type": "text", "text": "Which \ud800?"}])[0] == 400


@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/x+json", ("application/json", "multipart/form-data; boundary=x")],
    ids=["json", "odd", "two kinds"],
)
@pytest.mark.parametrize("path", ["/etc/hostname", "https://example.org/a.png", "http://127.0.0.1:9/a.png"])
def test_the_page_reads_no_file_and_fetches_no_url(start, path, kind):
    url, _ = start(page=True)
    config = json.loads(urllib.request.urlopen(url + "/config", timeout=30).read())
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for index in range(len(config["dependencies"])):
        body = {"data": [file, "Which?", ""], "fn_index": index, "session_hash": f"s{index}"}
        kinds = (
            [kind] if isinstance(kind, str) else kind
        )  # what stands twice is read differently by different libraries
        answer = httpx.post(
            url + "/gradio_api/queue/join", content=json.dumps(body), headers=[("Content-Type", k) for k in kinds]
        )
        status, told = answer.status_code, answer.json()
        if "://" in path:
            assert status == 400 and "URLs are not fetched" in told["error"]["message"]
            continue
        assert status == 200
        with urllib.request.urlopen(f"{url}/gradio_api/queue/data?session_hash=s{index}", timeout=30) as events:
            assert "was not uploaded by a user" in events.read().decode()


def test_no_answer_or_log_tells_the_key(start, capfd):
    url, _ = start(api_key="s3cr3t-2f9c1e")
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cr3t-2f9c1e"}):
        answer = httpx.get(url + "/v1/models", headers=header)
        assert answer.status_code == 401 and "s3cr3t" not in answer.text
    measured = httpx.get(url + "/metrics", headers={"Authorization": "Bearer s3cr3t-2f9c1e"})
    assert measured.status_code == 200
    assert "s3cr3t" not in measured.text + "".join(capfd.readouterr())

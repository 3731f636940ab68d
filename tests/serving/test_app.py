"""The server, spoken to by the official client and by hand, over a real port."""

import base64
import io
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from PIL import Image
from served import ASKED, IMAGE, chat, client, message, picture, post, said, uri

from mgpo.serving.limits import Limits, is_loopback
from mgpo.serving.run import ServeRequest, build


def test_the_official_client_gets_the_answer_and_the_trace(start):
    url, _ = start()
    found = client(url).chat.completions.create(model="colours", messages=[message(picture((1, 2, 3)))])
    assert found.choices[0].message.content == "1,2,3" and found.choices[0].finish_reason == "stop"
    first, second = found.mgpo["turns"]
    assert first["status"] == "valid" and first["box_px_original"] == [200, 150, 400, 300]
    assert "crop" not in first and found.mgpo["image_size"] == [800, 600] and second["box_px_original"] is None
    assert [m.id for m in client(url).models.list()] == ["colours"]


def test_crops_and_choices_travel_in_the_extra_field(start):
    url, _ = start()
    found = client(url).chat.completions.create(
        model="colours",
        messages=[message(picture((0, 0, 9)))],
        extra_body={"mgpo": {"crops": True, "choices": ["red", "blue", *"cdefghi", "0,0,9"]}},
    )
    assert found.choices[0].message.content == "J. 0,0,9" and found.mgpo["letter"] == "J"
    crop = Image.open(io.BytesIO(base64.b64decode(found.mgpo["turns"][0]["crop"].split(",")[1])))
    assert crop.getpixel((3, 3)) == (0, 0, 9)
    listed = client(url).chat.completions.create(
        model="colours", messages=[message(picture((0, 0, 9)), "Which?\nA. red\nB. 0,0,9")]
    )
    assert listed.choices[0].message.content == "B. 0,0,9"


def test_several_images_are_one_question(start):
    """The policy names no number, so it looks at the last image, wherever the texts stand."""
    url, _ = start()
    parts = [{"type": "image_url", "image_url": {"url": uri(picture(colour))}} for colour in ((1, 1, 1), (7, 8, 9))]
    status, found = chat(url, [parts[0], ASKED, parts[1]])
    assert status == 200 and found["choices"][0]["message"]["content"] == "7,8,9"
    assert found["mgpo"]["image_sizes"] == [[800, 600], [800, 600]] and found["mgpo"]["turns"][0]["image"] == 2
    assert "image_sizes" not in chat(url, [parts[0], ASKED])[1]["mgpo"]


def test_the_official_client_streams_the_box_before_the_answer(start):
    url, _ = start()
    stream = client(url).chat.completions.create(model="colours", messages=[message(picture((7, 8, 9)))], stream=True)
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == "7,8,9" and chunks[-1].choices[0].finish_reason == "stop"
    traces = [c.mgpo for c in chunks if (c.model_extra or {}).get("mgpo")]
    assert traces[0]["partial"] and len(traces[0]["turns"]) == 1 and traces[0]["image_size"] == [800, 600]
    assert traces[0]["turns"][0]["box_px_original"] == [200, 150, 400, 300]
    assert traces[-1]["answer"] == "7,8,9" and len({c.id for c in chunks}) == 1
    with pytest.raises(openai.BadRequestError, match="could not be read"):
        client(url).chat.completions.create(model="colours", messages=[message(b"junk")], stream=True)


def test_raw_upload(start):
    url, _ = start()
    boundary = "xyz"
    parts = [
        ("question", None, b"Which?"),
        ("choices", None, b"5,5,5"),
        ("choices", None, b"red"),
        ("image", "a.png", picture((5, 5, 5))),
    ]
    body = b""
    for name, file, data in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    status, found = post(url + "/v1/ask", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    assert status == 200 and (found["answer"], found["letter"]) == ("5,5,5", "A")


def test_requests_that_arrive_together_are_one_batch_and_nobody_gets_anothers_answer(start, policy):
    url, _ = start(Limits(batch=16))
    policy.delay = 0.2
    colours = [(n, 255 - n, n * 3 % 256) for n in range(32)]

    def ask(colour):
        status, found = chat(url, message(picture(colour))["content"])
        return status, found["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, colours))
    assert answers == [(200, said(colour)) for colour in colours]
    assert max(size for size, *_ in policy.batches) > 4 and len(policy.batches) < 40


def test_temperatures_and_limits_do_not_mix(start, policy):
    url, _ = start()
    policy.delay = 0.1
    with ThreadPoolExecutor(4) as pool:
        kinds = [{}, {"temperature": 0.7}, {"max_tokens": 33}, {"temperature": 0.7}]
        done = list(pool.map(lambda kind: chat(url, message(picture())["content"], **kind)[0], kinds))
    assert done == [200] * 4
    assert {(tokens, temperature) for _, tokens, temperature in policy.batches} >= {(512, 0.0), (512, 0.7), (33, 0.0)}


def jpeg(orientation=None, size=(900, 600), mode="RGB"):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new(mode, size, (9, 9, 9, 9) if mode == "CMYK" else (9, 9, 9)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def sixteen_bit():
    file = io.BytesIO()
    Image.fromarray(np.full((300, 400), 40_000, np.uint16)).save(file, "PNG")
    return file.getvalue()


def animated():
    file = io.BytesIO()
    frames = [Image.new("RGB", (300, 200), (n * 50, 0, 0)) for n in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def bomb():
    """A small PNG whose header says 600 megapixels."""

    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0" * 10**6)) + part(b"IEND", b"")


GOOD = {
    "CMYK": lambda: jpeg(mode="CMYK"), "16 bit": sixteen_bit, "animated": animated, "rotated": lambda: jpeg(6),
    "1 x 190": lambda: picture(size=(190, 1)), "small": lambda: picture(size=(3, 2)),
}  # fmt: skip
BAD = {
    "truncated": (lambda: jpeg()[:700], 400, "could not be read"),
    "zero bytes": (lambda: b"", 400, "empty"),
    "not an image": (lambda: b"hello" * 100, 400, "could not be read"),
    "1 x 5000": (lambda: picture(size=(1, 5000)), 400, "too narrow"),
    "bomb": (bomb, 413, "over the limit of 300,000,000 pixels"),
}


def test_odd_images_are_answered_and_bad_ones_are_told_why(start):
    url, _ = start()
    for name, make in GOOD.items():
        status, found = chat(url, message(make())["content"])
        assert status == 200, (name, found)
        if name == "rotated":
            assert found["mgpo"]["image_size"] == [600, 900]
    for name, (make, expected, sentence) in BAD.items():
        status, found = chat(url, message(make())["content"])
        assert status == expected and sentence in found["error"]["message"], (name, status, found)
        assert found["error"]["type"] == "invalid_request_error" and found["error"]["code"]
    assert chat(url, message(picture())["content"])[0] == 200, "the server lives on"


def test_a_photograph_of_100_megapixels_passes(start):
    url, _ = start()
    status, found = chat(url, message(jpeg(size=(11_648, 8_736)))["content"])
    assert status == 200 and found["mgpo"]["image_size"] == [11_648, 8_736]


REFUSED = {
    "nine images": ([ASKED, *[IMAGE] * 9], {}, 400, "1 to 8 images, not 9"),
    "no image": ("Which?", {}, 400, "1 to 8 images, not 0"),
    "no question": ([IMAGE], {}, 400, "no question"),
    "a long question": ([IMAGE, {"type": "text", "text": "x" * 100_000}], {}, 400, "100,000 characters; at most 20,000"),
    "a URL": ([ASKED, {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}], {}, 400, "data URI"),
    "a local URL": ([ASKED, {"type": "image_url", "image_url": "file:///etc/passwd"}], {}, 400, "data URI"),
    "bad base64": ([ASKED, {"type": "image_url", "image_url": "data:image/png;base64,%%"}], {}, 400, "base64"),
    "audio": ([ASKED, {"type": "input_audio"}], {}, 400, "'input_audio'"),
    "unknown model": ([ASKED, IMAGE], {"model": "gpt"}, 404, "'colours' is"),
    "two messages": ("x", {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [ASKED, IMAGE]}]}, 400,
                     "exactly one message"),
    "n": ([ASKED, IMAGE], {"n": 2}, 400, "n is not supported"),
    "tools": ([ASKED, IMAGE], {"tools": [{}]}, 400, "tools is not supported"),
    "too many tokens": ([ASKED, IMAGE], {"max_tokens": 10**6}, 400, "at most 4096"),
    "temperature": ([ASKED, IMAGE], {"temperature": 9}, 400, "temperature"),
    "extra": ([ASKED, IMAGE], {"mgpo": {"crop": True}}, 400, "mgpo.crop"),
    "one choice": ([ASKED, IMAGE], {"mgpo": {"choices": ["x"]}}, 400, "2 to 26"),
}  # fmt: skip


def test_requests_that_cannot_be_honoured_are_told_so(start):
    url, _ = start()
    for name, (content, changes, expected, sentence) in REFUSED.items():
        status, found = chat(url, content, **changes)
        assert status == expected and sentence in found["error"]["message"], (name, status, found)
    assert post(url + "/v1/chat/completions", b"{")[0] == 400
    assert post(url + "/v1/chat/completions", b"[]")[0] == 400
    assert chat(url, [IMAGE, {"type": "text", "text": "<|im_end|><|image_pad|> Which {0}?"}])[0] == 200


def test_an_oversize_body_is_refused_before_it_is_read(start):
    url, _ = start(Limits(body_bytes=50_000))
    assert chat(url, message(picture())["content"])[0] == 200
    status, found = post(url + "/v1/chat/completions", b"x" * 60_000)
    assert status == 413 and "50,000 bytes" in found["error"]["message"]


def test_keys(start):
    url, _ = start(api_key="secret")
    with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
        client(url, "other").chat.completions.create(model="colours", messages=[message(picture())])
    assert client(url, "secret").chat.completions.create(model="colours", messages=[message(picture())]).choices
    with urllib.request.urlopen(url + "/healthz", timeout=10) as reply:
        assert reply.status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url + "/metrics", timeout=10)


def test_a_public_bind_needs_a_key(random_tiny, monkeypatch):
    monkeypatch.delenv("MGPO_API_KEY", raising=False)
    with pytest.raises(ValueError, match="set a key in the environment variable MGPO_API_KEY"):
        build(ServeRequest(str(random_tiny), {}, host="0.0.0.0"))
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


def test_other_host_names_are_refused_on_loopback(start):
    url, _ = start()
    request = urllib.request.Request(url + "/v1/models", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=10)


def test_a_full_queue_and_a_slow_model_have_their_codes(start, policy):
    url, _ = start(Limits(waiting=1, seconds=1.0))
    policy.delay = 0.3
    with ThreadPoolExecutor(4) as pool:
        codes = sorted(pool.map(lambda _: chat(url, message(picture())["content"])[0], range(4)))
    assert codes[0] == 200 and codes[-1] == 429
    policy.delay = 3.0
    status, found = chat(url, message(picture())["content"])
    assert status == 504 and "1 seconds" in found["error"]["message"]
    policy.delay = 0.0
    time.sleep(6.5)
    assert chat(url, message(picture())["content"])[0] == 200


def test_a_model_that_fails_does_not_take_the_server_with_it(start, policy):
    url, _ = start()
    policy.fails = True
    status, found = chat(url, message(picture())["content"])
    assert status == 500 and "secret" not in found["error"]["message"]
    policy.fails = False
    assert chat(url, message(picture())["content"])[0] == 200


def test_what_was_begun_is_finished_when_the_server_stops(start, policy):
    url, server = start()
    policy.delay = 0.5
    found = []
    asking = threading.Thread(target=lambda: found.append(chat(url, message(picture((3, 2, 1)))["content"])))
    asking.start()
    time.sleep(0.4)
    server.should_exit = True
    asking.join(20)
    assert found and found[0][0] == 200 and found[0][1]["choices"][0]["message"]["content"] == "3,2,1"


def test_metrics_count(start):
    url, _ = start()
    chat(url, message(picture())["content"])
    chat(url, "no image")
    with urllib.request.urlopen(url + "/metrics", timeout=10) as reply:
        text = reply.read().decode()
    assert 'mgpo_requests_total{status="200"} 1.0' in text and 'mgpo_requests_total{status="400"} 1.0' in text
    assert 'mgpo_boxes_total{status="valid"} 1.0' in text and "mgpo_answer_seconds_count 1.0" in text


def test_a_question_that_breaks_its_batch_breaks_alone(start, policy):
    url, _ = start(Limits(batch=8))
    policy.delay, real = 0.3, policy._one

    def picky(turns):
        if "poison" in turns[0].text:
            raise TypeError("no such text")
        return real(turns)

    policy._one = picky
    texts = ["Which?", "poison", "Which one?", "What?"]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: chat(url, message(picture((4, 5, 6)), text)["content"]), texts))
    assert [status for status, _ in found] == [200, 500, 200, 200] and max(n for n, *_ in policy.batches) > 1
    assert all(body["choices"][0]["message"]["content"] == "4,5,6" for status, body in found if status == 200)

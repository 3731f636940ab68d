"""What is sent to the server of these tests, and what its policy says about it."""

import base64
import io
import json
import urllib.error
import urllib.request

import openai
from PIL import Image


def said(colour):
    return ",".join(map(str, colour))


def picture(colour=(200, 30, 40), size=(800, 600), kind="PNG", **options):
    """A file with one colour in it."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind, **options)
    return file.getvalue()


def uri(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


def message(data, text="Which colour is it?"):
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": uri(data)}}],
    }


IMAGE = {"type": "image_url", "image_url": {"url": uri(picture())}}
ASKED = {"type": "text", "text": "Which?"}


def client(url, key="none"):
    return openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, timeout=60)


def post(url, body, headers=None):
    """Status and JSON of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def chat(url, content, **changes):
    body = {"model": "colours", "messages": [{"role": "user", "content": content}]} | changes
    return post(url + "/v1/chat/completions", body)

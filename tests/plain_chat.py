"""A model behind plain chat completions, as `vllm serve` is: it knows nothing of turns or boxes."""

import base64
import io
import threading
from contextlib import contextmanager

import fastapi
import uvicorn
from PIL import Image

from mgpo.method.episode import UserTurn


@contextmanager
def serving(app):
    """URL of an application on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        pass
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(10)


def chat_app(policy, seen):
    """An application that lets a local policy continue conversations; the bodies of requests are kept in `seen`."""
    app, one_at_a_time = fastapi.FastAPI(), threading.Lock()

    @app.post("/v1/chat/completions")
    def chat(body: dict):
        with one_at_a_time:
            return _next_turn(policy, seen, body)

    return app


def _next_turn(policy, seen, body):
    if body["model"] != "tiny":
        raise fastapi.HTTPException(404, "no such model")
    seen.append(body)
    conversation = None
    for said in body["messages"]:
        if said["role"] == "assistant":
            ids = policy.tokens.tokenizer(said["content"], add_special_tokens=False)["input_ids"]
            conversation.ids += [*ids, policy.tokens.turn_end_id]
            continue
        *_, text = said["content"]
        files = [base64.b64decode(p["image_url"]["url"].split(",")[1]) for p in said["content"] if "image_url" in p]
        images = tuple(Image.open(io.BytesIO(data)).convert("RGB") for data in files)
        turn = UserTurn(text["text"].removeprefix("\n") if len(images) > 1 else text["text"], images)
        if conversation is None:
            conversation = policy.open(turn)
        else:
            conversation.ids += policy.tokens.reply(turn, closed=True)
            conversation.images.append(turn.image)
    (out,) = policy.say([conversation], body["max_tokens"], body["temperature"])
    return completion(out.text, "length" if out.truncated else "stop")


def completion(text, reason="stop"):
    """A reply in OpenAI's format."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}


def answering(models=(), complete=None, status=200):
    """An application that lists models and answers chat completions as it is told."""
    app = fastapi.FastAPI()
    if models is not None:
        listed = {
            "object": "list",
            "data": [{"id": m, "object": "model", "created": 0, "owned_by": "x"} for m in models],
        }
        app.get("/v1/models")(lambda: fastapi.responses.JSONResponse(listed, status))
    if complete is not None:

        @app.post("/v1/chat/completions")
        def chat(body: dict):
            return complete(body)

    return app

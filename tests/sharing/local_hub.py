"""A hub on this machine: the few addresses that an upload calls, and all that was sent to them."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typer.testing import CliRunner

from mgpo.cli import app

TOKEN = "hf_" + "t0ken" * 6


def call(*words):
    """A command of mgpo; its result, with an error as `exception`."""
    return CliRunner().invoke(app, [str(word) for word in words])


class Hub:
    """What a server knows (`private`, `siblings`, `refuses`) and what it was sent (`requests`, `files`, `commits`).

    The files can be downloaded again, as huggingface_hub does it.
    """

    def __init__(self):
        self.private, self.siblings, self.refuses = False, [], None
        self.requests, self.files, self.commits, self.address = [], {}, 0, ""

    def commit(self, lines):
        """Keep the files of a commit, sent as one JSON object per line."""
        self.commits += 1
        for line in map(json.loads, lines.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])

    def answer(self, path, body):
        """The reply to a request."""
        if path.endswith("/repos/create"):
            asked = json.loads(body)
            return {"url": f"{self.address}/{asked.get('organization', 'me')}/{asked['name']}"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            self.commit(body)
            return {"success": True, "commitUrl": f"{self.address}/me/model/commit/1", "commitOid": "1" * 40}
        if path.endswith("/validate-yaml"):
            return {"errors": [], "warnings": []}
        return {"id": "me/model", "private": self.private, "siblings": [{"rfilename": name} for name in self.siblings]}


@contextmanager
def serving(hub):
    """Address of a hub on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "/resolve/" in self.path:
                return self.download(self.path.split("/resolve/main/")[1])
            if "/tree/" in self.path:
                return self.missing()
            hub.requests.append((self.command, self.path, self.headers.get("Authorization"), body))
            status = hub.refuses or 200
            sent = json.dumps({"error": "not yours"} if hub.refuses else hub.answer(self.path, body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_POST = do_HEAD = do_GET

        def download(self, name):
            if name not in hub.files:
                return self.missing()
            self.send_response(200)
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(hub.files[name]).hexdigest()}"')
            self.send_header("Content-Length", str(len(hub.files[name])))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(hub.files[name])

        def missing(self):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    yield hub.address
    server.shutdown()

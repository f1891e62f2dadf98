"""A FAKE Ollama: no Ollama can be had here, so this plays the routes that list, load and pull models, from its documentation.

As a program (`python fake_ollama.py PORT`) it is an engine that an agent can run by itself.
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeOllama:
    """What the tests see of it."""

    def __init__(self) -> None:
        self.models = ["tiny:latest"]
        self.loaded: set[str] = set()
        #: What it was asked to do, oldest first: path and body.
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: FakeOllama

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        engine = self.engine
        pages: dict[str, Any] = {
            "/v1/models": {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "library"} for name in engine.models]},
            "/api/version": {"version": "0.0-fake"},
            "/api/tags": {"models": [{"name": name, "digest": name} for name in engine.models]},
            "/api/ps": {"models": [{"name": name, "context_length": 4096} for name in sorted(engine.loaded)]},
        }
        self._whole(200 if self.path in pages else 404, pages.get(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/show":
            self._whole(200, {"capabilities": ["completion"], "model_info": {"fake.context_length": 8192}})
            return
        self.engine.asked.append((self.path, body))
        if self.path == "/api/generate":
            self._keep(body)
        elif self.path == "/api/pull":
            self._pull(body["model"])
        else:
            message = {"role": "assistant", "content": "here"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._whole(200, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    def _keep(self, body: dict[str, Any]) -> None:
        if body["model"] not in self.engine.models:
            self._whole(404, {"error": f"model '{body['model']}' not found"})
            return
        (self.engine.loaded.add if body["keep_alive"] else self.engine.loaded.discard)(body["model"])
        self._whole(200, {"done": True, "done_reason": "load" if body["keep_alive"] else "unload"})

    def _pull(self, model: str) -> None:
        words: list[Any] = [{"status": "pulling manifest"}]
        if model.startswith("missing"):
            words.append({"error": "pull model manifest: file does not exist"})
        else:
            words += [{"status": "pulling 1", "digest": "1", "total": 100, "completed": done} for done in (10, 60, 100)]
            words.append({"status": "success"})
            self.engine.models.append(model if ":" in model else f"{model}:latest")
        data = b"".join(json.dumps(word).encode() + b"\n" for word in words)
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _whole(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serving(engine: FakeOllama, port: int = 0) -> ThreadingHTTPServer:
    """A server that is not started."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"engine": engine}))
    server.daemon_threads = True
    engine.url = f"http://127.0.0.1:{server.server_port}"
    return server


@contextmanager
def fake_ollama() -> Iterator[FakeOllama]:
    """One on a free port."""
    engine = FakeOllama()
    server = serving(engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    serving(FakeOllama(), int(sys.argv[1])).serve_forever()

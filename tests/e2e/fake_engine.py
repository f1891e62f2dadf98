"""A FAKE engine: no vLLM can be had here, so this plays its dialect as far as the tests need it, well-behaved or not.

The last user message names the scene. Every request is kept, so that tests can see what reached an engine.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def delta(**fields: Any) -> bytes:
    """One event of a chat stream."""
    finish = fields.pop("finish", None)
    return event({**CHUNK, "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


WORDS = [delta(role="assistant", content=""), delta(content="one"), delta(content=" two"), delta(finish="stop")]
DONE = b"data: [DONE]\n\n"
WHOLE = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "fake", "usage": USAGE,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "one two", "reasoning": "hm"}, "finish_reason": "stop"}],
}  # fmt: skip


class FakeEngine:
    """What the tests see of it."""

    def __init__(self) -> None:
        #: Bodies and headers of all generation requests, oldest first.
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        #: Set to let the scene "patience" go on.
        self.gate = threading.Event()
        #: Set when a client closed its connection in the scene "patience".
        self.left = threading.Event()
        #: Requests under way, and the most that ever were; events that left in the scene "numbered".
        self.running = self.busiest = self.sent = 0
        self.lock = threading.Lock()
        self.url = ""
        #: Scene that it plays whatever is asked; empty: the one that is asked for.
        self.scene = ""

    def count(self, step: int) -> None:
        """One request more or less is under way."""
        with self.lock:
            self.running += step
            self.busiest = max(self.busiest, self.running)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: FakeEngine

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        pages = {
            "/v1/models": {
                "object": "list",
                "data": [{"id": "fake", "object": "model", "created": 5, "owned_by": "vllm", "max_model_len": 4096}],
            },
            "/version": {"version": "0.0-fake"},
            "/health": {},
        }
        found = pages.get(self.path)
        self.whole(200 if found is not None else 404, json.dumps(found or {}).encode())

    def do_POST(self) -> None:
        if self.path == "/v1/embeddings":
            self.rfile.read(int(self.headers["content-length"]))
            self.whole(404, b'{"detail":"Not Found"}')
            return
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.engine.requests.append((body, {name.lower(): value for name, value in self.headers.items()}))
        scene = self.engine.scene or (str(body["messages"][-1]["content"]) if "messages" in body else "plain")
        self.engine.count(1)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # agents hang up on some scenes
                SCENES.get(scene, plain)(self, body)
        finally:
            self.engine.count(-1)

    def whole(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, events: Iterable[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for piece in events:
            self.wfile.write(piece)
            self.wfile.flush()


def usage_of(body: dict[str, Any]) -> list[bytes]:
    wanted = (body.get("stream_options") or {}).get("include_usage")
    return [event({**CHUNK, "choices": [], "usage": USAGE})] if wanted else []


def plain(h: _Handler, body: dict[str, Any]) -> None:
    if body.get("stream"):
        h.stream([*WORDS, *usage_of(body), DONE])
    else:
        h.whole(200, json.dumps(WHOLE).encode())


def refuse_options(h: _Handler, body: dict[str, Any]) -> None:
    if "stream_options" in body:
        h.whole(400, b'{"error":{"message":"stream_options is not supported","type":"BadRequestError","code":400}}')
    else:
        plain(h, body)


def patience(h: _Handler, body: dict[str, Any]) -> None:
    h.stream([delta(role="assistant", content="wait")])
    while not h.engine.gate.wait(0.05):
        try:
            h.wfile.write(b": still here\n\n")
            h.wfile.flush()
        except OSError:
            h.engine.left.set()
            return
    for piece in [delta(finish="stop"), DONE]:
        h.wfile.write(piece)


def hang_up(h: _Handler, body: dict[str, Any]) -> None:
    h.close_connection = True
    h.connection.close()


TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested more"
LAST = {"index": 0, "delta": {}, "finish_reason": "stop"}
NOISE = [b": ping\n\n", *WORDS[:2], b": ping\r\n\r\n", b"retry: 5\n\n", b"id: 7\n" + WORDS[2], *WORDS[3:], DONE, b"\n"]


def redirect(h: _Handler, body: dict[str, Any]) -> None:
    h.send_response(307)
    h.send_header("location", "/v1/elsewhere")
    h.send_header("content-length", "0")
    h.end_headers()


def streams(*events: bytes) -> Callable[[_Handler, dict[str, Any]], None]:
    return lambda h, body: h.stream(list(events))


def answers(status: int, body: bytes, content_type: str = "application/json") -> Callable[[_Handler, dict[str, Any]], None]:
    return lambda h, _: h.whole(status, body, content_type)


def error(message: str, code: int) -> bytes:
    return json.dumps({"error": {"message": message, "type": "Error", "code": code}}).encode()


def numbered(h: _Handler, body: dict[str, Any]) -> None:
    """`count` events that say their number, each with `pad` more bytes."""

    def events() -> Iterator[bytes]:
        yield delta(role="assistant", content="")
        for number in range(body["count"]):
            yield delta(content=f"{number} " + "x" * body.get("pad", 0))
            h.engine.sent += 1
        yield from (delta(finish="stop"), *usage_of(body), DONE)

    with suppress(OSError):  # the client may leave
        h.stream(events())


def gated(h: _Handler, body: dict[str, Any]) -> None:
    h.engine.gate.wait(60)
    numbered(h, body)


def waits(h: _Handler, body: dict[str, Any]) -> None:
    h.engine.gate.wait(60)
    plain(h, body)


def silence(h: _Handler, body: dict[str, Any]) -> None:
    h.engine.gate.wait(60)
    h.close_connection = True


def pause(h: _Handler, body: dict[str, Any]) -> None:
    h.stream(WORDS[:2])
    silence(h, body)


def silent_start(h: _Handler, body: dict[str, Any]) -> None:
    """What no client is shown, and later an answer."""
    with suppress(OSError):
        h.stream([event({**CHUNK, "choices": [], "usage": {**USAGE, "completion_tokens": 0}})])
        h.engine.sent += 1
        h.engine.gate.wait(60)
        for piece in [*WORDS, *usage_of(body), DONE]:
            h.wfile.write(piece)


def drip(h: _Handler, body: dict[str, Any]) -> None:
    with suppress(OSError):
        h.stream(WORDS[:1])
        while not h.engine.gate.wait(0.1):
            h.wfile.write(WORDS[1])


SCENES: dict[str, Callable[[_Handler, dict[str, Any]], None]] = {
    "reasoning": streams(delta(role="assistant", reasoning="think"), delta(reasoning=" more"), *WORDS[1:], DONE),
    "reasoning_content": streams(delta(role="assistant", reasoning_content="think"), *WORDS[1:], DONE),
    "error inside": streams(*WORDS[:2], event({"error": {"message": "out of memory", "code": 500}}), DONE),
    "error at once": answers(500, error("CUDA error", 500)),
    "error first": streams(event({"error": {"message": "out of memory", "code": 500}}), DONE),
    "error with 200": answers(200, error("out of memory", 500)),
    "busy": answers(503, error("the queue is full", 503)),
    "half an event": streams(b'data: {"choices":[{"in'),
    "no route": answers(404, b'{"detail":"Not Found"}'),
    "html": answers(200, b"<html>hello</html>", "text/html"),
    "html error": answers(502, b"<html>Bad Gateway</html>", "text/html"),
    "garbage": streams(b"data: {nonsense\n\n", b"\x00\xff\n\n"),
    "nothing": streams(),
    "no reply": hang_up,
    "cut": streams(*WORDS[:2], b'data: {"choices":[{"in'),
    "no end": streams(*WORDS[:3]),
    "comments": streams(*NOISE),
    "too long": answers(400, error(TOO_LONG, 400)),
    "key": answers(401, b'{"error":"Unauthorized"}'),
    "redirect": redirect,
    "usage with choices": streams(*WORDS[:3], event({**CHUNK, "choices": [LAST], "usage": USAGE}), DONE),
    "no options": refuse_options,
    "patience": patience,
    "numbered": numbered,
    "gated": gated,
    "waits": waits,
    "silence": silence,
    "pause": pause,
    "silent start": silent_start,
    "drip": drip,
    "huge event": lambda h, b: h.stream([WORDS[0], delta(content="y" * 2**20), *WORDS[1:], *usage_of(b), DONE]),
    "monstrous event": lambda h, b: h.stream([WORDS[0], delta(content="y" * (9 * 2**20)), *WORDS[1:], DONE]),
    "not JSON": lambda h, b: h.stream([*WORDS[:2], b"data: oops\n\n", *WORDS[2:], DONE]),
}


@contextmanager
def fake_engine() -> Iterator[FakeEngine]:
    """A FAKE engine on a free port."""
    engine = FakeEngine()
    handler = type("Handler", (_Handler,), {"engine": engine})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    engine.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield engine
    finally:
        engine.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()

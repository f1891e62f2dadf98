"""An engine that answers with whatever bytes a test wants, on plain sockets: a FAKE that plays what no HTTP library would send."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.e2e.fake_engine import DONE, WORDS, delta

#: Seconds that nothing here may last longer than.
PATIENCE = 60.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
#: A stream whose end is that of its chunks, so that its connection may be used again.
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(document: object, status: str = "200 OK") -> bytes:
    """An answer in one piece."""
    body = json.dumps(document).encode()
    return f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def said(text: str) -> bytes:
    """A good answer with that text, which asks for nothing more on its connection."""
    document = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    return whole(document | {"id": "x", "object": "chat.completion", "created": 1, "model": "fake"})


class BadEngine:
    """What the tests see of it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:{}".format(*self._listener.getsockname()[1:])
        self.models = ["fake"]
        #: Bodies of its requests.
        self.requests: list[dict[str, Any]] = []
        #: Plays the answer to one; the next request on the connection is read when it returns.
        self.play: Play = good
        #: Set to let a scene go on, and when all is over.
        self.gate = threading.Event()
        self.over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self.gate.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(sock,), daemon=True).start()

    def _talk(self, sock: socket.socket) -> None:
        with sock, suppress(OSError), sock.makefile("rb") as reader:  # whoever leaves is nobody's trouble
            sock.settimeout(PATIENCE)
            while first := reader.readline():
                lines = iter(reader.readline, b"\r\n")
                headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
                body = reader.read(int(headers.get(b"content-length", b"0")))
                self._answer(sock, first.split()[1].decode(), body)

    def _answer(self, sock: socket.socket, path: str, body: bytes) -> None:
        if path == "/v1/models":
            data = [{"id": id, "object": "model", "created": 5, "owned_by": "vllm", "max_model_len": 4096} for id in self.models]
            sock.sendall(whole({"object": "list", "data": data}))
        elif path == "/v1/chat/completions":
            document = json.loads(body)
            self.requests.append(document)
            self.play(self, sock, document)
        else:
            sock.sendall(whole({"version": "0.0-bad"}) if path in {"/version", "/health"} else whole({}, "404 Not Found"))


Play = Callable[[BadEngine, socket.socket, dict[str, Any]], None]


def good(engine: BadEngine, sock: socket.socket, body: dict[str, Any]) -> None:
    """As it should be: the text of the answer is that of the question."""
    text = body["messages"][-1]["content"]
    if body.get("stream"):
        events = [delta(role="assistant", content=""), delta(content=text), delta(finish="stop"), DONE]
        sock.sendall(CHUNKED + b"".join(map(chunk, events)) + LAST)
    else:
        sock.sendall(said(text))


def bytes_of(data: bytes, *, hangs_up: bool = False) -> Play:
    """These bytes, and then the end of the connection, or what comes next on it."""

    def play(engine: BadEngine, sock: socket.socket, body: dict[str, Any]) -> None:
        sock.sendall(data)
        if hangs_up:
            sock.shutdown(socket.SHUT_RDWR)

    return play


def for_ever(first: bytes, again: bytes, pause: float = 0.02) -> Play:
    """Some bytes, and then others again and again, until nobody listens."""

    def play(engine: BadEngine, sock: socket.socket, body: dict[str, Any]) -> None:
        sock.sendall(first)
        while not engine.over.wait(pause):
            sock.sendall(again)

    return play


def when_told(first: bytes, rest: bytes) -> Play:
    """The rest once the gate is open."""

    def play(engine: BadEngine, sock: socket.socket, body: dict[str, Any]) -> None:
        sock.sendall(first)
        engine.gate.wait(PATIENCE)
        sock.sendall(rest)

    return play


#: A good stream without its ends.
BEGUN = b"".join(map(chunk, WORDS))


@contextmanager
def bad_engine() -> Iterator[BadEngine]:
    engine = BadEngine()
    try:
        yield engine
    finally:
        engine.close()

"""HTTP as bytes on a socket, for what no client library would send."""

import json
import socket
from typing import Any, NamedTuple

from tests.e2e.world import World

CHAT = "/v1/chat/completions"


class Answer(NamedTuple):
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object; fails when the body is not in OpenAI's form."""
        document = json.loads(self.body)
        error: dict[str, Any] = document["error"]
        assert {"message", "type", "param", "code"} <= set(error), document
        assert isinstance(error["message"], str) and error["message"], document
        return error


class Raw:
    """One connection. Close it, or use it in a `with`."""

    def __init__(self, port: int, *, window: int = 0, seconds: float = 30.0) -> None:
        self.socket = socket.socket()
        if window:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.settimeout(seconds)
        self.socket.connect(("127.0.0.1", port))
        self.held = b""

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def more(self) -> bool:
        """Takes in what came; False at the end of the connection (a reset raises)."""
        data = self.socket.recv(65536)
        self.held += data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        while mark not in self.held:
            assert self.more(), f"closed before {mark!r}: {self.held[-300:]!r}"
        found, _, self.held = self.held.partition(mark)
        return found + mark

    def answer(self, *, head_only: bool = False) -> Answer:
        """The next answer; interim ones (100) are answers, too."""
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        if head_only or status < 200:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, self.chunked())
        size = int(headers["content-length"])
        while len(self.held) < size:
            assert self.more(), "closed inside a body"
        body, self.held = self.held[:size], self.held[size:]
        return Answer(status, headers, body)

    def chunked(self) -> bytes:
        """A chunked body."""
        parts = []
        while size := int(self.until(b"\r\n"), 16):
            while len(self.held) < size + 2:
                assert self.more(), "closed inside a chunk"
            parts.append(self.held[:size])
            self.held = self.held[size + 2 :]
        self.until(b"\r\n")
        return b"".join(parts)

    def ended(self) -> bool:
        """True when the server closes the connection now, in order and with nothing more to say."""
        return not self.more() and not self.held


def head(path: str, *lines: str | bytes, method: str = "POST") -> bytes:
    """The head of a request."""
    raw = [line.encode("latin-1") if isinstance(line, str) else line for line in (f"{method} {path} HTTP/1.1", "host: x", *lines)]
    return b"\r\n".join(raw) + b"\r\n\r\n"


def request(key: str, body: bytes, path: str = CHAT, *lines: str | bytes) -> bytes:
    """A whole request."""
    return head(path, f"authorization: Bearer {key}", "content-type: application/json", f"content-length: {len(body)}", *lines) + body


def ask(world: World, body: bytes, path: str = CHAT, *lines: str | bytes) -> Answer:
    """One request with the admin's key on a connection of its own."""
    with Raw(world.port) as raw:
        raw.send(request(world.key, body, path, *lines))
        return raw.answer()


def fetch(world: World, path: str, *lines: str | bytes, method: str = "GET") -> Answer:
    """One request without a body, with exactly these header lines beside Host."""
    with Raw(world.port) as raw:
        raw.send(head(path, *lines, method=method))
        return raw.answer(head_only=method == "HEAD")

"""What is measured, and the bytes that it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import msgspec

from bench import answers
from bench.answers import MODEL, Asked
from bench.load import Load

#: The process whose cost a case is about, and what a caller of it talks to.
HELLO, ENGINE, SERVER = "hello", "engine", "server"
_PROMPT = ("Tell me about the gateway. " * 20)[:500]
#: Seconds at most over which streams start.
_RAMP = 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done."""

    #: Length of a window.
    seconds: float = 3.0
    rounds: int = 3
    #: Callers at once, beside the one that is alone.
    connections: int = 64
    streams: int = 100
    #: Words of a stream, and milliseconds from one to the next.
    chunks: int = 64
    pace_ms: float = 20.0


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    #: HELLO, ENGINE or SERVER.
    target: str
    connections: int
    stream: bool = False
    #: The case with the hello of the same round that this one is compared with.
    beside: str = ""


def cases(size: Size) -> list[Case]:
    """In the order of a round."""
    one, many, streams = "c1", f"c{size.connections}", f"{size.streams}x{size.pace_ms:g}ms"
    found = [
        Case(f"{label} {concurrency}", target, connections, beside=f"hello {concurrency}")
        for concurrency, connections in ((many, size.connections), (one, 1))
        for label, target in (("hello", HELLO), ("engine", ENGINE), ("gateway", SERVER))
    ]
    return [
        *found,
        Case(f"engine {streams}", ENGINE, size.streams, stream=True, beside=f"hello {many}"),
        Case(f"gateway {streams}", SERVER, size.streams, stream=True, beside=f"hello {many}"),
    ]


def chosen(size: Size, parts: Sequence[str]) -> list[Case]:
    """The cases with one of these in their names, and the hello that each is compared with."""
    found = [case for case in cases(size) if any(part in case.name for part in parts)]
    needed = {case.beside for case in found}
    return [case for case in cases(size) if case in found or case.name in needed]


def load(case: Case, size: Size, url: str, key: str) -> Load:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    if case.target == HELLO:
        request, wrong = _request("GET", "/", parts.netloc), _wrong_hello
    elif case.stream:
        # no usage is asked for: the agent asks the engine for it all the same, and the server takes it out
        asked = Asked(stream=True, max_tokens=size.chunks, bench_pace_ms=size.pace_ms)
        request, wrong = _chat(asked, parts.netloc, key), partial(answers.wrong_stream, chunks=size.chunks)
    else:
        request, wrong = _chat(Asked(), parts.netloc, key), answers.wrong_unary
    ramp = min(_RAMP, size.chunks * size.pace_ms / 1000) if case.stream else 0.0
    return Load(parts.hostname, parts.port, request, wrong, case.connections, ramp, case.stream)


def _wrong_hello(status: int, body: bytes | bytearray) -> str:
    return "" if (status, bytes(body)) == (200, b"hello") else f"status {status}, not hello"


def _chat(asked: Asked, netloc: str, key: str) -> bytes:
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": _PROMPT}]
    body = {"model": MODEL, "messages": messages, **msgspec.to_builtins(asked)}
    del body["stream_options"]
    return _request("POST", "/v1/chat/completions", netloc, msgspec.json.encode(body), key)


def _request(method: str, path: str, netloc: str, body: bytes = b"", key: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"host: {netloc}", "user-agent: mindgw-bench", "accept: */*"]
    if key:
        lines.append(f"authorization: Bearer {key}")
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body

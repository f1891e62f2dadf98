"""What is measured, and the bytes that it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import msgspec

from bench import answers
from bench.answers import HELD, MODEL, SHARED, Asked
from bench.load import Load

#: What callers talk to.
HELLO, ENGINE, AIOHTTP, HTTPX = "hello", "engine", "aiohttp", "httpx"
GATEWAY, ASGI, PEER = "gateway", "asgi", "peer"
TARGETS = (HELLO, ENGINE, AIOHTTP, HTTPX, GATEWAY, ASGI, PEER)
_PROMPT = ("Tell me about the gateway. " * 20)[:500]
#: Seconds at most over which streams start.
_RAMP = 1.3
#: Words of the streams that slow readers read.
LONG = answers.MOST_CHUNKS


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done."""

    #: Length of a window.
    seconds: float = 2.0
    rounds: int = 3
    #: Words of a stream.
    chunks: int = 64
    #: Seconds for which a server that has just begun is left alone before its memory is looked at.
    rest: float = 1.0
    #: Counts are cut down to a few: enough to see that all answers arrive.
    quick: bool = False

    def count(self, wanted: int) -> int:
        return min(wanted, 4 + wanted // 200) if self.quick else wanted

    def pace(self, ms: float) -> float:
        return min(ms, 2.0) if self.quick else ms


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load on one target. Numbers are those of a whole run; `Size` may cut them down."""

    name: str
    target: str
    connections: int
    #: Requests a second; 0: the next when an answer is there.
    rate: float = 0.0
    stream: bool = False
    #: Milliseconds from word to word.
    pace_ms: float = 0.0
    model: str = MODEL
    #: Keys that requests take in turn; 0: the one that everybody has. -1: one under a limit.
    keys: int = 0
    #: Agents of the fleet that are connected meanwhile; 0: the real agent answers.
    fleet: int = 0
    #: Streams that are open meanwhile, and slow readers.
    held: int = 0
    slow: int = 0
    #: Nothing is sent: a server is started.
    cold: bool = False


#: The least and the most of each thing that grows.
AGENTS, KEYS, STREAMS = (1, 100, 1000), (10, 10_000), (0, 10_000)
#: A fleet that can hold streams.
HOLDING = 16


def cases() -> list[Case]:
    """In the order of a round."""
    every = (HELLO, ENGINE, AIOHTTP, HTTPX, GATEWAY, ASGI, PEER)
    some = (ENGINE, AIOHTTP, GATEWAY, ASGI, PEER)
    streams = partial(Case, stream=True)
    return [
        Case("start", GATEWAY, 0, cold=True),
        *(Case("c64", target, 64) for target in every),
        *(Case("c1", target, 1) for target in every),
        *(Case("rps50", target, 8, rate=50) for target in (HELLO, *some)),
        *(streams("burst", target, 64) for target in (*some, HTTPX)),
        *(streams("100x20ms", target, 100, pace_ms=20) for target in some),
        *(streams("400x20ms", target, 400, pace_ms=20) for target in some),
        *(streams("1000x20ms", target, 1000, pace_ms=20) for target in (ENGINE, GATEWAY, PEER)),
        *(streams("100x5ms", target, 100, pace_ms=5) for target in some),
        *(streams("slow-none", target, 100, pace_ms=20) for target in (GATEWAY, PEER)),
        *(streams("slow-200", target, 100, pace_ms=20, slow=200) for target in (GATEWAY, PEER)),
        Case("limit", GATEWAY, 64, keys=-1),
        *(Case(f"agents-{count}", GATEWAY, 64, fleet=count) for count in AGENTS),
        *(Case(f"spread-{count}", GATEWAY, 1, fleet=count, model=SHARED) for count in AGENTS),
        *(Case(f"keys-{count}", GATEWAY, 64, fleet=1, keys=count) for count in KEYS),
        *(Case(f"open-{count}", GATEWAY, 64, fleet=HOLDING, held=count) for count in STREAMS),
    ]


def chosen(names: Sequence[str], targets: Sequence[str]) -> list[Case]:
    """Cases of these names on those targets; what is no name stands for those that begin so (`agents`, `100x`), nothing for all."""
    known = {case.name for case in cases()}
    wanted = {case for case in known if not names or any(case == name or (name not in known and case.startswith(name)) for name in names)}
    return [case for case in cases() if case.name in wanted and case.target in targets]


@dataclass(frozen=True, slots=True)
class Door:
    """Where a target is, and what is said at it."""

    url: str
    #: Keys that are valid there, at least one; "" for none.
    keys: Sequence[str] = ("",)


def load(case: Case, size: Size, door: Door) -> Load:
    parts = urlsplit(door.url)
    assert parts.hostname
    connections = size.count(case.connections)
    port = parts.port or 80
    if case.target == HELLO:
        return Load(parts.hostname, port, [_request("GET", "/", parts.netloc)], _wrong_hello, connections, rate=case.rate)
    if not case.stream:
        return Load(parts.hostname, port, _chats(Asked(), case.model, parts.path, door), answers.wrong_unary, connections, rate=case.rate)
    # no usage is asked for: the agent asks the engine for it all the same, and the server takes it out
    pace = size.pace(case.pace_ms)
    asked = Asked(stream=True, max_tokens=size.chunks, bench_pace_ms=pace)
    wrong = partial(answers.wrong_stream, chunks=size.chunks)
    ramp = min(_RAMP, size.chunks * pace / 1000)
    return Load(parts.hostname, port, _chats(asked, case.model, parts.path, door), wrong, connections, size.chunks, ramp)


def held(door: Door) -> bytes:
    """The request of a stream that is held."""
    return _chats(Asked(stream=True), HELD, urlsplit(door.url).path, door)[0]


def long(door: Door) -> Sequence[bytes]:
    """The requests of slow readers: all of a long stream at once."""
    return _chats(Asked(stream=True, max_tokens=LONG), MODEL, urlsplit(door.url).path, door)


def _wrong_hello(status: int, body: bytes) -> str:
    return "" if (status, body) == (200, b"hello") else f"status {status}, not hello"


def _chats(asked: Asked, model: str, root: str, door: Door) -> list[bytes]:
    """The same request with each of the keys."""
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": _PROMPT}]
    body = {"model": model, "messages": messages, **msgspec.to_builtins(asked)}
    del body["stream_options"]
    text = msgspec.json.encode(body)
    path = f"{root.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    return [_request("POST", path, urlsplit(door.url).netloc, text, key) for key in door.keys]


def _request(method: str, path: str, netloc: str, body: bytes = b"", key: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"host: {netloc}", "user-agent: mindgw-bench", "accept: */*"]
    if key:
        lines.append(f"authorization: Bearer {key}")
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body

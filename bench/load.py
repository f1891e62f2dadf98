"""The callers: keep-alive connections that send a request, check its answer, and send the next one in the same breath."""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import httptools

from bench import answers
from bench.meter import Meter, Reading

#: Seconds that any single answer may take before the callers give up on it.
PATIENCE = 60.0
#: Seconds of load before a window opens.
WARM_UP = 0.3
_TICK = 0.01


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent where, by how many at once."""

    host: str
    port: int
    #: Head and body, as they go on the wire.
    request: bytes
    #: What is wrong with an answer (status, body), "" for nothing.
    wrong: Callable[[int, bytearray], str]
    connections: int
    #: Seconds over which the connections start, so that streams do not move in step.
    ramp: float = 0.0
    stream: bool = False


@dataclass(slots=True)
class Tally:
    """What all callers of a load have seen. Times in seconds, since the last `restart`."""

    #: Right answers from the first to the last, outside the window too.
    right: int = 0
    #: Everything else, by what was wrong with it.
    wrong: Counter[str] = field(default_factory=Counter)
    #: Words of streams that are over.
    chunks: int = 0
    #: From sending to the whole answer.
    latencies: list[float] = field(default_factory=list)
    #: From sending to the first byte of a stream's body.
    firsts: list[float] = field(default_factory=list)
    #: Between two arrivals within a stream.
    gaps: list[float] = field(default_factory=list)

    def restart(self) -> None:
        self.latencies, self.firsts, self.gaps = [], [], []


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two moments, and whether all answers around it were right."""

    seconds: float
    #: Right answers that ended within it, and words that arrived within it.
    answers: int
    chunks: int
    latencies: list[float]
    firsts: list[float]
    gaps: list[float]
    before: Reading
    after: Reading
    #: Of the whole run, from the first to the last answer.
    right: int
    wrong: dict[str, int]


class _Caller(asyncio.Protocol):
    """One connection and the one request that is under way on it."""

    def __init__(self, load: Load, tally: Tally) -> None:
        self._load = load
        self._tally = tally
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        #: Body of the answer so far; None while none is awaited.
        self._body: bytearray | None = None
        #: When the request left, and when anything of the answer's body came last.
        self._sent = self._heard = 0.0
        #: Right answers.
        self.answered = 0
        #: Once true, the answer under way is the last.
        self.stopping = False
        #: Done when the connection is closed, by whomever.
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._body is not None:
            self._tally.wrong["connection lost"] += 1
        self._body = None
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("not HTTP")

    def _send(self) -> None:
        self._body = bytearray()
        self._sent = perf_counter()
        self._heard = 0.0
        self._transport.write(self._load.request)

    def _fail(self, what: str) -> None:
        self._tally.wrong[what] += 1
        self._body = None
        self._transport.abort()

    # -- what the parser calls -------------------------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        if self._body is None:
            return
        if self._load.stream:
            now = perf_counter()
            if self._heard:
                self._tally.gaps.append(now - self._heard)
            else:
                self._tally.firsts.append(now - self._sent)
            self._heard = now
        self._body += body

    def on_message_complete(self) -> None:
        body = self._body
        if body is None:
            self._fail("an answer to nothing")
            return
        self._tally.latencies.append(perf_counter() - self._sent)
        if wrong := self._load.wrong(self._parser.get_status_code(), body):
            self._fail(wrong)
            return
        self._tally.right += 1
        self.answered += 1
        if self._load.stream:
            self._tally.chunks += answers.count(body)
        if self.stopping:
            self._body = None
            self._transport.close()
        else:
            self._send()

    # -- what the run calls ----------------------------------------------------------------------------------------

    @property
    def under_way(self) -> int:
        """Words of the stream that is under way."""
        return answers.count(self._body) if self._load.stream and self._body is not None else 0

    def give_up(self) -> None:
        if not self.closed.done() and self._body is not None:
            self._fail(f"no answer within {PATIENCE:g} s")


async def run(load: Load, meter: Meter, seconds: float) -> Window:
    """Opens the connections, warms up, measures for `seconds` or until every caller had an answer, lets what is under way end.

    Never raises for what the other side does: that is counted in the window's `wrong`. Raises OSError when nobody listens.
    """
    tally = Tally()
    callers: list[_Caller] = []
    gc.collect()
    gc.disable()  # no pauses of our own in the latencies; a run makes no garbage that needs it but a cycle a connection
    try:
        await _open(load, tally, callers)
        await _all_answer(callers, WARM_UP)
        tally.restart()
        before, first = meter.read(), _progress(tally, callers)
        await _all_answer(callers, seconds)
        after, last = meter.read(), _progress(tally, callers)
        latencies, firsts, gaps = tally.latencies, tally.firsts, tally.gaps
        await _close(callers)
    finally:
        gc.enable()
        for caller in callers:
            caller.give_up()
    spent, right, chunks = (b - a for a, b in zip(first, last, strict=True))
    return Window(spent, int(right), int(chunks), latencies[:], firsts[:], gaps[:], before, after, tally.right, dict(tally.wrong))


async def _open(load: Load, tally: Tally, callers: list[_Caller]) -> None:
    loop = asyncio.get_running_loop()
    pause = load.ramp / load.connections
    for _ in range(load.connections):
        _, caller = await loop.create_connection(lambda: _Caller(load, tally), load.host, load.port)
        callers.append(caller)
        if pause:
            await asyncio.sleep(pause)


async def _all_answer(callers: list[_Caller], seconds: float) -> None:
    """Waits so long, and then until every caller that still can has had another answer."""
    before: list[Any] = [caller.answered for caller in callers]
    await asyncio.sleep(seconds)
    end = perf_counter() + PATIENCE
    while any(c.answered == b and not c.closed.done() for c, b in zip(callers, before, strict=True)) and perf_counter() < end:
        await asyncio.sleep(_TICK)


def _progress(tally: Tally, callers: list[_Caller]) -> tuple[float, int, int]:
    return perf_counter(), tally.right, tally.chunks + sum(caller.under_way for caller in callers)


async def _close(callers: list[_Caller]) -> None:
    for caller in callers:
        caller.stopping = True
    if callers:
        await asyncio.wait([caller.closed for caller in callers], timeout=PATIENCE)

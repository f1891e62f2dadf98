"""The callers: keep-alive connections that send a request and check its answer, as fast as answers come or so many a second."""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter_ns
from typing import Any, cast

import httptools

from bench import answers
from bench.meter import Meter, Reading

#: Seconds that any single answer may take before the callers give up on it.
PATIENCE = 60.0
#: Seconds of load before a window opens; less before one that is shorter.
WARM_UP = 0.3
#: Connections that a load at a fixed rate may come to need.
MOST_OPEN = 256
#: Connections that are opened at the same moment.
_AT_ONCE = 32
_TICK = 0.01


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent where, by how many at once."""

    host: str
    port: int
    #: Heads and bodies, as they go on the wire; they take turns.
    requests: Sequence[bytes]
    #: What is wrong with an answer (status, body), "" for nothing.
    wrong: Callable[[int, bytes], str]
    connections: int
    #: Words of a stream; 0 for an answer in one piece.
    chunks: int = 0
    #: Seconds over which the connections start, so that streams do not move in step.
    ramp: float = 0.0
    #: Requests a second, whatever the answers do; 0: the next one when an answer is there.
    rate: float = 0.0


@dataclass(slots=True)
class Tally:
    """What all callers of a load have seen. Times in nanoseconds, since the last `restart`."""

    #: Right answers from the first to the last, outside the window too.
    right: int = 0
    #: Everything else, by what was wrong with it.
    wrong: Counter[str] = field(default_factory=Counter)
    #: Words of streams that are over.
    chunks: int = 0
    #: From sending to the whole answer.
    latencies: list[int] = field(default_factory=list)
    #: From sending to the first word of a stream.
    firsts: list[int] = field(default_factory=list)
    #: Between two arrivals of words within a stream.
    gaps: list[int] = field(default_factory=list)
    #: From the engine to the caller, of the oldest word of each arrival.
    lags: list[int] = field(default_factory=list)

    def restart(self) -> None:
        self.latencies, self.firsts, self.gaps, self.lags = [], [], [], []


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two moments, and whether all answers around it were right. Times in nanoseconds."""

    seconds: float
    #: Right answers that ended within it, and words that arrived within it.
    answers: int
    chunks: int
    latencies: list[int]
    firsts: list[int]
    gaps: list[int]
    lags: list[int]
    before: Reading
    after: Reading
    #: Of the whole run, from the first to the last answer.
    right: int
    wrong: dict[str, int]


class _Caller(asyncio.Protocol):
    """One connection and the one request that is under way on it."""

    def __init__(self, load: Load, tally: Tally, requests: Iterator[bytes], then: Callable[["_Caller"], None]) -> None:
        self._load = load
        self._tally = tally
        self._requests = requests
        #: Called after a right answer.
        self._then = then
        self._transport: asyncio.Transport
        #: Body of the answer so far.
        self._parts: list[bytes] = []
        #: What the parser calls with each part of a body; a method of ours would cost more than all else that is done with it.
        self.on_body = self._parts.append
        self._parser = httptools.HttpResponseParser(self)
        #: An answer is awaited.
        self._is_waiting = False
        #: When the request left, and when a word came last; 0 before that.
        self._sent = self._heard = 0
        #: Right answers.
        self.answered = 0
        #: Done when the connection is closed, by whomever.
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_waiting:
            self._tally.wrong["connection lost"] += 1
        self._is_waiting = False
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._load.chunks:
            self._clock(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("not HTTP")

    def _clock(self, data: bytes) -> None:
        """Notes when words came. A peer may have taken the moments out at which they left."""
        left = answers.left_at(data)
        if left is None and b"data: {" not in data:
            return
        now = perf_counter_ns()
        if left is not None:
            self._tally.lags.append(now - left)
        if self._heard:
            self._tally.gaps.append(now - self._heard)
        else:
            self._tally.firsts.append(now - self._sent)
        self._heard = now

    def _fail(self, what: str) -> None:
        self._tally.wrong[what] += 1
        self._is_waiting = False
        self._transport.abort()

    # -- what the parser calls -------------------------------------------------------------------------------------

    def on_message_complete(self) -> None:
        if not self._is_waiting:
            self._fail("an answer to nothing")
            return
        self._tally.latencies.append(perf_counter_ns() - self._sent)
        if wrong := self._load.wrong(self._parser.get_status_code(), b"".join(self._parts)):
            self._fail(wrong)
            return
        self._is_waiting = False
        self._parts.clear()
        self._tally.right += 1
        self._tally.chunks += self._load.chunks
        self.answered += 1
        self._then(self)

    # -- what the run calls ----------------------------------------------------------------------------------------

    def send(self) -> None:
        self._is_waiting = True
        self._heard = 0
        self._sent = perf_counter_ns()
        self._transport.write(next(self._requests))

    def close(self) -> None:
        self._transport.close()

    @property
    def is_waiting(self) -> bool:
        return self._is_waiting

    @property
    def under_way(self) -> int:
        """Words of the stream that is under way."""
        return answers.count(b"".join(self._parts), self._load.chunks) if self._load.chunks and self._is_waiting else 0

    def give_up(self) -> None:
        if not self.closed.done() and self._is_waiting:
            self._fail(f"no answer within {PATIENCE:g} s")


class _Run:
    """One load, from its first connection to its last."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = cycle(load.requests)
        self.tally = Tally()
        #: All that were ever opened.
        self.callers: list[_Caller] = []
        #: Those that wait for their turn, when there is a fixed rate.
        self._idle: list[_Caller] = []
        #: Once true, the answers under way are the last.
        self._is_stopping = False

    def _answered(self, caller: _Caller) -> None:
        if self._is_stopping:
            caller.close()
        elif self._load.rate:
            self._idle.append(caller)
        else:
            caller.send()

    async def _connect(self) -> _Caller:
        loop = asyncio.get_running_loop()
        load = self._load
        _, caller = await loop.create_connection(lambda: _Caller(load, self.tally, self._requests, self._answered), load.host, load.port)
        self.callers.append(caller)
        return caller

    async def open(self) -> None:
        """All connections are there when this returns; without a rate each has sent its first request."""
        pause = self._load.ramp / self._load.connections
        while (missing := self._load.connections - len(self.callers)) > 0:
            for caller in await asyncio.gather(*(self._connect() for _ in range(1 if pause else min(missing, _AT_ONCE)))):
                self._answered(caller)
            if pause:
                await asyncio.sleep(pause)

    async def pace(self) -> None:
        """Sends a request whenever one is due, until `stop`."""
        loop = asyncio.get_running_loop()
        begun, number = loop.time(), 0
        while not self._is_stopping:
            number += 1
            await asyncio.sleep(begun + number / self._load.rate - loop.time())
            while self._idle and self._idle[-1].closed.done():
                self._idle.pop()
            if self._idle:
                self._idle.pop().send()
            elif len(self.callers) < MOST_OPEN:
                (await self._connect()).send()
            else:
                self.tally.wrong["too many under way"] += 1

    async def all_answer(self, seconds: float) -> None:
        """Waits so long, and then until every caller that still can has had another answer; at a fixed rate, until any has."""
        before: list[Any] = [caller.answered for caller in self.callers]
        await asyncio.sleep(seconds)
        end = perf_counter_ns() + int(PATIENCE * 1e9)
        judge = all if self._load.rate else any

        def is_late() -> bool:
            return judge(c.answered == b and not c.closed.done() for c, b in zip(self.callers, before, strict=False))

        while is_late() and perf_counter_ns() < end:
            await asyncio.sleep(_TICK)

    async def all_sent(self) -> None:
        """Waits until each of the requests was answered once, so that what a server does for a new one is over; no longer than for any
        single answer when nothing comes."""
        right, end = -1, 0
        while self.tally.right < len(self._load.requests) and (self.tally.right > right or perf_counter_ns() < end):
            if self.tally.right > right:
                right, end = self.tally.right, perf_counter_ns() + int(PATIENCE * 1e9)
            await asyncio.sleep(_TICK)

    def progress(self) -> tuple[float, int, int]:
        words = self.tally.chunks + sum(caller.under_way for caller in self.callers)
        return perf_counter_ns() / 1e9, self.tally.right, words

    def stop(self) -> None:
        """What is under way is the last."""
        self._is_stopping = True

    async def close(self) -> None:
        """Lets what is under way end. Call `stop` before."""
        for caller in self.callers:
            if not caller.is_waiting:
                caller.close()
        if self.callers:
            await asyncio.wait([caller.closed for caller in self.callers], timeout=PATIENCE)

    def give_up(self) -> None:
        for caller in self.callers:
            caller.give_up()


async def run(load: Load, meter: Meter, seconds: float) -> Window:
    """Opens the connections, warms up until each request was answered once, measures for `seconds` or until every caller had an answer,
    lets what is under way end.

    Never raises for what the other side does: that is counted in the window's `wrong`. Raises OSError when nobody listens.
    """
    this = _Run(load)
    tally = this.tally
    pacing: asyncio.Task[None] | None = None
    gc.collect()
    gc.disable()  # no pauses of our own in the latencies; a run makes no garbage that needs it but a cycle a connection
    try:
        await this.open()
        pacing = asyncio.create_task(this.pace()) if load.rate else None
        await this.all_answer(min(WARM_UP, seconds))
        await this.all_sent()
        tally.restart()
        before, first = meter.read(), this.progress()
        await this.all_answer(seconds)
        after, last = meter.read(), this.progress()
        seen = tally.latencies, tally.firsts, tally.gaps, tally.lags
        tally.restart()
        this.stop()
        if pacing is not None:
            await pacing
        await this.close()
    finally:
        gc.enable()
        this.stop()
        this.give_up()
    spent, right, chunks = (b - a for a, b in zip(first, last, strict=True))
    return Window(spent, int(right), int(chunks), *seen, before, after, tally.right, dict(tally.wrong))

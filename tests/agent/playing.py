"""Raw engines: FAKES that play byte sequences, so that anything HTTP allows or forbids can be said."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from mindgw_agent.engines.reply import Reply

Play = Callable[["Caller", int], Awaitable[None]]


class Caller:
    """One connection as a FAKE engine sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        #: Heads and bodies that came.
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def request(self) -> bytes:
        """Reads one; gives its body."""
        head = await self.head()
        lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        self.bodies.append(await self.reader.readexactly(lengths[0] if lengths else 0))
        return self.bodies[-1]

    async def head(self) -> bytes:
        self.heads.append(await self.reader.readuntil(b"\r\n\r\n"))
        return self.heads[-1]

    async def say(self, *pieces: bytes) -> None:
        """Each piece is a read of its own at the other end, as far as a socket allows."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)


class Raw:
    """A FAKE engine: `plays` are played one connection after the other, the last one for all that follow."""

    def __init__(self, plays: Sequence[Play]) -> None:
        self._plays = plays
        self.callers: list[Caller] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        caller = Caller(reader, writer)
        number = len(self.callers)
        self.callers.append(caller)
        try:
            await self._plays[min(number, len(self._plays) - 1)](caller, number)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def stop(self) -> None:
        """Nobody is played to any more."""
        for caller in self.callers:
            caller.writer.transport.abort()
        while self._tasks:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def raw_engine(*plays: Play, context: ssl.SSLContext | None = None) -> AsyncIterator[Raw]:
    raw = Raw(plays)
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=context)
    raw.url = f"http{'s' if context else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        await raw.stop()


def answers(*pieces: bytes, close: bool = True) -> Play:
    """Reads a request, says these pieces, and closes; without `close` it does so again and again."""

    async def play(caller: Caller, number: int) -> None:
        while True:
            await caller.request()
            await caller.say(*pieces)
            if close:
                return

    return play


class FakeLine:
    """A FAKE transport that keeps what is written to it and never writes anything anywhere."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False
        self.paused = False
        #: Bytes that are said to wait.
        self.waiting = 0

    def write(self, data: bytes) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int) -> None:
        """It has no limits."""


async def whole(reply: Reply, limit: int = 1_000_000) -> tuple[int, str, bytes]:
    """Status, content type and body of an answer."""
    try:
        async with asyncio.timeout(10):
            await reply.begun()
            return reply.status, reply.content_type, await reply.read(limit)
    finally:
        reply.end()

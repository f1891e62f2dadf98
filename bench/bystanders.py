"""Those who are there while others are measured: streams that are open and silent, and readers that are slow."""

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from types import TracebackType
from typing import cast

import httptools

from bench import answers

#: Streams that begin at the same moment, and seconds for one to begin.
_AT_ONCE, _BEGINNING = 64, 60.0
#: A slow reader takes so many bytes a second, in so many steps; what the kernel holds for it is kept small.
PACE, STEPS, ROOM = 1024, 10, 4096
#: Callers of one machine come from several of its addresses, as one address has few ports and may have few connections.
_ADDRESSES = 64


class _Held(asyncio.Protocol):
    """A stream that has begun and says nothing more."""

    def __init__(self, request: bytes, lost: "Counter[str]") -> None:
        self._request = request
        self._lost = lost
        self._transport: asyncio.Transport
        self._data = b""
        #: Done when its first word is there.
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.began.done():
            return  # comments that keep it open
        self._data += data
        if b" 200 " not in self._data[:16]:
            self._transport.abort()
        elif b"data: " in self._data:
            self.began.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost["a stream that was held was lost"] += 1
        if not self.began.done():
            self.began.set_exception(ConnectionError(f"a stream did not begin: {bytes(self._data[:300])!r}"))

    def abort(self) -> None:
        self._transport.abort()


class Held:
    """So many open streams while the context lasts. Raises ConnectionError or TimeoutError when one does not begin."""

    def __init__(self, host: str, port: int, request: bytes, size: int) -> None:
        self._where = host, port
        self._request = request
        self._size = size
        self._streams: list[_Held] = []
        #: What went wrong while they were to stay open.
        self.wrong: Counter[str] = Counter()

    async def __aenter__(self) -> "Held":
        for first in range(0, self._size, _AT_ONCE):
            await asyncio.gather(*(self._begin(number) for number in range(first, min(self._size, first + _AT_ONCE))))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.wrong = Counter(self.wrong)  # what is lost from here on is lost to us
        for stream in self._streams:
            stream.abort()

    async def _begin(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        ours = f"127.0.0.{1 + number % _ADDRESSES}", 0
        async with asyncio.timeout(_BEGINNING):
            _, stream = await loop.create_connection(lambda: _Held(self._request, self.wrong), *self._where, local_addr=ours)
            self._streams.append(stream)
            await stream.began


class SlowReaders:
    """So many readers of long streams, each with a kilobyte a second, while the context lasts."""

    def __init__(self, host: str, port: int, requests: Sequence[bytes], size: int, chunks: int) -> None:
        self._where = host, port
        self._requests = cycle(requests)
        self._size = size
        #: Words of their streams, far more than they ever read.
        self._chunks = chunks
        #: Socket -> what was read of it.
        self._open: dict[socket.socket, bytearray] = {}
        self._reading: asyncio.Task[None] | None = None
        #: What was wrong with what they read; complete once the context is left.
        self.wrong: Counter[str] = Counter()

    async def __aenter__(self) -> "SlowReaders":
        for _ in range(self._size):
            await self._begin()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        for reader, data in self._open.items():
            reader.close()
            if wrong := _wrong(bytes(data), self._chunks):
                self.wrong[f"a slow reader: {wrong}"] += 1

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        reader = socket.socket()
        reader.setblocking(False)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        self._open[reader] = bytearray()
        await loop.sock_connect(reader, self._where)
        await loop.sock_sendall(reader, next(self._requests))

    async def _read(self) -> None:
        """A step is a part of the readers, so that not all of them read in the same moment."""
        step = 0
        while True:
            await asyncio.sleep(1 / STEPS)
            for reader in list(self._open)[step % STEPS :: STEPS]:
                self._take(reader)
            step += 1

    def _take(self, reader: socket.socket) -> None:
        try:
            data = reader.recv(PACE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._open[reader] += data
        else:
            self.wrong["a slow reader: connection lost"] += 1
            del self._open[reader]
            reader.close()


class _Answer:
    """As much of an answer as there is."""

    def __init__(self) -> None:
        self.body = b""

    def on_body(self, data: bytes) -> None:
        self.body += data


def _wrong(data: bytes, chunks: int) -> str:
    """What is wrong with the beginning of an answer, "" for nothing."""
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    try:
        parser.feed_data(data)
    except httptools.HttpParserError:
        return "not HTTP"
    return answers.wrong_beginning(parser.get_status_code(), answer.body, chunks) if answer.body else "nothing came"

"""A network that misbehaves: a TCP proxy between an agent and its server, or between an agent and its engine, that can be told how.

It carries bytes in their order, by way of `Way`, one for each direction: late, unevenly late, slowly, not at all for a while, or up to some
byte. Of connections that are open it can make what networks make of them: reset ones, closed ones, and half-open ones, of which each end
believes that the other is silent, for nothing arrives any more, not even an end. It runs in a loop of its own thread (`loop_aside`); all
that tests call may be called from any thread, and has happened when it returns.
"""

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

#: Bytes that are read at once, and pieces that may be on their way in one direction.
PIECE, FLYING = 64 * 1024, 64
#: Seconds that anything here may take.
PATIENCE = 30.0
#: `SO_LINGER` of a socket whose end is a reset.
_AT_ONCE = struct.pack("ii", 1, 0)


class Way:
    """What becomes of bytes in one direction, of all connections."""

    def __init__(self) -> None:
        #: Seconds that each piece takes, and up to how many more.
        self.delay = self.jitter = 0.0
        #: Bytes a second; 0: any number.
        self.rate = 0
        #: Bytes that still pass before the connection that would carry the next is cut; None: any number.
        self.left: int | None = None
        #: Bytes that have passed.
        self.carried = 0


class _Side:
    """One end of a connection, as the proxy sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.writer.transport.abort()

    def end(self) -> None:
        """Says that nothing more comes, once."""
        if not self.writer.transport.is_closing():
            self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()


class _Line:
    """One connection through the proxy."""

    def __init__(self, proxy: "Proxy", client: _Side, server: _Side) -> None:
        self._proxy = proxy
        self.client, self.server = client, server
        #: Nothing arrives any more at either end: not even an end, or after one.
        self.is_dead = self.is_cut = False

    def cut(self) -> None:
        """An end at both ends. What they say now is read and dropped: closing a socket before would make a reset of it."""
        self.is_cut = True
        self.client.end()
        self.server.end()

    async def carry(self) -> None:
        """Until both ends are done, or one broke."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._one_way(self.client, self.server, self._proxy.up))
            both.create_task(self._one_way(self.server, self.client, self._proxy.down))

    async def _one_way(self, source: _Side, sink: _Side, way: Way) -> None:
        """Each piece has a moment at which it is due, so that a delay is no limit of what passes in a second."""
        flying: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(FLYING)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._depart(flying, source, way))
            both.create_task(self._arrive(flying, sink, way))

    async def _depart(self, flying: "asyncio.Queue[tuple[float, bytes]]", source: _Side, way: Way) -> None:
        now, due = asyncio.get_running_loop().time, 0.0
        while True:
            try:
                data = await source.reader.read(PIECE)
            except ConnectionError:
                await self._proxy.unless_dead(self)
                raise
            due = max(due, now() + way.delay + self._proxy.rng.random() * way.jitter)
            await flying.put((due, data))
            if not data:
                return

    async def _arrive(self, flying: "asyncio.Queue[tuple[float, bytes]]", sink: _Side, way: Way) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, data = await flying.get()
            if (early := due - now()) > 0:
                await asyncio.sleep(early)  # what the test asked for
            await self._proxy.moving.wait()
            if data and (self.is_dead or self.is_cut):
                continue
            await self._proxy.unless_dead(self)
            if not data:
                sink.end()
                return
            await self._pass(data, sink, way)

    async def _pass(self, data: bytes, sink: _Side, way: Way) -> None:
        cut = way.left is not None and len(data) > way.left
        if way.left is not None:
            data, way.left = data[: way.left], max(0, way.left - len(data))
        if way.rate:
            await asyncio.sleep(len(data) / way.rate)  # as above
        sink.writer.write(data)
        way.carried += len(data)
        await sink.writer.drain()
        if cut:
            self.cut()


class Proxy:
    """Made by `chaos_proxy`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, seed: int) -> None:
        self._loop = loop
        self.rng = random.Random(seed)
        #: Port of whoever is behind it.
        self._behind = port
        #: From who connects, and to them.
        self.up, self.down = Way(), Way()
        #: Clear: bytes stop where they are, and sockets stay.
        self.moving = asyncio.Event()
        #: New connections are accepted and lead nowhere.
        self._is_deaf = False
        # bounded: by whoever connects
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Connections so far.
        self.accepted = 0
        self.port = 0
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """Connections that are carried now, dead ones too."""
        return len(self._lines)

    # -- what tests call -------------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Bytes stop; sockets stay."""
        self._do(self.moving.clear)

    def go_on(self) -> None:
        """They move again, those that were held first."""
        self._do(self.moving.set)

    def half_open(self, *, future: bool = False) -> None:
        """Nothing more arrives on the connections that are open now, neither bytes nor an end. `future`: new ones lead nowhere, too."""

        def kill() -> None:
            self._is_deaf = future
            for line in self._lines:
                line.is_dead = True

        self._do(kill)

    def heal(self) -> None:
        """New connections are carried again; those that are dead stay so."""
        self._do(lambda: setattr(self, "_is_deaf", False))

    def reset(self) -> None:
        """Both ends of each connection hear a reset."""
        self._each(lambda line: (line.client.reset(), line.server.reset()))

    def cut(self) -> None:
        """Both ends of each connection hear its end, in the middle of whatever."""
        self._each(_Line.cut)

    def close(self) -> None:
        """Nobody is carried any more."""
        self._wait(self._close)

    def listen(self) -> None:
        self._wait(self._listen)

    # -- in the loop -----------------------------------------------------------------------------------------------

    async def unless_dead(self, line: _Line) -> None:
        """Returns at once, or never: of a dead connection nobody hears the end."""
        if line.is_dead:
            await asyncio.Event().wait()

    async def _listen(self) -> None:
        self.moving.set()
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=PIECE)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._serve(_Side(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: _Side) -> None:
        try:
            await self._connect(client)
        except* OSError:
            pass  # whoever breaks, or is not there, is what tests ask for
        finally:
            client.close()

    async def _connect(self, client: _Side) -> None:
        if self._is_deaf:
            await asyncio.Event().wait()
        server = _Side(*await asyncio.open_connection("127.0.0.1", self._behind, limit=PIECE))
        line = _Line(self, client, server)
        self._lines.add(line)
        try:
            await line.carry()
        finally:
            self._lines.discard(line)
            server.close()

    async def _close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _each(self, act: Callable[[_Line], object]) -> None:
        def all_of_them() -> None:
            for line in list(self._lines):
                act(line)

        self._do(all_of_them)

    def _do(self, act: Callable[[], object]) -> None:
        async def done() -> None:
            act()

        self._wait(done)

    def _wait(self, work: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE)


@contextmanager
def chaos_proxy(loop: asyncio.AbstractEventLoop, port: int, seed: int = 1) -> Iterator[Proxy]:
    """A proxy in front of a port of this machine, in a loop that runs in another thread."""
    made = Proxy(loop, port, seed)
    made.listen()
    try:
        yield made
    finally:
        made.close()

"""The WebSocket to the server, on both event loops, against the real thing and against raw bytes."""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import ssl
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import trustme
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidMessage, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode

from mindgw_agent import address, identity
from mindgw_agent.websocket import WebSocket, dial
from tests.agent.playing import Caller, raw_engine

MOST = 100_000
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def on(loop: Callable[[], asyncio.AbstractEventLoop], check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(20):
            await check()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(within())


class Ear:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes | str] = []
        self.pongs: list[float] = []
        self.rooms = 0
        self.news = asyncio.Event()

    def message(self, message: bytes | str) -> None:
        self.heard.append(message)
        self.news.set()

    def ponged(self, seconds: float) -> None:
        self.pongs.append(seconds)
        self.news.set()

    def room(self) -> None:
        self.rooms += 1
        self.news.set()

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not true():
                self.news.clear()
                await self.news.wait()


async def reach(port: int, *, scheme: str = "http", context: ssl.SSLContext | None = None, close: float = 5.0) -> WebSocket:
    where = address.parse(f"{scheme}://127.0.0.1:{port}")
    return await dial(where, context, "p.1", "agent/1", most=MOST, timeouts=(5.0, close))


def port_of(server: Any) -> int:
    return int(server.sockets[0].getsockname()[1])


@LOOPS
def test_messages_go_both_ways_and_pings_are_answered(loop) -> None:
    async def check() -> None:
        seen: list[Any] = []

        async def echo(socket: ServerConnection) -> None:
            assert socket.request is not None
            seen.append((socket.subprotocol, socket.request.headers["User-Agent"], socket.request.path))
            await socket.send(b"early")
            async for message in socket:
                seen.append(len(message))
                await socket.send(message)
                await socket.ping()

        async with serve(echo, "127.0.0.1", 0, subprotocols=["p.1"], compression=None) as server:  # type: ignore[list-item]
            socket, ear = await reach(port_of(server)), Ear()
            assert socket.subprotocol == "p.1"
            await asyncio.sleep(0.05)
            socket.listen(ear)
            socket.ping()
            for size in (1, 200, MOST):
                socket.send(b"x" * size)
            await ear.until(lambda: len(ear.heard) == 4 and ear.pongs)
            assert [len(message) for message in ear.heard] == [5, 1, 200, MOST]
            assert 0 <= ear.pongs[0] < 10
            socket.close()
            assert await socket.lost is None
            assert socket.why == ""
            socket.send(b"too late")
            socket.ping()
            socket.close()
            assert seen == [("p.1", "agent/1", "/agent/v1/link"), 1, 200, MOST]

    on(loop, check)


@LOOPS
def test_over_tls_with_a_pinned_authority(loop) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def check() -> None:
        async def echo(socket: ServerConnection) -> None:
            async for message in socket:
                await socket.send(message)

        async with serve(echo, "127.0.0.1", 0, ssl=context, subprotocols=["p.1"], compression=None) as server:  # type: ignore[list-item]
            with pytest.raises(ssl.SSLCertVerificationError):
                await reach(port_of(server), scheme="https", context=identity.pinned_context(other.cert_pem.bytes()))
            socket = await reach(port_of(server), scheme="https", context=identity.pinned_context(authority.cert_pem.bytes()))
            ear = Ear()
            socket.listen(ear)
            socket.send(b"y" * MOST)
            await ear.until(lambda: ear.heard)
            socket.close()
            await socket.lost
            assert (ear.heard, socket.why) == ([b"y" * MOST], "")

    on(loop, check)


@LOOPS
def test_a_reader_that_stalls_fills_the_transport_and_room_is_told(loop) -> None:
    async def check() -> None:
        go_on = asyncio.Event()
        read = 0

        async def stall(socket: ServerConnection) -> None:
            nonlocal read
            await go_on.wait()
            async for message in socket:
                read += len(message)

        async with serve(stall, "127.0.0.1", 0, subprotocols=["p.1"], compression=None, max_queue=1) as server:  # type: ignore[list-item]
            socket, ear = await reach(port_of(server)), Ear()
            socket.listen(ear)
            sent = 0
            while not socket.is_full:
                socket.send(bytes(MOST))
                sent += 1
                await asyncio.sleep(0)
                assert sent < 1000
            go_on.set()
            await ear.until(lambda: ear.rooms)
            socket.close()
            await socket.lost
            assert read == sent * MOST

    on(loop, check)


@LOOPS
def test_a_message_over_the_limit_ends_the_connection(loop) -> None:
    async def check() -> None:
        async def flood(socket: ServerConnection) -> None:
            with contextlib.suppress(WebSocketException):
                await socket.send(bytes(MOST + 1))
                await socket.wait_closed()

        async with serve(flood, "127.0.0.1", 0, subprotocols=["p.1"], compression=None) as server:  # type: ignore[list-item]
            socket, ear = await reach(port_of(server)), Ear()
            socket.listen(ear)
            await socket.lost
            assert ear.heard == []
            assert "1009" in socket.why

    on(loop, check)


# -- raw servers -------------------------------------------------------------------------------------------------------

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def accepted(head: bytes) -> bytes:
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Protocol: p.1"]
    return b"\r\n".join([*lines, b"Sec-WebSocket-Accept: " + accept, b"", b""])


@contextlib.asynccontextmanager
async def raw_server(play: Play) -> Any:
    """A FAKE server that plays bytes."""

    async def handle(caller: Caller, number: int) -> None:
        await play(caller.reader, caller.writer)

    async with raw_engine(handle) as raw:
        yield int(raw.url.rpartition(":")[2])


def says(*parts: bytes, wait: bool = True) -> Play:
    """Takes the upgrade, with the first part in the same write, says the others, and waits for the other end."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = accepted(await reader.readuntil(b"\r\n\r\n"))
        for part in (answer + parts[0], *parts[1:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)
        if wait:
            await reader.read()

    return play


def frame(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=False)


@given(st.lists(st.tuples(st.booleans(), st.lists(st.binary(max_size=300), min_size=1, max_size=4)), max_size=5), st.data())
def test_messages_are_the_same_however_they_are_framed_and_cut(messages, data) -> None:
    async def check() -> None:
        socket, ear = WebSocket(address.parse("http://127.0.0.1:1"), ["p.1"], "a", MOST, 1.0), Ear()
        line = Line()
        socket.connection_made(line)  # type: ignore[arg-type]
        stream = accepted(line.written)
        expected: list[bytes | str] = []
        for is_text, parts in messages:
            parts = [part.hex().encode() if is_text else part for part in parts]
            first = Opcode.TEXT if is_text else Opcode.BINARY
            for number, part in enumerate(parts):
                stream += frame(Opcode.CONT if number else first, part, number == len(parts) - 1)
                stream += frame(Opcode.PING, b"?") if number == 1 else b""
            whole = b"".join(parts)
            expected.append(whole.decode() if is_text else whole)
        cuts = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=8))})
        half = len(cuts) // 2
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            if number == half:
                socket.listen(ear)
            socket.data_received(stream[start:stop])
        if len(cuts) - 1 <= half:
            socket.listen(ear)
        assert ear.heard == expected
        socket.connection_lost(None)
        assert await socket.lost is None

    asyncio.run(check())


class Line:
    """A FAKE transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, high: int) -> None: ...


async def test_parts_of_a_message_cost_no_more_than_what_they_hold() -> None:
    socket, ear, line = WebSocket(address.parse("http://127.0.0.1:1"), ["p.1"], "a", MOST, 1.0), Ear(), Line()
    socket.connection_made(line)  # type: ignore[arg-type]
    socket.data_received(accepted(line.written) + frame(Opcode.BINARY, b"a", fin=False))
    socket.listen(ear)
    tracemalloc.start()
    socket.data_received(frame(Opcode.CONT, b"", fin=False) * 10_000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 60_000
    socket.data_received(frame(Opcode.CONT, b"bc", fin=False) * 10 + frame(Opcode.CONT, b"d"))
    assert ear.heard == [b"a" + b"bc" * 10 + b"d"]
    socket.connection_lost(None)
    assert await socket.lost is None


@pytest.mark.parametrize(
    ("garbage", "code"),
    [(b"\xff" * 20, "1002"), (frame(Opcode.CONT, b"x"), "1002"), (b"\x82\x85abcdefghi", "1002"), (b"\xc2\x00", "1002")],
)
async def test_garbage_after_the_upgrade_ends_the_connection(garbage: bytes, code: str) -> None:
    async with raw_server(says(b"", garbage)) as port:
        socket, ear = await reach(port, close=0.05), Ear()
        socket.listen(ear)
        async with asyncio.timeout(10):
            await socket.lost
        assert (ear.heard, code in socket.why) == ([], True)


async def test_a_server_that_just_goes_away_is_told_from_one_that_says_goodbye() -> None:
    async with raw_server(says(frame(Opcode.BINARY, b"with the upgrade"), wait=False)) as port:
        socket, ear = await reach(port), Ear()
        socket.listen(ear)
        await socket.lost
        assert ear.heard == [b"with the upgrade"]
        assert socket.why
    async with raw_server(says(frame(Opcode.CLOSE, b"\x03\xe8bye"))) as port:
        socket = await reach(port, close=0.05)
        socket.listen(Ear())
        await socket.lost
        assert socket.why == ""


async def test_an_end_that_the_server_does_not_answer_is_waited_for_no_longer() -> None:
    async with raw_server(says(b"")) as port:
        socket = await reach(port, close=0.05)
        socket.close()
        async with asyncio.timeout(10):
            await socket.lost


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", InvalidMessage),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", InvalidStatus),
        (b"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", InvalidStatus),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", WebSocketException),
        (b"SSH-2.0-x\r\n", InvalidMessage),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000, InvalidMessage),
        (b"HTTP/1.1 200 " + b"x" * 100_000, WebSocketException),
    ],
)
async def test_what_is_no_such_server_is_refused(answer: bytes, kind: type[Exception]) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with raw_server(play) as port:
        with pytest.raises(kind):
            await reach(port)


async def test_an_upgrade_that_never_comes_has_an_end() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(play) as port:
        with pytest.raises(TimeoutError):
            await dial(address.parse(f"http://127.0.0.1:{port}"), None, "p.1", "a", most=MOST, timeouts=(0.05, 1.0))


async def test_a_defect_in_the_listener_ends_the_connection_and_is_given() -> None:
    class Broken(Ear):
        def message(self, message: bytes | str) -> None:
            raise KeyError("a defect")

    async with raw_server(says(b"", frame(Opcode.BINARY, b"x"))) as port:
        socket = await reach(port)
        socket.listen(Broken())
        assert isinstance(await socket.lost, KeyError)

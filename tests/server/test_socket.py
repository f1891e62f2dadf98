"""The WebSocket while it carries: what is taken out by hand is what `websockets` would have said of it, however the bytes are cut."""

import asyncio
import tracemalloc
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from mindgw.server.socket import WebSocket

MOST = 70_000


class Wire:
    """FAKE transport: keeps what is written; nobody takes it."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = False

    def get_extra_info(self, name: str) -> Any:
        return None

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, data: list[bytes]) -> None:
        self.written += b"".join(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        """Nothing comes but from the test."""

    def set_write_buffer_limits(self, high: int) -> None:
        """There is no limit."""

    def close(self) -> None:
        self.ended = True

    abort = close


class Ear:
    """Keeps what it hears; closes the socket at the word for that."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.heard: list[bytes | str] = []

    def message(self, message: bytes | str) -> None:
        self.heard.append(message)
        if message == b"goodbye!":
            self.socket.finish(1000)

    def room(self) -> None:
        """Never asked for."""

    def lost(self) -> None:
        """Nor this."""


async def nobody(scope: Any, receive: Any, send: Any) -> None:
    """Never called."""


CONFIG = uvicorn.Config(nobody, ws_max_size=MOST, ws_per_message_deflate=False, log_config=None)
CONFIG.load()
CLIENT = ClientProtocol(parse_uri("ws://x/"))
CLIENT.send_request(CLIENT.connect())
UPGRADE = b"".join(CLIENT.data_to_send())


def greeted(loop: asyncio.AbstractEventLoop) -> tuple[WebSocket, Wire]:
    socket, transport = WebSocket(CONFIG, ServerState(), {}, _loop=loop), Wire()
    socket.connection_made(transport)  # type: ignore[arg-type]
    socket.conn.receive_data(UPGRADE)
    (request,) = socket.conn.events_received()
    socket.conn.send_response(socket.conn.accept(request))  # type: ignore[arg-type]
    socket.conn.data_to_send()
    return socket, transport


def carried(loop: asyncio.AbstractEventLoop) -> tuple[WebSocket, Wire, Ear]:
    socket, transport = greeted(loop)
    ear = Ear(socket)
    socket.carry(ear)
    return socket, transport, ear


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


SIZES = st.sampled_from([0, 1, 5, 7, 8, 9, 125, 126, 127, 65_535, 65_536, MOST, MOST + 1])
FRAMES = st.one_of(
    st.builds(lambda size: Frame(Opcode.BINARY, b"x" * size).serialize(mask=True), SIZES),
    st.builds(
        lambda opcode, data, fin: Frame(opcode, data, fin).serialize(mask=True),
        st.sampled_from([Opcode.BINARY, Opcode.TEXT, Opcode.CONT]),
        st.sampled_from([b"", b"some words", b"\xff\xfe", b"goodbye!"]),
        st.booleans(),
    ),
    st.builds(lambda opcode: Frame(opcode, b"").serialize(mask=True), st.sampled_from([Opcode.PING, Opcode.PONG, Opcode.CLOSE])),
    st.sampled_from([Frame(Opcode.BINARY, b"no mask at all").serialize(mask=False), b"\xf2\x90" + bytes(30), b"\x83\x80\0\0\0\0"]),
    st.just(b"\x82\xff" + b"\xff" * 8 + b"abcd"),
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.tuples(st.integers(0, 8), st.integers(-3, 20)), max_size=8))
def test_what_is_taken_by_hand_is_what_the_parser_would_have_said(loop, frames, cuts):
    """Cut near the beginnings of frames, where it matters."""
    quick, slow = carried(loop), carried(loop)
    slow[0]._take_whole = lambda data, listener: 0  # type: ignore[method-assign]
    data = b"".join(frames)
    places = {sum(map(len, frames[:number])) + offset for number, offset in cuts}
    ends = [0, *sorted(place for place in places if 0 < place < len(data))]
    for start, stop in zip(ends, [*ends[1:], len(data)], strict=True):
        for socket, _, _ in (quick, slow):
            if piece := data[start:stop]:
                socket.data_received(piece)
    assert quick[2].heard == slow[2].heard
    assert (quick[1].written, quick[1].ended, quick[0].conn.state) == (slow[1].written, slow[1].ended, slow[0].conn.state)


def test_whole_messages_never_meet_the_parser(loop, monkeypatch):
    socket, _, ear = carried(loop)
    monkeypatch.setattr(socket.conn, "receive_data", lambda data: pytest.fail("the parser was asked"))
    for size in (8, 125, 126, 65_535, 65_536):
        socket.data_received(Frame(Opcode.BINARY, b"x" * size).serialize(mask=True) * 2)
    assert list(map(len, ear.heard)) == [8, 8, 125, 125, 126, 126, 65_535, 65_535, 65_536, 65_536]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
def test_what_leaves_is_framed_as_websockets_would(loop, size):
    socket, transport, _ = carried(loop)
    socket.say(b"x" * size)
    assert transport.written == Frame(Opcode.BINARY, b"x" * size).serialize(mask=False)
    socket.finish(1000)
    assert socket.conn.state is State.CLOSING
    before = transport.written
    socket.say(b"too late")
    assert transport.written == before


CLOSE = Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True)
#: What came before the server stopped.
BEFORE = {
    "nothing": [],
    "half a head": [UPGRADE[:-9]],
    "a line too long": [b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"x" * 9000],
    "no HTTP": [b"hello\r\n\r\n"],
    "a body": [UPGRADE[:-2] + b"content-length: 5\r\n\r\n"],
}


@pytest.mark.parametrize("before", BEFORE)
def test_a_socket_that_was_not_greeted_ends_when_the_server_stops(loop, before):
    socket, transport = WebSocket(CONFIG, ServerState(), {}, _loop=loop), Wire()
    socket.connection_made(transport)  # type: ignore[arg-type]
    for data in BEFORE[before]:
        socket.data_received(data)
    socket.shutdown()
    assert transport.ended


@pytest.mark.parametrize("last", [b"", CLOSE, Frame(Opcode.BINARY, b"x").serialize(mask=False)], ids=["well", "closing", "broken"])
def test_a_socket_that_carries_ends_when_the_server_stops(loop, last):
    socket, transport, _ = carried(loop)
    if last:
        socket.data_received(last)
    socket.shutdown()
    assert transport.ended


@pytest.mark.parametrize("head", ["a line too long", "no HTTP", "a body"])
def test_what_websockets_cannot_read_is_answered_or_closed(loop, head):
    socket, transport = WebSocket(CONFIG, ServerState(), {}, _loop=loop), Wire()
    socket.connection_made(transport)  # type: ignore[arg-type]
    (data,) = BEFORE[head]
    socket.data_received(data)
    assert transport.ended and socket.close_timer is not None
    socket.close_timer.cancel()


PING = Frame(Opcode.PING, b"p" * 125).serialize(mask=True)


@pytest.mark.parametrize("state", ["greeting", "carrying", "leaving"])
def test_pings_of_whoever_reads_nothing_are_not_answered(loop, state):
    if state == "greeting":
        socket, transport = greeted(loop)
    else:
        socket, transport, _ = carried(loop)
        if state == "leaving":
            socket.finish(1000)
    before = len(transport.written)
    socket.data_received(PING)
    assert len(transport.written) == before + 127
    socket.pause_writing()
    for _ in range(10):
        socket.data_received(PING * 100)
    assert len(transport.written) == before + 127
    socket.resume_writing()
    socket.data_received(PING)
    assert len(transport.written) == before + 2 * 127
    if socket.close_timer is not None:
        socket.close_timer.cancel()


def test_the_close_of_whoever_reads_nothing_is_answered(loop):
    socket, transport, _ = carried(loop)
    socket.pause_writing()
    socket.data_received(PING + CLOSE)
    assert transport.written == Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False) and transport.ended
    socket.close_timer.cancel()


def test_parts_of_a_message_cost_no_more_than_what_they_hold(loop):
    socket, _, ear = carried(loop)
    waiting, _ = greeted(loop)
    for one in (socket, waiting):
        one.data_received(Frame(Opcode.BINARY, b"ab", fin=False).serialize(mask=True))
        tracemalloc.start()
        one.data_received(Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 10_000)
        one.data_received(Frame(Opcode.CONT, b"cd", fin=False).serialize(mask=True) * 10_000)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 250_000  # each of so many parts by itself would take 40 bytes and more
    socket.data_received(Frame(Opcode.CONT, b"e").serialize(mask=True))
    waiting.data_received(Frame(Opcode.CONT, b"e").serialize(mask=True))
    whole = b"ab" + b"cd" * 10_000 + b"e"
    assert ear.heard == [whole]
    assert waiting.queue.get_nowait() == {"type": "websocket.receive", "bytes": whole}

"""The WebSocket that an agent dials: uvicorn's until its peer was greeted, then one whose messages pass in the transport's callbacks.

The greeting is plain ASGI: a coroutine that may ask the database. Whoever has greeted takes the socket out of the scope's extensions
and calls `carry`; from then on there is no task, no queue and no event loop turn between bytes and the listener.

`websockets` says what the bytes mean. Only a message that came whole in one frame, as almost all do, is taken out by hand, and one that
leaves is framed by hand: its general way costs as much as all that is done with the frames of the tunnel in it.
"""

from collections.abc import Iterable
from struct import Struct
from types import CodeType
from typing import Any, Final, Protocol, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import MAX_LINE_LENGTH
from websockets.protocol import State
from websockets.speedups import apply_mask
from websockets.streams import StreamReader

from mindgw import errors
from mindgw.server.guard import Guard, Watched
from mindgw.server.progress import taken

#: Name of the scope's extension that holds the socket.
EXTENSION: Final = "mindgw.socket"
#: Bytes that may wait in the transport before it is said to be full: two messages.
HIGH_WATER: Final = 512 * 1024
#: Seconds for the other side to agree to the end of a connection.
CLOSING = 2.0
#: Seconds in which an upgrade must be answered.
GREETING = 10.0
#: Seconds for which the other side may take nothing of what waits for it.
STALL = 30.0

_DATA: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})
#: First byte of a frame that is a whole binary message; of the second: that it is masked, and the size or how it is written.
_WHOLE, _MASKED, _SIZE, _SHORT, _LONG = 0x82, 0x80, 0x7F, 126, 127
_pack, _pack_short, _pack_long = Struct("!BB").pack, Struct("!BBH").pack, Struct("!BBQ").pack
_short, _long = Struct("!H").unpack_from, Struct("!Q").unpack_from
#: First byte of a pong.
_PONG: Final = b"\x8a"
#: Where the parser of `websockets` waits between two frames.
_BETWEEN: Final = StreamReader.at_eof.__code__


class Listener(Protocol):
    """Whoever speaks over a socket that carries."""

    def message(self, message: bytes | str) -> None:
        """A whole message; must not raise."""

    def room(self) -> None:
        """There is room again after `is_full`."""

    def lost(self) -> None:
        """The socket is gone; told once."""


class WebSocket(WebSocketsSansIOProtocol):
    """One connection. uvicorn's, less patient: whoever does not answer a close, or does not even read it, is gone soon all the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Address of who asks, when a proxy says so; "" for the one that has connected.
        self.asks = ""
        self.close_timeout = CLOSING
        #: Who hears of messages; None while a coroutine greets, and once the socket is gone.
        self._listener: Listener | None = None
        #: The transport takes no more now.
        self.is_full = False
        #: What has come of a message in several frames, and whether it is text. One piece: a list of small ones costs many times as much.
        # bounded: by `ws_max_size`
        self._partial = bytearray()
        self._is_text = False
        #: Who watches over it, None for nobody, and who it is counted as there.
        self._guard: Guard | None = None
        self._group = ""
        #: Since when the guard has seen no progress where there must be some, None while all is well; and how far it was then.
        self._since: float | None = None
        self._taken = 0

    # -- the greeting ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.asks:
            self.client = (self.asks, 0)

    def inherit(self, before: Watched, guard: Guard, group: str) -> None:
        """After the upgrade, in the place of whoever was `before` on this connection."""
        self._guard, self._group = guard, group
        guard.succeed(before, self)

    async def send(self, message: Any) -> None:
        """A whole answer in place of the upgrade is an end like others; uvicorn would report it as a defect."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True

    async def run_asgi(self) -> None:
        """Closing alone waits until the peer has taken what was written before."""
        extensions = cast(dict[str, Any], self.scope["extensions"])
        extensions[EXTENSION] = self
        await super().run_asgi()
        del extensions[EXTENSION]  # they hold each other
        self.loop.call_later(self.close_timeout, self.transport.abort)

    # -- whoever speaks over it ------------------------------------------------------------------------------------

    def carry(self, listener: Listener) -> None:
        """From now on messages go there, first those that came meanwhile. The coroutine receives nothing any more, and ends after
        `lost`."""
        self._listener = listener
        if self._guard is not None:
            self._guard.excuse(self, self._group)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        while not self.queue.empty():
            early = cast(dict[str, Any], self.queue.get_nowait())
            if early["type"] == "websocket.receive":
                listener.message(early["bytes"] if early.get("bytes") is not None else early["text"])
        if self.disconnected:
            self._listener = None
            listener.lost()
        elif self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def say(self, message: bytes) -> None:
        """One binary message; one that comes too late is dropped. Callers look at `is_full`."""
        if self.conn.state is not State.OPEN:
            return
        size = len(message)
        if size < _SHORT:
            head = _pack(_WHOLE, size)
        elif size < 2**16:
            head = _pack_short(_WHOLE, _SHORT, size)
        else:
            head = _pack_long(_WHOLE, _LONG, size)
        self.transport.write(head + message)

    def finish(self, code: int, reason: str = "") -> None:
        """Closes the WebSocket; `lost` follows, in `close_timeout` seconds at the latest."""
        if self.conn.state is State.OPEN:
            self.conn.send_close(CloseCode(code), reason)
            self._flush()

    def abort(self) -> None:
        """Gives the connection up at once."""
        self.transport.abort()

    # -- what the transport and the server call --------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        if listener is None:
            super().data_received(data)
            if not self.handshake_initiated and self.conn.handshake_exc is not None:
                self._flush()  # it was no upgrade; uvicorn would leave it there
            return
        conn = self.conn
        start = self._take_whole(data, listener)
        if start == len(data):
            return
        conn.receive_data(data[start:])
        for event in conn.events_received():
            if isinstance(event, Frame) and event.opcode in _DATA:
                self._part(event, listener)
        if conn.writes or conn.state is not State.OPEN:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._guard is not None:
            self._guard.leave(self, self._group)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.lost()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.is_full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self.is_full = False
        if self._listener is not None:
            self._listener.room()

    def shutdown(self) -> None:
        """The server stops. Whoever is not greeted, or is leaving already, hears nothing more; uvicorn would raise for some of them."""
        if not self.handshake_complete or self.conn.state is not State.OPEN:
            self.transport.abort()
            return
        if self._listener is None:
            super().shutdown()
            return
        self.finish(CloseCode.SERVICE_RESTART)
        self.transport.close()

    def handle_ping(self) -> None:
        """Pongs that whoever asks for them leaves unread are dropped: they would pile up without end."""
        if self.is_full:
            self.conn.data_to_send()
        else:
            super().handle_ping()

    def handle_cont(self, event: Frame) -> None:
        """A later part of a message to a coroutine: in one piece, as in `_part`."""
        frames = cast(list[bytes | bytearray], self.frames)
        if not isinstance(frames[0], bytearray):
            frames[0] = bytearray(frames[0])
        frames[0] += event.data
        if event.fin:
            frames[0] = bytes(frames[0])
            self.send_receive_event_to_app()

    def look(self, now: float) -> None:
        """Called by the guard now and then: gives up who is not answered in time, and who takes nothing of what waits for it."""
        if self.handshake_complete and not self.is_full and not self.transport.is_closing():
            self._since = None
            return
        before, self._taken = self._taken, taken(self.transport) if self.handshake_complete else 0
        if self._since is None or self._taken > before:
            self._since = now
        elif now - self._since >= (STALL if self.handshake_complete else GREETING):
            self.transport.abort()

    # -- bytes and frames ------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        for data in self.conn.data_to_send():
            if self.is_full and data[:1] == _PONG:
                continue  # as in `handle_ping`
            if data:
                self.transport.write(data)
            elif self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()
        if self.close_timer is None and self.conn.close_expected():
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def _take_whole(self, data: bytes, listener: Listener) -> int:
        """Hands on the messages at the beginning of `data` that are whole; returns where they end. 0 in the middle of anything."""
        conn, start, end = self.conn, 0, len(data)
        if conn.current_size is not None or _waits_in(conn.parser) is not _BETWEEN:
            return 0
        most = conn.max_message_size or 0
        while end - start > 13 and data[start] == _WHOLE and data[start + 1] & _MASKED and conn.state is State.OPEN:
            size, body = data[start + 1] & _SIZE, start + 6
            if size == _SHORT:
                size, body = _short(data, start + 2)[0], start + 8
            elif size == _LONG:
                size, body = _long(data, start + 2)[0], start + 14
            stop = body + size
            if size > most or stop > end:
                break
            listener.message(apply_mask(data[body:stop], data[body - 4 : body]))
            start = stop
        return start

    def _part(self, frame: Frame, listener: Listener) -> None:
        """A message, or a part of one: their size is bounded by `ws_max_size`, their order was checked."""
        if frame.opcode is Opcode.BINARY and frame.fin:
            listener.message(bytes(frame.data))
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._partial += frame.data
        if frame.fin:
            data, self._partial = bytes(self._partial), bytearray()
            listener.message(data.decode(errors="replace") if self._is_text else data)


def unfit(method: bytes, path: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> errors.MindGWError | None:
    """What is wrong with a request for an upgrade, given its lower-case headers, that `websockets` would not even read."""
    headers = list(headers)
    if max(len(b"GET  HTTP/1.1\r\n") + len(path), *(len(name) + len(value) + 4 for name, value in headers)) > MAX_LINE_LENGTH:
        return errors.HeadTooLarge()
    has_body = any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)
    if method != b"GET" or version != "1.1" or has_body or not path.isascii():
        return errors.BadRequest("An upgrade is a GET of HTTP/1.1 without a body.")
    return None


def _waits_in(parser: Any) -> CodeType:
    """Which of the parser's generators waits for more."""
    while (inner := parser.gi_yieldfrom) is not None:
        parser = inner
    return cast(CodeType, parser.gi_code)

"""The WebSocket to the server: `websockets` says what the bytes mean, the callbacks of the transport drive it. No task, no queue.

No redirect is followed; a server's certificate is checked before a byte of the upgrade is sent, through a proxy as well.
"""

import asyncio
import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosedOK
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from mindgw_agent import proxy
from mindgw_agent.address import Address

#: Bytes that may wait in the transport before it is said to be full: two messages.
HIGH_WATER: Final = 512 * 1024
NORMAL: Final = 1000

_DATA: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})


class Listener(Protocol):
    """Whoever speaks over the WebSocket. What these raise ends it, and `lost` gives it."""

    def message(self, message: bytes | str) -> None: ...
    def ponged(self, seconds: float) -> None:
        """The other end answered a `ping` after so long."""

    def room(self) -> None:
        """There is room again after `is_full`."""


class WebSocket(asyncio.Protocol):
    """One connection, from `dial` to `lost`."""

    def __init__(self, address: Address, subprotocols: Sequence[str], user_agent: str, most: int, close_timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._protocol = ClientProtocol(parse_uri(address.link), subprotocols=[Subprotocol(name) for name in subprotocols], max_size=most)
        self._user_agent = user_agent
        #: Seconds for the end of a connection.
        self._close_timeout = close_timeout
        #: Done when the upgrade is; gives what went wrong with it.
        self.upgraded: asyncio.Future[None] = self._loop.create_future()
        #: Done when the connection is gone; the exception that ended it, None for an end like any other.
        self.lost: asyncio.Future[Exception | None] = self._loop.create_future()
        #: None until `listen`: nothing is read meanwhile.
        self._listener: Listener | None = None
        #: Messages that came with the upgrade; bounded: by one read.
        self._early: list[bytes | str] = []
        #: What has come of a message in several frames, and whether it is text. One piece: a list of small ones costs many times as much.
        # bounded: by `most`
        self._partial = bytearray()
        self._is_text = False
        #: The transport takes no more now.
        self.is_full = False
        #: Mark of the last ping and the moment at which it left; None when it was answered.
        self._ping: tuple[bytes, float] | None = None
        #: Ends a connection whose other end does not.
        self._closing: asyncio.TimerHandle | None = None

    # -- whoever uses it -------------------------------------------------------------------------------------------

    @property
    def subprotocol(self) -> str | None:
        return self._protocol.subprotocol

    @property
    def why(self) -> str:
        """Why it is gone, for people; "" when both ends closed it in order."""
        error = self._protocol.close_exc
        return "" if isinstance(error, ConnectionClosedOK) else str(error)

    def listen(self, listener: Listener) -> None:
        """From now on messages go there."""
        self._listener = listener
        early, self._early = self._early, []
        for message in early:
            listener.message(message)
        self.resume()

    def send(self, message: bytes) -> None:
        """One binary message; one that comes too late is dropped. Callers look at `is_full`."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(message)
            self._flush()

    def ping(self) -> None:
        """Measure the round trip."""
        if self._protocol.state is State.OPEN:
            self._ping = secrets.token_bytes(4), self._loop.time()
            self._protocol.send_ping(self._ping[0])
            self._flush()

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say goodbye; `lost` follows."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode(code), reason)
            self._flush()
            self.resume()

    def abort(self) -> None:
        self._transport.abort()

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # -- what the transport calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        request = self._protocol.connect()
        request.headers["User-Agent"] = self._user_agent
        self._protocol.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        self._hear()

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._hear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.receive_eof()
        if self._closing is not None:
            self._closing.cancel()
        self._listener = None  # they hold each other
        if not self.upgraded.done():
            self.upgraded.set_exception(self._protocol.handshake_exc or exc or ConnectionResetError("the connection was closed"))
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        if self._listener is not None:
            self._listener.room()

    # -- bytes and frames ------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()
        if self._closing is None and self._protocol.close_expected():
            self._closing = self._loop.call_later(self._close_timeout, self._transport.abort)

    def _hear(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event)
            elif isinstance(event, Response) and self._protocol.handshake_exc is None and not self.upgraded.done():
                self.upgraded.set_result(None)
                self.pause()
        if self._protocol.handshake_exc is not None and not self.upgraded.done():
            self.upgraded.set_exception(self._protocol.handshake_exc)
        self._flush()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in _DATA:
            self._part(frame)
        elif frame.opcode is Opcode.PONG and self._ping is not None and self._ping[0] == bytes(frame.data):
            seconds, self._ping = self._loop.time() - self._ping[1], None
            if self._listener is not None:
                self._listener.ponged(seconds)

    def _part(self, frame: Frame) -> None:
        """A message, or a part of one: their size is bounded by `most`, their order was checked."""
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        if frame.fin and not self._partial:
            data = bytes(frame.data)
        else:
            self._partial += frame.data
            if not frame.fin:
                return
            data, self._partial = bytes(self._partial), bytearray()
        message = data.decode(errors="replace") if self._is_text else data
        if self._listener is not None:
            self._listener.message(message)
        else:
            self._early.append(message)


async def _connect(
    make: Callable[[], WebSocket], address: Address, context: ssl.SSLContext | None, opening: float
) -> tuple[asyncio.BaseTransport, WebSocket]:
    """By way of the proxy, if there is one for this server."""
    loop = asyncio.get_running_loop()
    if proxy.proxy_for(address) is None:
        return await loop.create_connection(make, address.host, address.port, ssl=context)
    made = await _through(address, opening)
    return await loop.create_connection(make, sock=made, ssl=context, server_hostname=address.host if context is not None else None)


async def _through(address: Address, opening: float) -> socket.socket:
    """A connection by way of the proxy; one that comes too late is closed, and nobody goes on waiting for it."""
    way = proxy.Reaching()
    reaching = asyncio.ensure_future(asyncio.to_thread(way.reach, address, opening))
    try:
        made = await asyncio.shield(reaching)
    except asyncio.CancelledError:
        way.give_up()
        reaching.add_done_callback(_close_late)
        raise
    made.setblocking(False)
    return made


def _close_late(reaching: "asyncio.Future[socket.socket]") -> None:
    if not reaching.cancelled() and reaching.exception() is None:
        reaching.result().close()


async def dial(
    address: Address, context: ssl.SSLContext | None, subprotocol: str, user_agent: str, *, most: int, timeouts: tuple[float, float]
) -> WebSocket:
    """An upgraded connection, in at most the first of `timeouts`; the second is for its end. The caller closes it.

    `most`: bytes of the largest message that is taken. Raises OSError for the network (TimeoutError, ssl.SSLError) and WebSocketException
    for what is no such server.
    """
    opening, closing = timeouts
    async with asyncio.timeout(opening):
        _, made = await _connect(lambda: WebSocket(address, [subprotocol], user_agent, most, closing), address, context, opening)
        try:
            await made.upgraded
        except BaseException:
            made.abort()
            raise
    return made

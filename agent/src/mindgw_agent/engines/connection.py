"""One connection to an engine: HTTP/1.1, one request at a time, kept for the next one. `httptools` reads, this room counts and decides."""

import asyncio
from typing import Any, Final, Protocol, cast

import httptools

from mindgw_agent.engines.reply import Garbled, Reply

#: Bytes that may come without anything of an answer's body among them: headers, interim answers, the lines between chunks.
MAX_LINES: Final = 64 * 1024
#: Bytes of a request that are given to the transport at once, and that may wait in it: an answer that comes early stops the rest.
PIECE: Final = 256 * 1024
#: Bytes of body that may still come when the last word was said.
LEFT_OVER: Final = 4 * 1024


class Home(Protocol):
    """Where connections are kept."""

    def opened(self, connection: "Connection") -> None:
        """It is there."""

    def rests(self, connection: "Connection") -> None:
        """It may carry another request."""

    def lingers(self, connection: "Connection") -> None:
        """It waits for the end of an answer that nobody wants any more."""

    def gone(self, connection: "Connection", reply: Reply | None, error: Exception | None) -> None:
        """It was closed, under a request that had no whole answer when `reply` is one."""


class Connection(asyncio.Protocol):
    """Made by `create_connection` for a first request; belongs to its home, and to a Reply from `carry` to the end of the answer."""

    __slots__ = (
        *("_done", "_excess", "_framed", "_full", "_home", "_is_over", "_keeps", "_left", "_parser", "_parts", "_reply", "_server"),
        *("_status", "_transport", "_type", "_unread", "_unsent", "is_silent", "since", "used"),
    )

    def __init__(self, home: Home, first: Reply) -> None:
        self._home = home
        self._transport: asyncio.Transport
        self._parser: Any = httptools.HttpResponseParser(self)
        #: What it carries; None between requests.
        self._reply: Reply | None = first
        #: Requests that it carried before; moment at which the last one began, or ended, on the loop's clock.
        self.used = 0
        self.since = 0.0
        # The request.
        #: What has not been given to the transport, None when all has.
        self._unsent: memoryview | None = None
        #: The transport takes no more now.
        self._full = False
        # The answer.
        #: Nothing of it has come.
        self.is_silent = True
        #: Its head, 0 before that is whole.
        self._status = 0
        self._type = b""
        self._server = b""
        #: It says itself where it ends.
        self._framed = False
        #: Body of the read that goes on.
        self._parts: list[bytes] = []
        #: Bytes since the last one of the body.
        self._unread = 0
        #: It came to its end; the connection may be used again; something came behind the end.
        self._done = False
        self._keeps = False
        self._excess = False
        #: Nobody wants the rest, of which so many bytes may come; -1 while somebody does.
        self._left = -1
        self._is_over = False

    # -- whoever uses it -------------------------------------------------------------------------------------------

    def carry(self, reply: Reply) -> None:
        """Send a request; its answer goes to the reply."""
        self._reply = reply
        reply.line = self
        reply.sent = True
        self.is_silent = True
        if len(reply.body) <= PIECE:
            self._transport.write(reply.head + reply.body)
            return
        self._transport.write(reply.head)
        self._unsent = memoryview(reply.body)
        self._send_on()

    @property
    def is_free(self) -> bool:
        """Nobody waits for what it carries."""
        return self._reply is None

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def let_go(self, linger: bool) -> None:
        reply, self._reply = self._reply, None
        assert reply is not None
        reply.line = None
        if not linger or self._unsent is not None:
            self.abort()
            return
        self._left = LEFT_OVER
        if reply.is_paused:
            self.resume()
        self._home.lingers(self)

    def abort(self) -> None:
        """Close it at once, whatever it carries."""
        self._is_over = True
        self._transport.abort()

    # -- what the transport calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self._transport.set_write_buffer_limits(high=PIECE)
        self._home.opened(self)
        first = self._reply
        assert first is not None
        if first.is_over or self._is_over:
            self._reply = None
            self.abort()
        else:
            self.carry(first)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self._parser = None  # they hold each other
        self._unsent = None
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.line = None
            if exc is None and self._status and not self._framed:
                reply.came(b"", True)
                reply = None
        self._home.gone(self, reply, exc)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._send_on()

    def _send_on(self) -> None:
        while self._unsent is not None and not self._full:
            piece, rest = self._unsent[:PIECE], self._unsent[PIECE:]
            self._unsent = rest if len(rest) else None
            self._transport.write(piece)

    def data_received(self, data: bytes) -> None:
        if self._is_over or (self._reply is None and self._left < 0):
            self.abort()  # it speaks without being asked
            return
        self.is_silent = False
        self._unread += len(data)
        wrong = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            wrong = str(error) or "an upgrade"
        if self._unread > MAX_LINES:
            wrong = wrong or f"more than {MAX_LINES} bytes of headers"
        self._excess = self._excess or bool(wrong)
        self._deliver()
        if wrong and self._reply is not None:
            self._reply.fail(Garbled(wrong))

    def _deliver(self) -> None:
        """Hand over what one read brought, all at once."""
        reply, parts, done = self._reply, self._parts, self._done
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if reply is not None and self._status and not reply.status:
            reply.began(self._status, self._type.decode("latin-1"), self._server.decode("latin-1"))
        if done:
            self._finish()
        if reply is None:
            self._left -= len(data)
            if not done and (self._left < 0 or self._excess):
                self.abort()
        elif reply.status:
            reply.came(data, done)

    def _finish(self) -> None:
        """The answer is whole: ready for the next, or done with."""
        keeps = self._keeps and not self._excess and self._unsent is None and not self._transport.get_write_buffer_size()
        if self._reply is not None:
            self._reply.line = None
            self._reply = None
        self._left = -1
        self._status = self._unread = 0
        self._type = self._server = b""
        self._framed = self._done = False
        if not keeps:
            self.abort()
            return
        self.used += 1
        self._home.rests(self)

    # -- what the parser calls -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._excess = self._done

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # a trailer
        name = name.lower()
        if name == b"content-type":
            self._type = value
        elif name == b"server":
            self._server = value
        elif name in {b"content-length", b"transfer-encoding"}:
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self._done:
            self._status = status
            self._unread = 0

    def on_body(self, data: bytes) -> None:
        if not self._done:
            self._parts.append(data)
            self._unread = 0

    def on_message_complete(self) -> None:
        if self._status:
            self._done = True
            self._keeps = self._parser.should_keep_alive()
        else:  # an interim answer
            self._type = self._server = b""
            self._framed = False

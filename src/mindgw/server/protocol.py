"""uvicorn's HTTP protocol, guarded: patience and room for a head are limited, what is ambiguous is refused, in OpenAI's words.

Bodies are held to a pace where they are read (`bodies.read_body`); what a client does not read is held to one here.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mindgw import errors
from mindgw.server import problems
from mindgw.server.bodies import SILENCE

#: Most bytes of a request line and its headers.
MAX_HEAD = 64 * 1024
#: Seconds for a whole head, from the connection or from its first byte on.
PATIENCE = 10.0
#: Seconds for which a client may leave everything that was sent to it unread.
STALL = 60.0

_REASON = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class Guarded(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Ends the connection when a head takes too long; None while none is awaited.
        self._impatient: asyncio.TimerHandle | None = None
        #: Ends the connection when the client does not read; None while it does.
        self._stalled: asyncio.TimerHandle | None = None
        #: Bytes that came since the current head began, whose end has not come; None when no head is under way.
        self._head: int | None = None
        #: True once it was refused: what still comes is dropped.
        self._deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._impatient = self.loop.call_later(PATIENCE, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._impatient = _without(self._impatient)
        self._stalled = _without(self._stalled)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._impatient is None and self._between():
            self._impatient = self.loop.call_later(PATIENCE, self._too_slow)
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(errors.HeadTooLarge())

    # -- the parser's callbacks; what one of them raises becomes a 400 -------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0

    def on_headers_complete(self) -> None:
        self._impatient = _without(self._impatient)
        self._head = None
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD:
            self._refuse(errors.HeadTooLarge())
            raise ValueError("too large")  # the parser goes no further
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise ValueError("a request names one host")
        super().on_headers_complete()

    # -- what the client does not read ----------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(STALL, self.transport.abort)

    def resume_writing(self) -> None:
        self._stalled = _without(self._stalled)
        super().resume_writing()

    # -- refusals -------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Called by the base class when the parser gave up."""
        self._refuse(errors.BadRequest(msg))

    def _too_slow(self) -> None:
        self._impatient = None
        if self._head:
            self._refuse(errors.RequestTimeout())
        else:
            self.transport.close()

    def _refuse(self, wrong: errors.MindGWError) -> None:
        """Says why, unless that would tear an earlier answer apart, and ends the connection; the first reason counts."""
        if self._deaf:
            return
        self._deaf = True
        self._head = None
        self._impatient = _without(self._impatient)
        if not self._forestall():
            self.transport.close()
            return
        self.transport.write(_answer(wrong, self.server_state.default_headers))
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        # closed on what it still sends, the client would see a reset and not the answer
        self._impatient = self.loop.call_later(SILENCE, self.transport.close)

    def _forestall(self) -> bool:
        """True when the next answer may be ours; one that is being prepared is called off."""
        if self._between():
            return True
        if self.cycle.response_started or self.pipeline:
            return False
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return True

    def _between(self) -> bool:
        """True when no answer is under way."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete


def _without(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stops a timer; what stands in its place is None."""
    if timer is not None:
        timer.cancel()
    return None


def _answer(wrong: errors.MindGWError, headers: list[tuple[bytes, bytes]]) -> bytes:
    body = problems.body(wrong)
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    lines = [b"HTTP/1.1 %d %s" % (wrong.status, _REASON[wrong.status]), *(name + b": " + value for name, value in [*headers, *own])]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body

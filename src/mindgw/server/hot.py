"""One request of the fast lane: feeds its exchange from the parser's callbacks, writes what the exchange says to the transport.

There is no task, no queue and no future between the two. What it writes is bounded by the worker's credit, which is paid as long as the
transport takes it; what it reads by the limit of bodies.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from mindgw import errors
from mindgw.core import sse
from mindgw.gateway import signals
from mindgw.gateway.exchange import Exchange
from mindgw.gateway.pipeline import Pipeline
from mindgw.server import problems
from mindgw.server.bodies import Headers, too_large, unread
from mindgw.server.cors import Cors
from mindgw.server.marks import Mark, as_lines

log = logging.getLogger("mindgw.server")

# How far it is: its turn has not come, or it is refused by its head or for its body; its body is read; it is answered.
_OPENING: Final = 0
_READING: Final = 1
_SERVING: Final = 2

_JSON = b"content-type: application/json\r\ncontent-length: "
_STREAM = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
_CLOSE = b"connection: close\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_DRAINED = signals.Drained()


class Counter:
    """What all requests of the fast lane have in common."""

    def __init__(self, pipeline: Pipeline, body_limit: int, cors: Cors) -> None:
        self.pipeline = pipeline
        self.body_limit = body_limit
        self.cors = cors
        #: The server's own headers as they were last, and as they stand in an answer: without its first line, and behind one of status 200.
        self._known: Headers = []
        self._lines = self._good = b""

    def head(self, status: int, headers: Headers) -> bytes:
        """The beginning of an answer; `headers` are the server's own, a new list whenever they change."""
        if headers is not self._known:
            self._known, self._lines = headers, as_lines(headers)
            self._good = STATUS_LINE[200] + self._lines
        return self._good if status == 200 else STATUS_LINE[status] + self._lines


class Hot:
    """One request. To the connection it is what uvicorn calls a cycle; to its exchange it is the lane."""

    __slots__ = (
        "_address",
        "_connection",
        "_counter",
        "_exchange",
        "_expects",
        "_framed",
        "_headers",
        "_is_whole",
        "_kept",
        "_length",
        "_path",
        "_phase",
        "_unpaid",
        "body",
        "end",
        "keep_alive",
        "lingers",
        "mark",
        "response_complete",
        "response_started",
    )  # fmt: skip

    def __init__(self, connection: Any, counter: Counter, where: tuple[str, str], headers: Headers, mark: Mark, length: int) -> None:
        """`where`: the path that is asked for, and the address of who asks."""
        self._connection = connection
        self._counter = counter
        self._path, self._address = where
        self._headers = headers
        #: What it goes by.
        self.mark = mark
        #: Bytes that its body is said to have.
        self._length = length
        #: None before its turn and after its end.
        self._exchange: Exchange | None = None
        self._phase = _OPENING
        #: The body so far, and whether that is all of it.
        self.body: bytes | bytearray = b""
        self._is_whole = False
        #: True when something was written which the transport did not take at once.
        self._unpaid = False
        #: What is written once it takes more: in one piece, for each piece that a transport holds costs it far more than an event weighs.
        # bounded: by the worker's credit
        self._kept: bytes | bytearray = b""
        #: Whether the client waits to be asked for its body.
        self._expects: bool = connection.expect_100_continue
        #: Whether the parts of a stream are chunks; else it ends with the connection.
        self._framed = True
        self.keep_alive = True
        #: Status and code of the error that it heard; those of a client which left before there was one.
        self.end = (499, "client_disconnected")
        self.response_started = False
        self.response_complete = False
        #: True when all is written, and the client still sends what nobody reads.
        self.lingers = False

    # -- the request ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Its turn has come."""
        mark, counter = self.mark, self._counter
        head = signals.Head(mark.request_id, self._path, self._headers, mark.traceparent, self._address)
        try:
            exchange = counter.pipeline.open(head, self)
        except Exception:  # the top of a request: whatever it is, the client must hear something
            log.exception("request %s could not be opened", mark.request_id)
            self._turn_away(errors.InternalError())
            return
        if self.response_started:
            return
        self._exchange = exchange
        self._phase = _READING
        if self._length > counter.body_limit or len(self.body) > counter.body_limit:
            self._refuse(too_large(counter.body_limit))
            return
        if self._expects:
            self._connection.transport.write(_CONTINUE)
        if self._is_whole:
            self._serve()

    def feed(self, data: bytes) -> None:
        """A part of its body came."""
        if self.response_started:
            return
        if not self.body:
            self.body = data
        elif isinstance(self.body, bytearray):
            self.body += data
        else:
            self.body = bytearray(self.body) + data
        if self._phase == _READING and len(self.body) > self._counter.body_limit:
            self._refuse(too_large(self._counter.body_limit))

    def complete(self) -> None:
        """Its body is whole."""
        self._is_whole = True
        if self._phase == _READING:
            self._serve()
        elif self.lingers:
            self._finish()

    def _serve(self) -> None:
        self._phase = _SERVING
        body, self.body = self.body, b""
        if self._exchange is not None:
            self._counter.pipeline.post(self._exchange, signals.Received(bytes(body)))

    def _refuse(self, wrong: errors.MindGWError) -> None:
        assert self._exchange is not None
        self._phase = _OPENING
        self.body = b""
        self._counter.pipeline.post(self._exchange, signals.Refused(wrong))

    def drained(self) -> None:
        """The transport takes more."""
        if not self._unpaid or self._exchange is None:
            return
        if self._kept:
            kept, self._kept = self._kept, b""
            self._connection.transport.write(kept)
        if not self._connection.flow.write_paused:
            self._unpaid = False
            self._counter.pipeline.post(self._exchange, _DRAINED)

    def call_off(self, wrong: errors.MindGWError | None) -> None:
        """Ends it without a word; `wrong` is what its client hears from somebody else."""
        exchange, self.body, self._kept = self._exchange, b"", b""
        if wrong is not None:
            self.end = wrong.status, wrong.code
        self._over()
        if exchange is not None:
            refused = wrong is not None and self._phase == _READING
            self._counter.pipeline.post(exchange, signals.Refused(wrong) if refused and wrong is not None else signals.Gone())

    # -- the answer -----------------------------------------------------------------------------------------------

    def perform(self, effects: list[signals.Effect]) -> None:
        """Called by the pipeline."""
        if self.response_complete:
            return
        if self._phase == _SERVING:
            self._answer(effects)
        else:  # nobody waits for the rest of a body that nobody will read
            assert isinstance(effects[0], signals.Fail)
            self.body = b""
            self._turn_away(effects[0].error)

    def _answer(self, effects: list[signals.Effect]) -> None:
        connection, last = self._connection, effects[-1]
        said = _WORDS[type(last)](self, last)
        if len(effects) > 1:
            said = b"".join([*[_WORDS[type(effect)](self, effect) for effect in effects[:-1]], said])
        self.response_started = True
        if connection.flow.write_paused:
            self._keep(said)
            if type(last) not in _LAST:
                return
            said, self._kept = bytes(self._kept), b""
        connection.transport.write(said)
        if type(last) in _LAST:
            self._finish()
        elif connection.flow.write_paused:
            self._unpaid = True
        elif self._exchange is not None:
            self._counter.pipeline.post(self._exchange, _DRAINED)

    def _keep(self, said: bytes) -> None:
        """Until the transport takes more."""
        self._unpaid = True
        self._kept = self._kept or bytearray()
        self._kept += said

    def _turn_away(self, wrong: errors.MindGWError) -> None:
        """An error for a request whose body was not read to its end: its client hears it all the same."""
        connection = self._connection
        self.response_started = True
        self._phase = _SERVING
        leaves = unread(self._headers)
        if leaves:
            self.keep_alive = False
        connection.transport.write(self._failure(wrong))
        if leaves and not self._is_whole and not self._expects:
            self.lingers = True
            connection.linger()
        else:
            self._finish()

    def _finish(self) -> None:
        """All is written."""
        self._over()
        self._connection.answered(self)

    def _over(self) -> None:
        self.response_complete = True
        exchange, self._exchange = self._exchange, None
        if exchange is None or exchange.caller is None:
            self.mark.report(self._path, *self.end)

    # -- what is written ------------------------------------------------------------------------------------------

    def _head(self, status: int) -> bytes:
        return self._counter.head(status, self._connection.server_state.default_headers)

    def _common(self) -> bytes:
        exchange = self._exchange
        if exchange is None:
            return self.mark.lines()
        return self.mark.lines(exchange.caller) + as_lines(exchange.notes(self._counter.pipeline.clock))

    def whole(self, effect: signals.Answer) -> bytes:
        more = as_lines(effect.headers) if effect.headers else b""
        close = b"" if self.keep_alive else _CLOSE
        body = effect.body
        return b"%b%b%d\r\n%b%b%b\r\n%b" % (self._head(effect.status), _JSON, len(body), more, self._common(), close, body)

    def begin(self, effect: signals.Begin) -> bytes:
        more = as_lines(effect.headers) if effect.headers else b""
        close = b"" if self.keep_alive else _CLOSE
        return b"".join((self._head(200), _STREAM, more, self._common(), close, _CHUNKED if self._framed else b"\r\n"))

    def chunk(self, effect: signals.Write) -> bytes:
        data = effect.data
        return b"%x\r\n%b\r\n" % (len(data), data) if self._framed and data else data

    def ending(self, effect: signals.End) -> bytes:
        return b"0\r\n\r\n" if self._framed else b""

    def fail(self, effect: signals.Fail) -> bytes:
        wrong = effect.error
        if not effect.begun:
            return self._failure(wrong)
        self.end = wrong.status, wrong.code
        event = sse.event(problems.body(wrong, self.mark.request_id))
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event) if self._framed else event

    def _failure(self, wrong: errors.MindGWError) -> bytes:
        self.end = wrong.status, wrong.code
        body = problems.body(wrong, self.mark.request_id)
        more = as_lines(problems.headers(wrong))
        close = b"" if self.keep_alive else _CLOSE
        return b"%b%b%d\r\n%b%b%b\r\n%b" % (self._head(wrong.status), _JSON, len(body), self._common(), more, close, body)

    def unframed(self) -> None:
        """Its client speaks HTTP/1.0: no chunks, and one answer a connection."""
        self._framed = self.keep_alive = False


#: How each effect is written; and those that are the last.
_WORDS: dict[type, Callable[[Hot, Any], bytes]] = {
    signals.Answer: Hot.whole,
    signals.Begin: Hot.begin,
    signals.Write: Hot.chunk,
    signals.End: Hot.ending,
    signals.Fail: Hot.fail,
}
_LAST = frozenset({signals.Answer, signals.End, signals.Fail})

"""uvicorn's HTTP protocol, guarded: patience and room are limited, what is ambiguous is refused, in OpenAI's words.

A client has `PATIENCE` for a head, a pace for a body, and may not leave what it is sent unread for `STALL`; the guard's looks, a
little later or earlier than that, find out. Requests are uvicorn's to serve here, through ASGI; `front.Front` serves some itself.
"""

from functools import partial
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mindgw import errors
from mindgw.addresses import client
from mindgw.server import problems
from mindgw.server.bodies import LINGER, SILENCE
from mindgw.server.cors import Cors
from mindgw.server.guard import Guard
from mindgw.server.heads import MAX_FIELDS, MAX_HEAD, is_too_large, require_sense, without_upgrade
from mindgw.server.marks import TIES, Mark, Ties
from mindgw.server.progress import show, taken
from mindgw.server.socket import WebSocket, unfit

#: Most requests that may wait on one connection for the answer to an earlier one.
MAX_WAITING = 64
#: Seconds for a whole head, from the connection or from its first byte on.
PATIENCE = 10.0
#: Seconds for which nothing need be asked on a connection.
IDLE = 75.0
#: Seconds for a body, and bytes a second for which it may take that long again: whoever sends slower is cut off.
BODY = 60.0
SLOWEST = 1024
#: Seconds for which a client may leave everything that was sent to it unread; and when the server stops.
STALL = 30.0
PARTING = 5.0
#: Bytes that a transport takes from us before it makes us pause; by itself one would take 64 KiB, and over TLS half a MiB. Each write that
#: it holds costs it most of a KiB besides, however small.
ROOM = 16 * 1024

# What a connection waits for: nothing, a request, the rest of a head, the rest of a body, the end of what is not read any more, its end.
_NOTHING: Final = 0
_REQUEST: Final = 1
_HEAD: Final = 2
_BODY: Final = 3
_REST: Final = 4
_END: Final = 5


class Guarded(HttpToolsProtocol):
    """One connection."""

    #: The last request whose head came; one that is served by ASGI, or by whoever derives from this.
    cycle: Any

    def __init__(self, guard: Guard, cors: Cors, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = guard
        #: Whose pages may read a refusal.
        self._cors = cors
        #: Its address, whether that is a proxy's who speaks for others, and who it is counted as.
        self._peer = ""
        self._speaks = False
        self._group = ""
        #: What the last head asked for.
        self.url = b""
        #: What it waits for, and since when by the guard's clock.
        self._awaited = _HEAD
        self._since = 0.0
        #: Bytes of the body so far, and when its pace was last found good.
        self._got = 0
        self._got_then = 0
        #: How many of them the guard knows of: those of a body that is not whole when all that came was read.
        self._held = 0
        #: When what is not read any more must be over.
        self._rest_until = 0.0
        #: Bytes that came since the parser last made something of them; and of the last read.
        self._dry = 0
        self._read = 0
        #: Most bytes of the head under way that came with the end of an earlier request.
        self._lead = 0
        #: Since when the client has not read, None while it does; and what it had taken then.
        self._stalled: float | None = None
        self._taken = 0
        #: The head of a request that wants to be upgraded to what nobody speaks here, without that wish; else b"".
        self._declined = b""
        #: The request that is being answered; None before the first.
        self._served: Any = None
        #: What the request that is served by ASGI is told.
        self._ties = Ties()
        #: True once nothing more is heard: it was refused, or its last answer is written.
        self._deaf = False

    # -- the transport's callbacks --------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.client is not None:
            show(transport)
        transport.set_write_buffer_limits(ROOM)
        self._peer = self.client[0] if self.client else ""
        self._speaks = self._peer in self.guard.trusted
        self._group = self.guard.counted_as(self._peer)
        crowded = self.guard.enter(self, self._group)
        self._since = self.guard.now
        if crowded is not None:
            self._refuse(crowded)
            if not self.guard.watches(self):
                self.transport.close()
        elif self._group and self.scheme == "http":
            self._refuse(errors.Forbidden("Plain HTTP is for this machine and for trusted proxies alone.", code="plain_http"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.guard.leave(self, self._group)
        self._deaf = True
        self._weigh()
        self.pipeline.clear()
        # uvicorn tells the last request alone, and an earlier one may still be served
        if self._served is not None and not self._served.response_complete:
            self._call_off(None)
        self.cycle = self._served = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._read = len(data)
        self._dry += self._read
        if self._awaited == _REQUEST:
            self._awaited = _HEAD
            self._since = self.guard.now
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(errors.BadRequest("Invalid HTTP request received."))
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        else:
            if self._dry > MAX_HEAD:
                self._refuse(errors.HeadTooLarge())
        if self._held or self._awaited == _BODY:
            self._weigh()

    def _weigh(self) -> None:
        """Tells the guard what is held of a body; an answer that has begun drops the rest of it."""
        held = self._got if self._awaited == _BODY and not self._deaf and not self.cycle.response_started else 0
        if held != self._held:
            self._held = held
            self.guard.hold(self, held)

    def make_way(self, wrong: errors.MindGWError) -> None:
        """Called by the guard."""
        self._held = 0
        self._refuse(wrong)

    def _upgrade(self, rest: bytes) -> None:
        """To a WebSocket. Any other wish is ignored, as it may be: the request is read again without it, for the parser has left it at its
        head."""
        if self._declined:
            again, self._declined, self._dry = self._declined + rest, b"", 0
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            Guarded.data_received(self, again)
            return
        if not self._between():
            self._refuse(errors.BadRequest("An upgrade must wait for the answer before it."))
            return
        if self._speaks:
            self.ws_protocol_class = partial(_speaking_for, self.asks(), self.ws_protocol_class)  # type: ignore[assignment]
        self.handle_websocket_upgrade()
        cast(WebSocket, self.transport.get_protocol()).inherit(self, self.guard, self._group)

    def pause_writing(self) -> None:
        self._stalled = self.guard.now
        self._taken = taken(self.transport)
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        self._stalled = None
        self.flow.resume_writing()

    # -- the parser's callbacks; what one of them raises becomes a 400 -------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        if self._awaited == _NOTHING:
            self._since = self.guard.now
        self._awaited = _HEAD

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) > MAX_FIELDS:
            self._refuse(errors.HeadTooLarge())
            raise ValueError("too many")  # the parser goes no further
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._deaf:
            raise ValueError("nothing more is heard")
        headers, fields = self.headers, dict(self.headers)
        if (self._read > MAX_HEAD or self._dry + self._lead > MAX_HEAD or len(headers) > MAX_FIELDS) and is_too_large(self.url, headers):
            self._refuse(errors.HeadTooLarge())
            raise ValueError("too large")  # the parser goes no further
        version = self.parser.get_http_version()
        require_sense(self.url, headers, fields, version)
        if b"upgrade" in fields and self.parser.should_upgrade() and not self._should_upgrade():
            self._declined = without_upgrade(self.parser.get_method(), self.url, version, headers)
            return
        if b"upgrade" in fields and self.parser.should_upgrade() and (wrong := unfit(self.parser.get_method(), self.url, version, headers)):
            self._refuse(wrong)
            raise ValueError("no upgrade")
        if len(self.pipeline) >= MAX_WAITING:
            self._hear_no_more()
            raise ValueError("too many requests at once")
        self._awaited, self._since, self._got, self._got_then, self._dry, self._lead = _BODY, self.guard.now, 0, 0, 0, 0
        self.expect_100_continue = b"expect" in fields and version == "1.1" and fields[b"expect"].lower() == b"100-continue"
        self._begin(fields, version)
        if b"upgrade" not in fields or not self.parser.should_upgrade():
            self.headers = []  # what follows a body in chunks belongs to no head

    def on_body(self, body: bytes) -> None:
        self._dry = 0
        self._got += len(body)
        super().on_body(body)
        if self.cycle is not self._served and len(self.cycle.body) > HIGH_WATER_LIMIT:
            self._send_ahead()

    def _send_ahead(self) -> None:
        """So much of a body came before its turn that reading should stop, and then nobody would notice that the client leaves: what came
        before it is still answered, and nothing else."""
        self.pipeline.popleft()
        self._hear_no_more()
        self.flow.resume_reading()
        raise ValueError("too far ahead")  # the parser goes no further: the rest of this read is not looked at either

    def on_message_complete(self) -> None:
        if self._declined:
            return
        self._dry, self._lead = 0, self._read
        self._awaited = _NOTHING
        super().on_message_complete()
        self._rest()

    # -- requests and answers -------------------------------------------------------------------------------------

    def asks(self) -> str:
        """Address of who sent the head that was read last."""
        if not self._speaks:
            return self._peer
        return client(self._peer, [value for name, value in self.headers if name == b"x-forwarded-for"], self.guard.trusted)

    def _begin(self, fields: dict[bytes, bytes], version: str) -> None:
        """A request whose head is good: uvicorn makes it wait for earlier ones, then serves it."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        if self._speaks:
            self.client = (self.asks(), 0)
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()
        self.flow.resume_reading()  # or nobody would notice that the client leaves; bodies are bounded where they come in

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        self._ties = Ties()
        cycle.scope["extensions"] = {TIES: self._ties}  # type: ignore[dict-item]
        super()._start_asgi_task(cycle, partial(_unframed, app, cycle) if cycle.scope["http_version"] == "1.0" else app)

    def on_response_complete(self) -> None:
        """The next request that waits is served."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if not self._served.keep_alive:  # it is the last one only since its answer was made
            self.transport.close()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._rest()

    def shutdown(self) -> None:
        """The server stops: what is answered is the last here, what is still being sent is too late."""
        if self._between():
            self.transport.close()
        elif self._awaited == _BODY and not self.flow.read_paused:
            self._refuse(errors.Draining(retry_after=5))
        else:
            self._served.keep_alive = False

    def _hear_no_more(self) -> None:
        """The last answer is that to the last request that waits."""
        self.cycle = self.pipeline[0][0] if self.pipeline else self._served
        self.cycle.keep_alive = False
        self._awaited = _NOTHING
        self._deaf = True

    def _rest(self) -> None:
        """Waits for the next request, when the last one has come and was answered."""
        if self._awaited <= _HEAD and self._between():
            self._since = self.guard.now
            self._awaited = self._awaited or _REQUEST

    def _between(self) -> bool:
        """True when no answer is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _call_off(self, wrong: errors.MindGWError | None) -> None:
        """Ends the request that is served without an answer; `wrong` is what its client hears, None when it hears nothing any more."""
        self._served.disconnected = True
        self._served.body = b""
        self._served.message_event.set()
        self._ties.cut(wrong)

    def _mark(self) -> Mark:
        """What the request that is served goes by; its door takes it over if that has not begun."""
        scope = self._served.scope
        self._ties.mark = self._ties.mark or Mark(scope["headers"], more=self._cors.of(scope["raw_path"], scope["headers"]))
        return self._ties.mark

    # -- time -----------------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Called by the guard now and then."""
        if self._stalled is not None:
            self._look_at_reader(now, self._stalled)
        awaited, waited = self._awaited, now - self._since
        if self.transport.is_closing():
            if awaited != _END:
                self._awaited, self._since = _END, now
            elif waited >= (PARTING if self.guard.is_stopping else STALL):
                self.transport.abort()
        elif awaited == _HEAD and waited >= PATIENCE:
            self._look_at_head(now)
        elif awaited == _BODY and waited >= BODY:
            self._look_at_body(now)
        elif (awaited == _REQUEST and waited >= IDLE) or (awaited == _REST and (waited >= SILENCE or now >= self._rest_until)):
            self.transport.close()

    def _look_at_reader(self, now: float, since: float) -> None:
        before, self._taken = self._taken, taken(self.transport)
        if self._taken > before and not self.guard.is_stopping:
            self._stalled = since = now
        if now - since >= (PARTING if self.guard.is_stopping else STALL):
            self.transport.abort()

    def _look_at_head(self, now: float) -> None:
        if not self._between():
            self._since = now
        elif self._dry:
            self._refuse(errors.RequestTimeout())
        else:
            self.transport.close()

    def _look_at_body(self, now: float) -> None:
        if self.flow.read_paused or self._got - self._got_then >= BODY * SLOWEST:
            self._since, self._got_then = now, self._got  # it is fast enough, or it is we who make it wait
        elif self._between():
            self.transport.close()
        else:
            self._refuse(errors.RequestTimeout())

    # -- refusals -------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Takes in what the client still sends, and drops it: closed on earlier, it would see a reset and not what it was sent."""
        self._awaited, self._since = _REST, self.guard.now
        self._rest_until = self.guard.now + LINGER

    def _refuse(self, wrong: errors.MindGWError) -> None:
        """Says why, unless that would tear an earlier answer apart, and ends the connection; the first reason counts."""
        if self._deaf:
            return
        self._deaf = True
        self._weigh()
        if self.guard.is_overrun:
            self.transport.abort()
            return
        known = None if self._between() else self._mark()
        if not self._forestall(wrong):
            self.transport.close()
            return
        self.transport.write(problems.answer(wrong, self.server_state.default_headers, known or self._named(wrong)))
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._linger()

    def _named(self, wrong: errors.MindGWError) -> Mark:
        """A mark for what has none, under which a line in the log says that it was refused. Of its head there is what was read so far."""
        mark = Mark([], more=self._cors.of(self.url, self.headers) if self.headers else None)
        mark.report(self.url.decode("latin-1"), wrong.status, wrong.code)
        return mark

    def _forestall(self, wrong: errors.MindGWError) -> bool:
        """True when the next answer may be ours; one that is being prepared is called off."""
        if self._between():
            return True
        if self._served.response_started or self.pipeline:
            return False
        self._call_off(wrong)
        return True


def _speaking_for(asks: str, make: Any, **given: Any) -> Any:
    """A WebSocket's protocol, on a connection on which a proxy speaks for that address."""
    made = make(**given)
    made.asks = asks
    return made


async def _unframed(app: Any, cycle: RequestResponseCycle, scope: Any, receive: Any, send: Any) -> None:
    """Serves a client of HTTP/1.0, which knows no chunks: an answer without a length ends where its connection does."""

    async def plain(message: Any) -> None:
        if message["type"] == "http.response.start":
            measured = any(name == b"content-length" for name, _ in message["headers"])
            cycle.chunked_encoding = None if measured else False
        elif cycle.chunked_encoding is False and not cycle.expected_content_length:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, plain)

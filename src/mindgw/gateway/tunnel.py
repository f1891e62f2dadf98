"""The server's end of one link: frames in -> calls to whoever waits for them, and the next message out.

No sockets, no tasks: the door that owns the socket calls `receive` with each message, `take` until it gives nothing whenever
`wake` was called, `tick` now and then, and `lost` once when the socket is gone. Calls to listeners are made in the same stack.
"""

from collections.abc import Callable
from typing import Protocol

from mindgw.core.throttle import Throttle
from mindgw_agent import flow, wire
from mindgw_agent.wire import Frame, ProtocolError

#: Seconds between pings, and the silence after which a link is dead: two pings missed, and so much more that even with the look at the
#: clock that finds it no more than 25 s pass.
PING_INTERVAL = 10.0
SILENCE = 2.4 * PING_INTERVAL
#: Reports that are looked at as they come, and seconds between those after them; of more the newest is looked at, a little later.
REPORTS, REPORT_INTERVAL = 5, 1.0
#: Most characters of the reason in a goodbye: it may quote what a hostile peer sent.
MAX_REASON = 500


class Listener(Protocol):
    """Who waits for the answer on a stream."""

    def answered(self, head: wire.Head, close: wire.Close | None) -> None:
        """The answer begins, with its first bytes; `close` when that is all of it, and came with it."""

    def data(self, data: bytes) -> None: ...

    def closed(self, close: wire.Close) -> None: ...

    def lost(self) -> None: ...


class Owner(Protocol):
    """Who hears of what concerns the worker as a whole."""

    def reported(self, report: wire.Report) -> None: ...

    def lied(self, charge: str) -> None:
        """It reported what no report can be."""

    def drains(self) -> None:
        """It takes nothing new."""

    def parts(self) -> None:
        """It said goodbye: nothing more comes, whenever its socket goes."""

    def receipts(self, batch: wire.Receipts) -> None:
        """What requests cost, by the agent's own book. Nothing of it is checked yet; `Link.received` once it is kept."""


class Link:
    """An authenticated link to one session of one agent."""

    def __init__(self, wake: Callable[[], None], now: float) -> None:
        #: Called when there may be something to take.
        self._wake = wake
        #: Who owns the worker; set before the first message is received.
        self.owner: Owner | None = None
        self._decoder = wire.Decoder(wire.FROM_AGENT)
        self._out = flow.Outbound()
        self._in = flow.Inbound()
        #: stream -> who waits for its answer. A stream that was forgotten may still close; whatever it says is dropped.
        self._listeners: dict[int, Listener] = {}
        #: Those of them whose answer has not begun.
        self._silent: set[int] = set()
        #: The last stream that was opened; ids are never used again.
        self._last = 0
        #: Monotonic seconds of the last message in, and of the last ping out.
        self._heard = self._pinged = now
        #: Which reports are looked at as they come, and the newest of those that wait; None when none does.
        self._reports = Throttle(REPORTS, REPORT_INTERVAL)
        self._report: bytes | None = None
        #: Round trip in seconds of the last ping that was answered; None before that.
        self.rtt: float | None = None
        #: Of the tunnel, as both ends agreed on it.
        self.version = wire.VERSION
        #: The last command that was sent, and who waits for the answers to those that are not done.
        self._ordered = 0
        # bounded: one for each verb, see `errands`
        self._orders: dict[int, Callable[[wire.Progress | None], None]] = {}
        #: True once the socket is gone.
        self.is_lost = False
        #: Set once: why this link must close after what is queued has left.
        self.closing: wire.Goodbye | None = None

    @property
    def is_revoked(self) -> bool:
        """True when it ends because its agent was removed, and will not come back."""
        return self.closing is not None and self.closing.code == "revoked"

    # -- requests ------------------------------------------------------------------------------------------------

    def open(self, listener: Listener, meta: wire.Meta, body: bytes) -> int:
        """Sends a request on a stream of its own and returns the stream."""
        self._last += 1
        stream = self._last
        self._listeners[stream] = listener
        self._silent.add(stream)
        self._in.open_stream(stream)
        self._out.send_whole(stream, wire.OPEN, wire.build_open(meta), body)
        self._wake()
        return stream

    def cancel(self, stream: int) -> None:
        """Asks the agent to stop. Its listener hears `closed` when the engine is free, at once if the request never left."""
        if self._out.drop(stream):
            self._say(Frame(stream, wire.CANCEL))
            return
        listener = self._listeners.get(stream)
        if listener is not None:
            listener.closed(wire.Close("cancelled"))

    def consumed(self, stream: int, size: int) -> None:
        """Bytes of an answer have moved on."""
        if grant := self._in.consumed(stream, size):
            self._say(wire.credit(stream, grant))

    def forget(self, stream: int) -> None:
        """Nobody waits for this stream any more."""
        self._listeners.pop(stream, None)
        self._silent.discard(stream)
        self._in.close_stream(stream)
        self._out.drop(stream)

    # -- the socket ----------------------------------------------------------------------------------------------

    def receive(self, message: bytes | str, now: float) -> None:
        """Takes a message; raises ProtocolError, after which the link must be closed."""
        self._heard = now
        frames = self._decoder.feed(message)
        frames.reverse()
        while frames:
            frame = frames.pop()
            if frame.stream:
                self._on_stream(frame, frames)
            else:
                self._on_control(frame, now)

    @property
    def is_urgent(self) -> bool:
        """Whether what waits to leave should do so at once: everything but the middle of requests."""
        return self._out.is_urgent or self.closing is not None

    @property
    def streams(self) -> int:
        """Streams whose answer somebody waits for."""
        return len(self._listeners)

    def take(self, limit: int = wire.MAX_MESSAGE) -> bytes:
        """The next message to send, of about that many bytes at most; b"" when there is none now."""
        return self._out.take(limit)

    def tick(self, now: float) -> bool:
        """Pings when it is time; False when the link must be dropped: it is closing, or the agent has been silent for too long."""
        if self.closing is not None or now - self._heard > SILENCE:
            return False
        if self._report is not None:
            self._on_report(self._report, now)
        if now - self._pinged >= PING_INTERVAL:
            self._pinged = now
            self._say(Frame(0, wire.PING, b"%.6f" % now))
        return True

    def goodbye(self, code: str, message: str, retry_after: float | None = None) -> None:
        """Says why and closes."""
        if self.closing is None:
            self.closing = wire.Goodbye(code, message[:MAX_REASON], retry_after)
            self._say(wire.frame(self.closing))

    def drain(self) -> None:
        """Tells the agent that nothing new will come."""
        self._say(Frame(0, wire.DRAIN))

    @property
    def takes_commands(self) -> bool:
        """False for agents of older releases."""
        return self.version >= wire.COMMANDS

    def command(self, verb: str, argument: str, hear: Callable[[wire.Progress | None], None] | None = None) -> int:
        """Asks the agent for something; the number of that. `hear` is called with every word about it, the last of which is `done`, and
        with None when the socket is gone before that. Without it nobody wants to know."""
        self._ordered += 1
        if hear is not None:
            self._orders[self._ordered] = hear
        self._say(wire.frame(wire.Command(self._ordered, verb, argument)))
        return self._ordered

    def give_up(self, command: int) -> None:
        """Nobody waits for what becomes of a command any more."""
        self._orders.pop(command, None)

    def received(self, seq: int) -> None:
        """Tells the agent that its receipts up to this number are kept: it forgets them."""
        self._say(wire.frame(wire.Received(seq)))

    def lost(self) -> None:
        """The socket is gone: everybody who waits hears so."""
        self.is_lost = True
        self._silent.clear()
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            listener.lost()
        orders, self._orders = self._orders, {}
        for hear in orders.values():
            hear(None)

    def _say(self, frame: Frame) -> None:
        """Queues a control frame. An agent that does not read them ends its own link, not the work of whoever had to say something."""
        try:
            self._out.control(frame)
        except ProtocolError as wrong:
            if self.closing is None:
                self.closing = wire.Goodbye("protocol", str(wrong))
                if self.owner is not None:
                    self.owner.drains()  # whoever said something is in the middle of a step: what runs hears of it later
        self._wake()

    # -- frames --------------------------------------------------------------------------------------------------

    def _on_control(self, frame: Frame, now: float) -> None:
        if frame.kind == wire.PONG:
            self._on_pong(frame.payload, now)
        elif frame.kind == wire.PING:
            self._out.control(Frame(0, wire.PONG, frame.payload))
            self._wake()
        else:
            self._on_news(frame, now)

    def _on_news(self, frame: Frame, now: float) -> None:
        assert self.owner is not None
        if frame.kind == wire.REPORT:
            self._on_report(frame.payload, now)
        elif frame.kind == wire.DRAIN:
            self.owner.drains()
        elif frame.kind == wire.RECEIPTS:
            self.owner.receipts(wire.parse(wire.Receipts, frame.payload))
        elif frame.kind == wire.PROGRESS:
            self._on_progress(wire.parse(wire.Progress, frame.payload))
        elif frame.kind == wire.GOODBYE:
            self.closing = self.closing or wire.parse(wire.Goodbye, frame.payload)
            self._wake()
            self.owner.parts()
        else:
            raise ProtocolError("the handshake is over")

    def _on_progress(self, progress: wire.Progress) -> None:
        if progress.id > self._ordered:
            raise ProtocolError(f"command {progress.id} was never given")
        hear = self._orders.pop(progress.id, None) if progress.done else self._orders.get(progress.id)
        if hear is not None:
            hear(progress)

    def _on_report(self, payload: bytes, now: float) -> None:
        """Garbage is no reason to cut off what runs: an agent that dials again would only say it again."""
        assert self.owner is not None
        if not self._reports.lets(now):
            self._report = payload
            return
        self._report = None
        try:
            report = wire.parse(wire.Report, payload)
        except ProtocolError as wrong:
            self.owner.lied(f"it reports what cannot be: {wrong}"[:MAX_REASON])
        else:
            self.owner.reported(report)

    def _on_pong(self, payload: bytes, now: float) -> None:
        try:
            sent = float(payload)
        except ValueError:
            raise ProtocolError("a PONG that answers no PING") from None
        if 0 <= now - sent <= SILENCE:
            self.rtt = now - sent

    def _on_stream(self, frame: Frame, rest: list[Frame]) -> None:
        """`rest`: what came behind it in the same message, the last frame first."""
        stream = frame.stream
        if stream > self._last:
            raise ProtocolError(f"stream {stream} was never opened")
        listener, kind = self._listeners.get(stream), frame.kind
        if kind == wire.DATA and listener is not None:
            data = frame.payload
            self._in.received(stream, len(data))
            listener.data(data)
        elif kind == wire.CREDIT:
            self._out.credit(stream, wire.parse_credit(frame.payload))
            self._wake()
        elif listener is None:
            return  # it was forgotten while this frame was on its way
        elif kind == wire.HEAD:
            if stream not in self._silent:
                raise ProtocolError(f"stream {stream} begins a second time")
            self._silent.remove(stream)
            head = wire.parse_head(frame.payload)
            self._in.received(stream, len(head.body))
            # an answer in one piece comes with its end
            is_all = rest and rest[-1].stream == stream and rest[-1].kind == wire.CLOSE
            listener.answered(head, wire.parse(wire.Close, rest.pop().payload) if is_all else None)
        else:
            listener.closed(wire.parse(wire.Close, frame.payload))

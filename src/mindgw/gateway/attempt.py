"""One try of a request on one worker: its slot, its stream, and the way its news takes back to the exchange."""

from collections.abc import Callable
from typing import Any

from mindgw.config import Timeouts
from mindgw.gateway import signals
from mindgw.gateway.admission import Ask
from mindgw.gateway.route import Placement
from mindgw_agent import wire

#: Seconds that a worker has to confirm a cancel before its slot is taken back all the same.
CANCEL_GRACE = 120.0


class Attempt:
    """Hears its stream (`tunnel.Listener`) and passes on what it hears, until it ends."""

    __slots__ = ("_exchange", "_keeper", "_link", "_post", "_stream", "placement")

    def __init__(self, post: Callable[[Any, signals.Event], None], exchange: Any, placement: Placement) -> None:
        #: Brings an event to its exchange.
        self._post = post
        #: Whose try it is; None once it is over: nothing reaches the exchange any more.
        self._exchange = exchange
        #: Who has it once its request goes on without it.
        self._keeper: Leftovers | None = None
        self.placement = placement
        self._link = placement.seat.worker.link
        #: 0 until it is open.
        self._stream = 0

    def open(self, head: signals.Head, ask: Ask, patience: Timeouts, body: bytes, tag: bytes) -> None:
        """Sends the request, with its billing tag."""
        placement, peek = self.placement, ask.peek
        team = ask.caller.group if placement.seat.worker.teams else ""
        # by place: by name they cost three times as much
        meta = wire.Meta(
            head.request_id, ask.path, placement.model, len(body), placement.seat.engine.id, peek.stream, peek.include_usage,
            patience.total, patience.first_token, patience.idle, patience.connect, head.traceparent, tag, team,
        )  # fmt: skip
        self._stream = self._link.open(self, meta, body)

    def tell(self, post: Callable[[Any, signals.Event], None]) -> None:
        """Its news goes this way from now on."""
        self._post = post

    def consumed(self, size: int) -> None:
        """Bytes of the answer have left for the client: the worker may send as many again."""
        self._link.consumed(self._stream, size)

    def cancel(self) -> None:
        """Asks the worker to stop; the answer is `Closed`, at once when it never heard of the request."""
        if self._stream:
            self._link.cancel(self._stream)
        else:
            self.closed(wire.Close("cancelled"))

    def leave_to(self, keeper: "Leftovers", now: float) -> None:
        """Its request goes on without it: the worker is asked to stop, and `keeper` ends it when that is confirmed."""
        self._exchange, self._keeper = None, keeper
        keeper.keep(self, now)
        self.cancel()

    def end(self) -> None:
        """It is over: the slot is free, the stream forgotten."""
        self._exchange = None
        if self._keeper is not None:
            self._keeper.drop(self)
        if self._stream:
            self._link.forget(self._stream)
        self.placement.release()

    # -- what the stream says -------------------------------------------------------------------------------------

    def answered(self, head: wire.Head, close: wire.Close | None) -> None:
        """The answer began, and perhaps that is all of it."""
        if self._exchange is not None:
            self._post(self._exchange, signals.Answered(head, close))
        elif close is not None:
            self.closed(close)

    def data(self, data: bytes) -> None:
        """A piece of the answer came."""
        if self._exchange is not None:
            self._post(self._exchange, signals.Data(data))

    def closed(self, close: wire.Close) -> None:
        """The agent is done."""
        if self._exchange is not None:
            self._post(self._exchange, signals.Closed(close))
        elif self._keeper is not None:
            self.end()

    def lost(self) -> None:
        """The link is gone."""
        if self._exchange is not None:
            self._post(self._exchange, signals.Lost())
        elif self._keeper is not None:
            self.end()


class Leftovers:
    """Tries whose requests went on without them: their engines may still be busy, so each keeps its slot until its worker says otherwise,
    is lost, or has said nothing for CANCEL_GRACE."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        # bounded: each holds a slot
        self._until: dict[Attempt, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def keep(self, attempt: Attempt, now: float) -> None:
        """One more."""
        self._until[attempt] = now + CANCEL_GRACE

    def drop(self, attempt: Attempt) -> None:
        """It is over."""
        self._until.pop(attempt, None)

    def sweep(self, now: float) -> None:
        """Ends those whose workers never answered."""
        for attempt in [attempt for attempt, until in self._until.items() if now >= until]:
            attempt.end()

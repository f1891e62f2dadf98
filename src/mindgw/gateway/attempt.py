"""One try of a request on one worker: its slot, its stream, and the way its news takes back to the exchange."""

from collections.abc import Callable

from mindgw.config import Timeouts
from mindgw.gateway import signals
from mindgw.gateway.admission import Ask
from mindgw.gateway.route import Placement
from mindgw_agent import wire


class Attempt:
    """Hears its stream (`tunnel.Listener`) and passes on what it hears, until it ends."""

    __slots__ = ("_link", "_stream", "_tell", "placement", "worker")

    def __init__(self, tell: Callable[[signals.Event], None], placement: Placement) -> None:
        #: Brings an event to the exchange; None once the attempt is over: nothing reaches the exchange any more.
        self._tell: Callable[[signals.Event], None] | None = tell
        self.placement = placement
        #: Id of the worker.
        self.worker = placement.seat.worker.id
        self._link = placement.seat.worker.link
        #: 0 until it is open.
        self._stream = 0

    def open(self, head: signals.Head, ask: Ask, patience: Timeouts, body: bytes, tag: bytes) -> None:
        """Sends the request, with its billing tag."""
        meta = wire.Meta(
            request_id=head.request_id,
            path=ask.path,
            model=self.placement.model,
            engine=self.placement.seat.engine.id,
            stream=ask.peek.stream,
            include_usage=ask.peek.include_usage,
            timeout=patience.total,
            first_token=patience.first_token,
            idle=patience.idle,
            connect=patience.connect,
            traceparent=head.traceparent,
            tag=tag,
            length=len(body),
        )
        self._stream = self._link.open(self, meta, body)

    def consumed(self, size: int) -> None:
        """Bytes of the answer have left for the client: the worker may send as many again."""
        self._link.consumed(self._stream, size)

    def cancel(self) -> None:
        """Asks the worker to stop; the answer is `Closed`, at once when it never heard of the request."""
        if self._stream:
            self._link.cancel(self._stream)
        else:
            self.closed(wire.Close("cancelled"))

    def end(self) -> None:
        """It is over: the slot is free, the stream forgotten."""
        self._tell = None
        if self._stream:
            self._link.forget(self._stream)
        self.placement.release()

    # -- what the stream says -------------------------------------------------------------------------------------

    def answered(self, status: int, content_type: str) -> None:
        """The engine's status came."""
        if self._tell is not None:
            self._tell(signals.Answered(status, content_type))

    def data(self, data: bytes) -> None:
        """A piece of the answer came."""
        if self._tell is not None:
            self._tell(signals.Data(data))

    def closed(self, close: wire.Close) -> None:
        """The agent is done."""
        if self._tell is not None:
            self._tell(signals.Closed(close))

    def lost(self) -> None:
        """The link is gone."""
        if self._tell is not None:
            self._tell(signals.Lost())

"""How long a request may take where it is, and when its client should hear that it is not forgotten. Monotonic seconds throughout."""

from collections.abc import Iterator

from mindgw import errors
from mindgw.config import Timeouts

FOREVER = float("inf")
Limit = tuple[float, errors.MindGWError]


class Patience:
    """The moments of one request that its limits count from."""

    __slots__ = ("_timeouts", "arrived", "deadline", "heard", "pinged", "queued", "seen", "stuck")

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self.arrived = now
        #: Seconds after its arrival within which its answer must begin, when its caller says so.
        self.deadline: float | None = None
        #: When its wait for a slot began; being turned down by a worker does not begin a new one.
        self.queued = now
        #: When a worker that has the model was last there while it waits.
        self.seen = now
        #: When the last byte came in, and when the last ping went out.
        self.heard = self.pinged = now
        #: Since when the client has not taken what was written for it; None while all has left. The worker may then be silent because
        #: it must be, and nothing more is written.
        self.stuck: float | None = None

    def waiting(self, present: bool) -> Limit:
        """When a wait in the queue ends, and what the caller hears then; `present`: a worker that has the model is there."""
        return min(self._waits(present), key=_moment)

    def running(self, placed: float, stream: bool, begun: bool) -> Limit:
        """The same for a request that a worker got at `placed`; `begun`: the first byte of its answer came.

        An answer in one piece is silent until it is complete: only the total counts for it, and the deadline of its caller.
        """
        return min(self._runs(placed, stream, begun), key=_moment)

    def sign_due(self, stream: bool, *, begun: bool, waiting: float) -> float:
        """When a client that hears nothing should be told that it is not forgotten; only a stream can be, and it begins with that.
        `waiting`: how much less often than usual one that waits for its turn is told so; 0 for one that has had it."""
        if not stream or self.stuck is not None:
            return FOREVER
        if not begun:
            return self.arrived + self._timeouts.hold
        limits = self._timeouts
        often = min(limits.news * waiting, max(limits.news, limits.keepalive)) if waiting else limits.keepalive
        return max(self.heard, self.pinged) + often

    def unstick(self, now: float, owed: int) -> None:
        """The client took all; a worker that is `owed` credit may have been silent because it must, and has its full time from now on."""
        self.stuck = None
        if owed:
            self.heard = now

    def _waits(self, present: bool) -> Iterator[Limit]:
        yield self.queued + self._timeouts.queue, errors.QueueTimeout()
        if self.deadline is not None:
            yield self.arrived + self.deadline, errors.TooLate()
        if not present:
            yield self.seen + self._timeouts.worker_return, errors.NoWorker(retry_after=self._timeouts.worker_return)

    def _runs(self, placed: float, stream: bool, begun: bool) -> Iterator[Limit]:
        yield placed + self._timeouts.total, errors.EngineTimeout("The answer took too long.")
        if self.deadline is not None and not begun:
            yield self.arrived + self.deadline, errors.TooLate("The answer did not begin before the deadline of the request.")
        if self.stuck is not None:
            yield self.stuck + self._timeouts.idle, errors.CallerError("The client stopped reading.", code="client_stalled")
        elif stream and begun:
            yield self.heard + self._timeouts.idle, errors.EngineTimeout("The engine fell silent.")
        elif stream:
            yield placed + self._timeouts.first_token, errors.EngineTimeout("The engine sent no first token in time.")


def _moment(limit: Limit) -> float:
    return limit[0]

"""How long a request may take where it is, and when its client should hear that it is not forgotten. Monotonic seconds throughout."""

from collections.abc import Callable

from mindgw import errors
from mindgw.config import Timeouts

FOREVER = float("inf")
#: A moment, and what makes the error that the caller hears then.
Limit = tuple[float, Callable[[], errors.MindGWError]]


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
        limits = self._timeouts
        end: Limit = self.queued + limits.queue, errors.QueueTimeout
        if self.deadline is not None and self.arrived + self.deadline < end[0]:
            end = self.arrived + self.deadline, errors.TooLate
        if not present and self.seen + limits.worker_return < end[0]:
            end = self.seen + limits.worker_return, self._nobody
        return end

    def running(self, placed: float, stream: bool, begun: bool) -> Limit:
        """The same for a request that a worker got at `placed`; `begun`: the first byte of its answer came.

        An answer in one piece is silent until it is complete: only the total counts for it, and the deadline of its caller.
        """
        limits = self._timeouts
        end: Limit = placed + limits.total, _too_long
        if self.deadline is not None and not begun and self.arrived + self.deadline < end[0]:
            end = self.arrived + self.deadline, _too_late
        if self.stuck is not None:
            other: Limit = self.stuck + limits.idle, _stalled
        elif stream:
            other = (self.heard + limits.idle, _silent) if begun else (placed + limits.first_token, _no_token)
        else:
            return end
        return other if other[0] < end[0] else end

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

    @property
    def next_ping(self) -> float:
        """No ping to a client that is being answered is due before then."""
        return self.heard + self._timeouts.keepalive

    def unstick(self, now: float, owed: int) -> None:
        """The client took all; a worker that is `owed` credit may have been silent because it must, and has its full time from now on."""
        self.stuck = None
        if owed:
            self.heard = now

    def _nobody(self) -> errors.MindGWError:
        return errors.NoWorker(retry_after=self._timeouts.worker_return)


def _too_long() -> errors.MindGWError:
    return errors.EngineTimeout("The answer took too long.")


def _too_late() -> errors.MindGWError:
    return errors.TooLate("The answer did not begin before the deadline of the request.")


def _stalled() -> errors.MindGWError:
    return errors.CallerError("The client stopped reading.", code="client_stalled")


def _silent() -> errors.MindGWError:
    return errors.EngineTimeout("The engine fell silent.")


def _no_token() -> errors.MindGWError:
    return errors.EngineTimeout("The engine sent no first token in time.")

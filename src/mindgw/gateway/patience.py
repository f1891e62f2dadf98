"""How long a request may take where it is, and when its client should hear that it is not forgotten. Monotonic seconds throughout."""

from collections.abc import Callable
from typing import Protocol

from mindgw import errors
from mindgw.config import Timeouts

FOREVER = float("inf")
#: A moment, and what makes the error that the caller hears then.
Limit = tuple[float, Callable[[], errors.MindGWError]]


class Moments(Protocol):
    """The moments of one request that its limits count from."""

    #: When it came in, and the seconds after that within which its answer must begin, when its caller says so.
    arrived: float
    deadline: float | None
    #: Whether its answer is a stream.
    stream: bool
    #: When its wait for a slot began; being turned down by a worker does not begin a new one.
    since: float
    #: When a worker that has the model was last there while it waits.
    seen: float
    #: When it was given a slot, and when the first byte of its answer came; None before that.
    placed: float | None
    first: float | None
    #: Seconds for which workers had it that failed it.
    spent: float
    #: When the last byte came in, and when the last ping went out.
    heard: float
    pinged: float
    #: Since when the client has not taken what was written for it; None while all has left. The worker may then be silent because
    #: it must be, and nothing more is written.
    stuck: float | None


class Patience:
    """With all requests of a server."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        #: Seconds of silence after which a stream hears a ping.
        self.keepalive = timeouts.keepalive

    def waiting(self, at: Moments, present: bool) -> Limit:
        """When a wait in the queue ends, and what the caller hears then; `present`: a worker that has the model is there."""
        limits = self._timeouts
        end: Limit = at.since + limits.queue, errors.QueueTimeout
        if at.deadline is not None and at.arrived + at.deadline < end[0]:
            end = at.arrived + at.deadline, errors.TooLate
        if not present and at.seen + limits.worker_return < end[0]:
            end = at.seen + limits.worker_return, self._nobody
        return end

    def running(self, at: Moments) -> Limit:
        """The same for a request that a worker got.

        An answer in one piece is silent until it is complete: only the total counts for it, and the deadline of its caller. The total is
        that of all workers that are tried together, what is waited for a first token that of each.
        """
        limits, begun = self._timeouts, at.first is not None
        placed = at.placed if at.placed is not None else at.since
        end: Limit = placed + limits.total - at.spent, _too_long
        if at.deadline is not None and not begun and at.arrived + at.deadline < end[0]:
            end = at.arrived + at.deadline, _too_late
        if at.stuck is not None:
            other: Limit = at.stuck + limits.idle, _stalled
        elif at.stream:
            other = (at.heard + limits.idle, _silent) if begun else (placed + limits.first_token, _no_token)
        else:
            return end
        return other if other[0] < end[0] else end

    def sign_due(self, at: Moments, *, begun: bool, waiting: float) -> float:
        """When a client that hears nothing should be told that it is not forgotten; only a stream can be, and it begins with that.
        `begun`: its head has left. `waiting`: how much less often than usual one that waits for its turn is told so; 0 for one that has
        had it."""
        if not at.stream or at.stuck is not None:
            return FOREVER
        if not begun:
            return at.arrived + self._timeouts.hold
        limits = self._timeouts
        often = min(limits.news * waiting, max(limits.news, limits.keepalive)) if waiting else limits.keepalive
        return max(at.heard, at.pinged) + often

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

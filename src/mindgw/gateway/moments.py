"""What is noted of a request along its way: tuples of a kind, a monotonic second and what was at hand, nothing made for the occasion.

Whoever wants to read them asks `gateway.story`. Most requests have one: the worker that they were sent to.
"""

from typing import Any

#: Kinds, and what follows the moment in a tuple of each.
IDENTIFIED = 1  # nothing: its key had to be looked up
WAITED = 2  # where it stands, 0 for one that goes back to the head of its flow, and seconds until its turn or None
MOVED = 3  # the model and the place that it goes to from now on
FUNDING = 4  # the placement whose slot is held meanwhile, or None: what it may cost is asked of the database
FUNDED = 5  # nothing
SENT = 6  # the placement, the model and the place that it was for
HEDGED = 7  # the same, for a worker that is asked beside another one
FIRST = 8  # id of the worker: the first byte of an answer that came to nothing later
TURNED_DOWN = 9  # id of the worker, and why: nothing was begun there
FAILED = 10  # id of the worker, code of the error, and the engine's status or 0
LEFT = 11  # how it ended for its client, while its worker has not let go of it
OMITTED = 12  # how many stood here

#: A kind, when, and the rest.
Moment = tuple[Any, ...]
#: Moments that are kept of one request, and how many of them are the first ones: a worker may turn it down any number of times.
MOST, _FIRST = 64, 24


def note(moments: list[Moment], moment: Moment) -> None:
    """One more; of too many those in the middle are only counted."""
    moments.append(moment)
    while len(moments) > MOST:
        gone = moments.pop(_FIRST)
        before = gone[2] if gone[0] == OMITTED else 1
        moments[_FIRST] = (OMITTED, gone[1], before + 1)


class Samples:
    """Where a request stood while it waited, at moments when that was known anyway. Bounded: of many every other one is kept."""

    __slots__ = ("_every", "_passed", "taken")

    #: That are kept.
    MOST = 32

    def __init__(self) -> None:
        #: (monotonic second, place, seconds until its turn or None)
        self.taken: list[tuple[float, int, float | None]] = []
        #: One of so many is taken; and how many passed since the last one.
        self._every, self._passed = 1, 0

    def add(self, now: float, position: int, eta: float | None) -> None:
        """It stands there now."""
        self._passed += 1
        if self._passed < self._every:
            return
        self._passed = 0
        self.taken.append((now, position, eta))
        if len(self.taken) >= self.MOST:
            del self.taken[1::2]
            self._every *= 2

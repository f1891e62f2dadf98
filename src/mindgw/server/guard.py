"""How many connections there may be, how much they may hold of what is not whole yet, and one clock for all of them.

A connection that waits for its client notes since when, in seconds of a coarse clock, and is looked at twice a second: no timer is set
for a request.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from mindgw import errors
from mindgw.addresses import Networks, group
from mindgw.clock import monotonic

log = logging.getLogger("mindgw.server")

#: Seconds between looks.
TICK = 0.5
#: Connections beyond the limit that are still told why they are refused.
TOLD = 100


NOBODY = Networks(())


class Watched(Protocol):
    """A connection."""

    #: What it speaks through.
    transport: Any

    def look(self, now: float) -> None:
        """Ends what takes too long."""


class Sender(Protocol):
    """A connection that may hold a part of a body."""

    def make_way(self, wrong: errors.MindGWError) -> None:
        """Drops what it holds of a body, and says why if it still can; must not raise."""


class Guard:
    """Watches over all connections of a process."""

    def __init__(
        self,
        most: int = 2**31,
        most_of_one: int = 2**31,
        most_bytes: int = 2**62,
        clock: Callable[[], float] = monotonic,
        trusted: Networks = NOBODY,
    ) -> None:
        """`most` connections at once, `most_of_one` of one address; this machine's own and those of `trusted` proxies are any number.
        `most_bytes` of bodies that are still being sent."""
        self.trusted = trusted
        self._clock = clock
        self._most = most
        self._most_of_one = most_of_one
        #: Monotonic seconds of the last look, or of the last connection that came.
        self.now = clock()
        #: True once the server stops: nobody is waited for who does not read.
        self.is_stopping = False
        # bounded: by `most` and `TOLD`
        self._watched: set[Watched] = set()
        #: Connections that are watched and count no more.
        # bounded: by the agents that may link, one each
        self._excused: set[Watched] = set()
        #: Connections by address.
        self._of: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._most_bytes = most_bytes
        #: What is held of bodies that are still being sent, in all and by connection, longest under way first.
        # bounded: by the connections
        self._bodies: OrderedDict[Sender, int] = OrderedDict()
        self.held = 0

    def counted_as(self, peer: str) -> str:
        """Who an address is counted as; "" for one that may have any number."""
        return "" if peer in self.trusted else group(peer)

    def enter(self, connection: Watched, address: str) -> errors.MindGWError | None:
        """Watches a new connection until it leaves; the error that it must hear if it cannot stay. One too many of its address is not even
        watched."""
        self.now = self._clock()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        if address and self._of[address] >= self._most_of_one:
            return _crowded("Your address has as many connections as one may have.")
        self._watched.add(connection)
        self._of[address] += 1
        return _crowded("The server has as many connections as it takes.") if len(self._watched) > self._most else None

    def watches(self, connection: Watched) -> bool:
        """Whether it counts: one that its address has no right to does not, and has no time to be told why."""
        return connection in self._watched

    @property
    def is_overrun(self) -> bool:
        """True when there are so many connections that not even a refusal is written."""
        return len(self._watched) > self._most + TOLD

    def succeed(self, before: Watched, after: Watched) -> None:
        """The connection is spoken on by `after` now, which is watched and counted in the place of `before`."""
        self._watched.discard(before)
        self._watched.add(after)

    def excuse(self, connection: Watched, address: str) -> None:
        """It has shown that it belongs here: it is watched still, and takes no other's place."""
        if connection in self._watched:
            self.leave(connection, address)
            self._excused.add(connection)

    @property
    def is_pressed(self) -> bool:
        """True when more than half of the places are taken."""
        return len(self._watched) > self._most // 2

    def leave(self, connection: Watched, address: str) -> None:
        """It is gone."""
        self._excused.discard(connection)
        if connection not in self._watched:
            return
        self._watched.discard(connection)
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]

    def hold(self, connection: Sender, size: int) -> None:
        """Notes that a connection holds `size` bytes of a body that is not whole yet; 0 when it holds none any more. When all hold too
        much, whoever has been sending for longest makes way: that is who is slowest."""
        self.held += size - self._bodies.get(connection, 0)
        if size:
            self._bodies[connection] = size
        else:
            self._bodies.pop(connection, None)
        while self.held > self._most_bytes:
            slowest, held = self._bodies.popitem(last=False)
            self.held -= held
            slowest.make_way(_too_much())

    def look(self) -> None:
        """Looks at all connections; one that raises is given up, and the others are looked at all the same."""
        self.now = self._clock()
        for connection in [*self._watched, *self._excused]:
            try:
                connection.look(self.now)
            except Exception:  # the top of a look
                log.exception("a connection could not be looked at, and is given up")
                connection.transport.abort()

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick) if self._watched or self._excused else None
        self.look()


def _crowded(message: str) -> errors.MindGWError:
    return errors.Draining(message, code="too_many_connections", retry_after=1)


def _too_much() -> errors.MindGWError:
    message = "Too much is being sent to the server at once, and this request has taken longest."
    return errors.Draining(message, code="too_many_bytes", retry_after=1)

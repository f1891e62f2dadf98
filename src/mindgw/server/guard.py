"""How many connections there may be, and one clock for all of them.

A connection that waits for its client notes since when, in seconds of a coarse clock, and is looked at twice a second: no timer is set
for a request.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Protocol

from mindgw import errors
from mindgw.clock import monotonic

#: Seconds between looks.
TICK = 0.5
#: Connections beyond the limit that are still told why they are refused.
TOLD = 100


class Watched(Protocol):
    """A connection."""

    def look(self, now: float) -> None:
        """Ends what takes too long; must not raise."""


class Guard:
    """Watches over all connections of a process."""

    def __init__(self, most: int = 2**31, most_of_one: int = 2**31, clock: Callable[[], float] = monotonic) -> None:
        """`most` connections at once, `most_of_one` of one address; this machine's own are any number."""
        self._clock = clock
        self._most = most
        self._most_of_one = most_of_one
        #: Monotonic seconds of the last look, or of the last connection that came.
        self.now = clock()
        #: True once the server stops: nobody is waited for who does not read.
        self.is_stopping = False
        # bounded: by `most` and `TOLD`
        self._watched: set[Watched] = set()
        #: Connections by address.
        self._of: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: Watched, address: str) -> errors.MindGWError | None:
        """Watches a new connection until it leaves; the error that it must hear if it cannot stay."""
        self.now = self._clock()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        self._watched.add(connection)
        self._of[address] += 1
        if len(self._watched) > self._most:
            return _crowded("The server has as many connections as it takes.")
        if address and self._of[address] > self._most_of_one:
            return _crowded("Your address has as many connections as one may have.")
        return None

    @property
    def is_overrun(self) -> bool:
        """True when there are so many connections that not even a refusal is written."""
        return len(self._watched) > self._most + TOLD

    @property
    def is_pressed(self) -> bool:
        """True when more than half of the places are taken."""
        return len(self._watched) > self._most // 2

    def leave(self, connection: Watched, address: str) -> None:
        """It is gone, or somebody else's now."""
        if connection not in self._watched:
            return
        self._watched.discard(connection)
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]

    def look(self) -> None:
        """Looks at all connections."""
        self.now = self._clock()
        for connection in list(self._watched):
            connection.look(self.now)

    def _tick(self) -> None:
        self.look()
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick) if self._watched else None


def group(host: str) -> str:
    """Who is counted as one: an address, or the network of an IPv6 one; "" for this machine, where a proxy may speak for everybody."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return "" if address.is_loopback else address.exploded[:19]
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)


def _crowded(message: str) -> errors.MindGWError:
    return errors.Draining(message, code="too_many_connections", retry_after=1)

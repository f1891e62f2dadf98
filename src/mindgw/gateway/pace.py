"""How fast slots work and what answers cost: charges those who run, and tells how long those who wait will.

Charges go to the fair order as tokens are produced: the prompt when the slot is taken, the answer whenever `measure` comes round,
and what was really used at the end.
"""

from collections import deque
from collections.abc import Collection, Hashable

from mindgw.core import eta
from mindgw.core.fair import Ahead, Fair, Path
from mindgw.core.fair import Ticket as Entry
from mindgw.gateway.flows import DEPTH
from mindgw.gateway.ticket import W_IN, W_OUT, Ticket

#: Seconds after which a team's use counts for half.
_HALF = 300.0
#: Shares from which on end users that are new get none.
_END_USERS = 10_000
#: Errors of estimates that are kept for the metric.
_ERRORS = 1000
#: Tokens of an answer that are believed, of one without a cap: an engine may report anything.
_LONGEST = 131_072


class Pool:
    """What runs in the slots of one line, and how fast."""

    __slots__ = ("running", "serves", "speed", "units")

    def __init__(self) -> None:
        self.running: set[Ticket] = set()
        #: All lines that the last slot of this one could have served.
        self.serves: Collection[Hashable] = ()
        self.speed = eta.Speed()
        #: Units since the last look.
        self.units = 0.0


class Pace:
    """Who runs, what that costs, and how long it takes. Seconds are monotonic."""

    def __init__(self, order: Fair) -> None:
        self._order = order
        self._pools: dict[Hashable, Pool] = {}
        self._lengths = eta.Lengths()
        #: What flows really got of their pool while they waited.
        self._got = eta.Shares()
        #: When `measure` came round last; None before it did.
        self._measured: float | None = None
        #: See `shares`; and what was charged since that was last brought up to date, by whole paths.
        self._shares: dict[Path, float] = {}
        # bounded: by _END_USERS, beyond which it is brought up to date
        self._fresh: dict[Path, float] = {}
        #: How wrong the last estimates were: |estimate - wait| / max(wait, 5 s).
        self.errors: deque[float] = deque(maxlen=_ERRORS)

    @property
    def shares(self) -> dict[Path, float]:
        """Flow from the team down to the end user -> units, fading. Bounded: end users by _END_USERS, the others by the keys that exist."""
        fresh, self._fresh = self._fresh, {}
        shares = self._shares
        for whole, units in fresh.items():
            for depth in range(2, DEPTH + 1):
                path = whole[:depth]
                if depth < DEPTH or path in shares or len(shares) < _END_USERS:
                    shares[path] = shares.get(path, 0.0) + units
        return shares

    def cost(self, ticket: Ticket) -> float:
        """Units that a ticket is expected to take."""
        line = ticket.line
        ticket.sort = sort = (ticket.flow.path, line)
        expected, cap = self._lengths.expected(sort, line), ticket.cap
        return W_IN * ticket.prompt + W_OUT * (expected if cap is None or expected <= cap else cap)

    def joined(self, ticket: Ticket, now: float) -> None:
        """It waits from now on."""
        self._got.joined(ticket.whose, now)

    def left(self, ticket: Ticket, now: float) -> None:
        """It waits no longer."""
        self._got.left(ticket.whose, now)

    def serve(self, ticket: Ticket, entry: Entry, serves: Collection[Hashable], now: float) -> None:
        """It found a free slot when it came, one that could have served all lines of that name."""
        units = ticket.booked = W_IN * ticket.prompt
        self._order.serve(entry, ticket.flow.path, ticket.line, ticket.flow.rank, serves, units)
        pool = self._begin(ticket, now)
        self._count(ticket, pool, units, now)

    def begin(self, ticket: Ticket, now: float) -> None:
        """It has a slot from now on, after its turn came."""
        self._charge(ticket, self._begin(ticket, now), W_IN * ticket.prompt, now)
        if ticket.eta is not None:
            wait = now - ticket.entered
            self.errors.append(abs(ticket.eta - wait) / max(wait, 5.0))
            ticket.eta = None

    def _begin(self, ticket: Ticket, now: float) -> Pool:
        ticket.placed = ticket.seen = now
        pool = self._pools.get(ticket.line)
        if pool is None:
            pool = self._pools[ticket.line] = Pool()
        pool.running.add(ticket)
        pool.serves = ticket.entry.serves if ticket.entry is not None else ()
        return pool

    def undo(self, ticket: Ticket) -> None:
        """The slot came to nothing: what was charged is given back."""
        pool = self._leave(ticket)
        self._charge(ticket, pool, -ticket.booked, ticket.seen)

    def end(self, ticket: Ticket, prompt: int, completion: int, now: float) -> None:
        """Its slot is free, and it is over in the fair order, too; this is what it really used. When nothing is known of that it pays for
        its time in the slot, but no more than was charged: a prompt that was read in vain kept others waiting, too."""
        entry, began, booked, pool = ticket.entry, ticket.placed, ticket.booked, self._leave(ticket)
        assert entry is not None
        pool.speed.worked(now - ticket.seen)
        used = W_IN * prompt + W_OUT * completion
        if not used and began is not None:
            used = min(booked, (now - began) * (pool.speed.known or 0.0))
        ticket.booked = used
        self._order.settle(entry, used - booked)
        self._count(ticket, pool, used - booked, now)
        if completion:
            most = ticket.cap if ticket.cap is not None else _LONGEST
            self._lengths.learn(completion if completion <= most else most, ticket.sort, ticket.line)  # noqa: FURB136 (min() is a call)

    def measure(self, now: float) -> None:
        """To be called about once a second."""
        passed, self._measured = now - (self._measured if self._measured is not None else now), now
        for line, pool in list(self._pools.items()):
            busy = sum(self._progress(ticket, pool, now) for ticket in pool.running)
            pool.speed.measure(pool.units, busy, passed)
            pool.units = 0.0
            if not pool.running and pool.speed.known is None:
                del self._pools[line]
        fading = 0.5 ** (passed / _HALF)
        self._shares = {path: left for path, units in self.shares.items() if (left := units * fading) >= 1.0}

    def wait(self, ticket: Ticket, ahead: Ahead, slots: int, now: float) -> float | None:
        """Seconds until a ticket that waits has one of so many slots; None when nobody can tell yet."""
        pools = self._near(ticket.line)
        speed = _speed(pools)
        if speed is None or slots < 1:
            return None
        presumed = ahead.own / ahead.units if ahead.units > 0 else 1.0
        share = self._got.expected(ticket.whose, presumed, now)
        owed = (other.entry.owed for pool in pools for other in pool.running if other.entry is not None)
        return eta.wait(ahead.units, ahead.own, share, speed * slots, eta.free(owed, slots, speed))

    def clears(self, line: Hashable, slots: int) -> float | None:
        """Seconds until so many slots have served all who wait in a line; None when nobody can tell yet."""
        speed = _speed(self._near(line))
        return self._order.backlog(line) / (speed * slots) if speed is not None and slots > 0 else None

    def _near(self, line: Hashable) -> list[Pool]:
        """What runs in slots that could serve a line, its own first."""
        mine = self._pools.get(line)
        serves = mine.serves if mine is not None else ()
        others = [pool for name, pool in self._pools.items() if name != line and (name in serves or line in pool.serves)]
        return [mine, *others] if mine is not None else others

    def _progress(self, ticket: Ticket, pool: Pool, now: float) -> float:
        """Charges what was produced since the last look; the seconds since then."""
        units = W_IN * ticket.prompt + W_OUT * self._produced(ticket, pool, now)
        if units > ticket.booked:
            self._charge(ticket, pool, units - ticket.booked, now)
        busy, ticket.seen = now - ticket.seen, now
        return busy

    def _produced(self, ticket: Ticket, pool: Pool, now: float) -> float:
        """Tokens of the answer so far; of one that comes in one piece, as many as were expected by now."""
        counted = ticket.holder.produced()
        if counted is not None:
            return counted
        assert ticket.entry is not None
        assert ticket.placed is not None
        expected = (ticket.entry.cost - W_IN * ticket.prompt) / W_OUT
        return min(max(expected, 0.0), (now - ticket.placed) * (pool.speed.known or 0.0) / W_OUT)

    def _charge(self, ticket: Ticket, pool: Pool, units: float, now: float) -> None:
        assert ticket.entry is not None
        ticket.booked += units
        self._order.charge(ticket.entry, units)
        self._count(ticket, pool, units, now)

    def _count(self, ticket: Ticket, pool: Pool, units: float, now: float) -> None:
        """What was charged, beside the fair order."""
        pool.units += units
        # who never waits has no share to be measured
        if self._order.is_awaited and (speed := pool.speed.known) is not None:
            self._got.served(ticket.whose, units, speed * max(1, len(pool.running)), now)
        fresh, path = self._fresh, ticket.flow.path
        fresh[path] = fresh.get(path, 0.0) + units
        if len(fresh) > _END_USERS:
            _ = self.shares

    def _leave(self, ticket: Ticket) -> Pool:
        pool = self._pools[ticket.line]
        pool.running.discard(ticket)
        ticket.placed = None
        return pool


def _speed(pools: list[Pool]) -> float | None:
    """Units per slot and second of the first that is known; None when none is."""
    return next((known for pool in pools if (known := pool.speed.known) is not None), None)

"""How long a ticket will wait: what stands before it, and who will pass it, divided by how fast the slots work.

    rate = units per slot and second x slots
    wait = max(units ahead, units of its own flow ahead / share of its flow) / rate + time until the first slot is free

Source of the shape: AI Horde's estimate (work ahead / work per second and thread x threads + remaining time of what runs). In a fair
order that alone is too low by a factor of two to five for whoever has much waiting, because others who want less arrive later and
pass. Who passes whom is what the order decides, by weights, classes and counters; so it is not modelled a second time but measured:
the *share* of the pool that a flow really got while something of it waited. What of its own stands before a ticket comes up at that
share of the rate, whoever passes meanwhile.

Units are those of `core.fair`: weighted tokens. Pure: seconds are given, never read.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from math import exp

#: Seconds after which a measurement of speed, or of a share, counts for a third.
MEMORY = 60.0
#: Output tokens that are expected of somebody of whom nothing is known.
UNKNOWN = 256.0
#: Seconds of waiting for which the presumed share counts beside the measured one.
_PRESUMED = 10.0
#: Units per second below which nothing can be foretold.
_STANDSTILL = 1e-6
#: How much of the newest answer enters the expectation.
_NEWEST = 0.1
#: Names whose lengths are remembered, and flows whose shares are.
_NAMES = 10_000


class Lengths:
    """How many tokens answers have, by whatever name they go: the mean of the last ones, newest counting most."""

    __slots__ = ("_means",)

    def __init__(self) -> None:
        self._means: OrderedDict[Hashable, float] = OrderedDict()

    def expected(self, *names: Hashable) -> float:
        """Of the first name that is known; names go from the particular to the general."""
        for name in names:
            mean = self._means.get(name)
            if mean is not None:
                return mean
        return UNKNOWN

    def learn(self, tokens: float, *names: Hashable) -> None:
        """An answer of that length ended, for all these names."""
        means = self._means
        for name in names:
            mean = means.pop(name, None)
            means[name] = tokens if mean is None else mean + _NEWEST * (tokens - mean)
        while len(means) > _NAMES:
            means.popitem(last=False)


class Speed:
    """Units that a busy slot does in a second, measured."""

    __slots__ = ("_seconds", "_units")

    def __init__(self) -> None:
        #: Both fade with time.
        self._units = self._seconds = 0.0

    def measure(self, units: float, busy: float, passed: float) -> None:
        """In the last `passed` seconds slots were busy for `busy` seconds in all, and did `units`."""
        kept = exp(-passed / MEMORY) if busy > 0 and passed > 0 else 1.0
        self._units = self._units * kept + max(0.0, units)
        self._seconds = self._seconds * kept + max(0.0, busy)

    def worked(self, busy: float) -> None:
        """As `measure`, for a slot that became free before the next look."""
        if busy > 0:
            self._seconds += busy

    @property
    def known(self) -> float | None:
        """Units per slot and second; None before anything was measured: then nothing can be foretold."""
        speed = self._units / self._seconds if self._seconds > 0 else 0.0
        return speed if speed > _STANDSTILL else None


class _Share:
    """What one flow got."""

    __slots__ = ("at", "got", "waited", "waiting")

    def __init__(self, now: float) -> None:
        #: Tickets that wait.
        self.waiting = 0
        #: Seconds that the whole pool worked for it while it waited, and seconds for which it waited; both fade with the latter, so what
        #: is known of a flow that is away is kept for its return.
        self.got = self.waited = 0.0
        #: When they were last brought up to date.
        self.at = now

    def until(self, now: float) -> None:
        """Time goes on to `now`; a clock that goes back is taken for one that stands."""
        passed = max(0.0, now - self.at)
        self.at = now
        if self.waiting and passed > 0:
            kept = exp(-passed / MEMORY)
            self.got *= kept
            self.waited = self.waited * kept + MEMORY * (1 - kept)


class Shares:
    """Which share of the pool each flow gets while something of it waits, measured. A flow is whatever is served as one: here the
    caller's path, line and class together."""

    __slots__ = ("_flows",)

    def __init__(self) -> None:
        #: Longest untouched first.
        self._flows: OrderedDict[Hashable, _Share] = OrderedDict()

    def joined(self, flow: Hashable, now: float) -> None:
        """One more ticket of the flow waits; tell `left` when it does no longer."""
        share = self._flows.get(flow)
        if share is None:
            share = self._flows[flow] = _Share(now)
            if len(self._flows) > _NAMES:
                self._flows.popitem(last=False)
        self._flows.move_to_end(flow)
        share.until(now)
        share.waiting += 1

    def left(self, flow: Hashable, now: float) -> None:
        """One ticket less of the flow waits."""
        if (share := self._flows.get(flow)) is not None:
            share.until(now)
            share.waiting = max(0, share.waiting - 1)

    def served(self, flow: Hashable, units: float, rate: float, now: float) -> None:
        """Units were charged for the flow; `rate`, above 0: what the whole pool does in a second."""
        if (share := self._flows.get(flow)) is not None and share.waiting:
            share.until(now)
            share.got += max(0.0, units) / rate

    def expected(self, flow: Hashable, presumed: float, now: float) -> float:
        """Between 0 and 1; `presumed` is the share that counts as long as little was measured."""
        share = self._flows.get(flow)
        if share is None:
            return presumed
        share.until(now)
        return min(1.0, (share.got + _PRESUMED * presumed) / (share.waited + _PRESUMED))


def wait(ahead: float, own: float, share: float, rate: float, free: float = 0.0) -> float:
    """Seconds until a ticket with `ahead` units before it, `own` of them of its own flow, has a slot; `share` is what its flow gets of
    `rate`, which is what the pool does in a second, above 0; `free`: seconds until the first slot is."""
    return max(ahead, own / share if share > 0 else 0.0) / rate + free


def free(owed: Iterable[float], slots: int, speed: float) -> float:
    """Seconds until the first slot is free; `owed`: units that each running request is still expected to cost, `speed`: units per slot
    and second, above 0."""
    running = sorted(owed)
    return max(0.0, running[0]) / speed if 0 < slots <= len(running) else 0.0

"""When a request whose answer has not begun is worth a second try elsewhere: once it has waited longer than 95 of 100 like it did.

What is learned is not seconds but how they compare with what was expected when the request was sent,

    lateness = (seconds until the first byte + SLACK) / (expected seconds + SLACK)

because prompts differ in size by a thousand times, and workers in speed by ten: the seconds of all of them together would hedge every long
prompt and no short one. The expectation has the size, what the worker remembers, what is read there before it, loading and the worker's own
speed in it already; what is left is what nobody foresaw. SLACK stands for what no prompt explains (a network, a scheduler): without it a
prompt that should take 20 ms and takes 60 would count as three times too late, and have long ones wait three times their time. Where
nobody expected anything the same formula, with 0 expected, compares plain seconds; such requests are kept apart.

The quantile is that of a histogram whose buckets are 9 % wide, and which forgets: half of it counts half once it is full. So it costs the
same however much was seen. Pure: seconds are given, never read.
"""

from collections import OrderedDict
from math import inf, log2

#: Part of requests that are in time.
SHARE = 0.95
#: Requests that must have been seen before anything is said, and from which on what was seen counts half.
ENOUGH, FULL = 50, 1000.0
#: Seconds that no expectation foresees; and the least after which a request is late, whatever was learned.
SLACK, LEAST = 0.25, 0.1
#: Nothing takes longer, in seconds.
WORST = 86_400.0
#: Sorts of requests that are remembered.
MOST = 1000
#: Buckets for each doubling of lateness, and the doublings below and above 1 that there are buckets for.
STEPS, BELOW, ABOVE = 8, 6, 12
_BUCKETS = STEPS * (BELOW + ABOVE)


class Lateness:
    """How late requests of one sort were."""

    __slots__ = ("_counts", "seen", "total")

    def __init__(self) -> None:
        #: By bucket; the last is for whatever is beyond all others.
        self._counts = [0.0] * (_BUCKETS + 1)
        #: All that counts, and all that was ever seen, up to ENOUGH.
        self.total = 0.0
        self.seen = 0

    def add(self, lateness: float) -> None:
        """One more; above 0."""
        if self.total >= FULL:
            self._counts = [count / 2 for count in self._counts]
            self.total = sum(self._counts)
        place = int((log2(lateness) + BELOW) * STEPS) if lateness > 2.0**-BELOW else 0
        self._counts[min(place, _BUCKETS)] += 1.0
        self.total += 1.0
        self.seen = min(self.seen + 1, ENOUGH)

    def quantile(self, share: float) -> float:
        """What this share of them is not above, too high by a bucket at most; infinite where there is no bucket for it."""
        rest = self.total * (1.0 - share)
        for place in range(_BUCKETS, -1, -1):
            rest -= self._counts[place]
            if rest < 0.0:
                return inf if place == _BUCKETS else 2.0 ** ((place + 1) / STEPS - BELOW)
        return 2.0**-BELOW


class Hedging:
    """Of all models."""

    __slots__ = ("_sorts",)

    def __init__(self) -> None:
        #: (model, whether something was expected) -> how late such requests are; those learned of least recently first.
        self._sorts: OrderedDict[tuple[str, bool], Lateness] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sorts)

    def learn(self, model: str, expected: float | None, seconds: float) -> None:
        """The first byte came after so many seconds (or not before, and then somebody else was faster); `expected`: seconds that were,
        None: nobody said."""
        key = model, expected is not None
        known = self._sorts.get(key)
        if known is None:
            known = self._sorts[key] = Lateness()
            if len(self._sorts) > MOST:
                self._sorts.popitem(last=False)
        self._sorts.move_to_end(key)
        known.add((_sound(seconds) + SLACK) / (_sound(expected or 0.0) + SLACK))

    def patience(self, model: str, expected: float | None) -> float | None:
        """Seconds after which a request of which so many were expected is late; None: too little was seen, or there is no telling."""
        known = self._sorts.get((model, expected is not None))
        if known is None or known.seen < ENOUGH:
            return None
        found = known.quantile(SHARE) * (_sound(expected or 0.0) + SLACK) - SLACK
        return max(found, LEAST) if found <= WORST else None


def _sound(seconds: float) -> float:
    return seconds if 0.0 <= seconds <= WORST else WORST

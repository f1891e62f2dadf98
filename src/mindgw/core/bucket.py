"""A rate as a bucket: it holds what may be used in one minute, and fills again at that rate.

Whoever finds it as full as a request needs may go on; what a request takes beyond what is in it is owed, and paid back by waiting. So
over any stretch of time no more is let in than `limit x (1 + minutes)`, and what a single round of requests took without anybody
knowing beforehand. Source: the leaky bucket as a meter (ITU-T I.371, annex A), with what is owed as the only state.

Everything is a whole number, so nothing is lost to rounding: time is in microseconds, what is owed in parts of which a minute has
`MINUTE` a piece. Pure: `now` is given, never read; one that lies before the last one is taken for that one.
"""

#: Microseconds of a minute.
MINUTE = 60_000_000
#: The largest limit; more is a slip of the keyboard.
MOST = 10**12


class Bucket:
    """`limit` pieces a minute, at least 1."""

    __slots__ = ("_at", "_owed", "limit")

    def __init__(self, limit: int, now: int) -> None:
        self.limit = limit
        #: What is missing until it is full, in parts of a piece; it may be more than it holds.
        self._owed = 0
        #: When that was so.
        self._at = now

    def left(self, now: int) -> int:
        """Whole pieces that are in it; below 0 when it owes some."""
        return self.limit + -(self._paid(now) if self._owed else 0) // MINUTE

    def take(self, pieces: int, now: int) -> None:
        """Takes them out, whether they are there or not."""
        self._owed = self._paid(now) + pieces * MINUTE

    def give(self, pieces: int, now: int) -> None:
        """Puts back what was taken and not used; it never holds more than its limit."""
        self._owed = max(0, self._paid(now) - pieces * MINUTE)

    def wait(self, pieces: int, now: int) -> int:
        """Microseconds until so many are in it, if nobody takes any; `pieces` up to the limit."""
        missing = self._paid(now) - (self.limit - pieces) * MINUTE
        return -(-missing // self.limit) if missing > 0 else 0

    def full_in(self, now: int) -> int:
        """Microseconds until it is full."""
        return -(-self._paid(now) // self.limit)

    def resize(self, limit: int, now: int) -> None:
        """Another limit from now on; the time until it is full stays what it is."""
        self._owed = self._paid(now) * limit // self.limit
        self.limit = limit

    def _paid(self, now: int) -> int:
        """What is owed now."""
        passed = now - self._at
        if passed > 0:
            self._at = now
            owed = self._owed - passed * self.limit
            self._owed = max(0, owed)
        return self._owed

"""So many at once, then one each interval: the generic cell rate algorithm (ITU-T I.371, annex A), with one moment as its only state."""


class Throttle:
    """Lets `burst` through at once, and on the whole no more than one in `interval` seconds."""

    __slots__ = ("_ahead", "_due", "_interval")

    def __init__(self, burst: int, interval: float) -> None:
        self._interval = interval
        #: Seconds that it may be ahead of an even pace.
        self._ahead = (burst - 1) * interval
        #: When the next one would be due at that pace.
        self._due = float("-inf")

    def lets(self, now: float) -> bool:
        """Whether one may pass now; if so, it has."""
        if self._due - now > self._ahead:
            return False
        self._due = max(self._due, now) + self._interval
        return True

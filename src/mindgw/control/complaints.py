"""What is told of workers' misdeeds: of each worker and each matter one event a minute, so that nobody can fill the audit log.

What is left out meanwhile is counted, and told with the next event or when the minute is over. Nothing in here waits or writes.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

#: Seconds between two events.
MINUTE = 60.0

#: An action and its details; `count` among them is how many things it is about.
Note = tuple[str, dict[str, Any]]


class _Last(msgspec.Struct):
    """The last event of one worker and matter."""

    #: Monotonic second.
    at: float
    #: Things that were left out since.
    left_out: int = 0

    def is_over(self, now: float) -> bool:
        return now - self.at >= MINUTE


class Complaints:
    """Whoever writes notes asks first what is `due`, and says afterwards that it was `noted`: a transaction may fail in between."""

    def __init__(self) -> None:
        #: (worker, action) -> its last event.
        # bounded: by the workers of one minute, a few actions each; `tidy` forgets the others
        self._last: dict[tuple[str, str], _Last] = {}

    def due(self, worker_id: str, notes: Sequence[Note], now: float) -> list[Note]:
        """Those to be told now, with what was left out before."""
        found = []
        for action, detail in notes:
            last = self._last.get((worker_id, action))
            if last is None or last.is_over(now):
                found.append((action, {**detail, "left_out": last.left_out} if last is not None and last.left_out else detail))
        return found

    def noted(self, worker_id: str, notes: Sequence[Note], now: float) -> None:
        """What was due of these is told."""
        for action, detail in notes:
            last = self._last.get((worker_id, action))
            if last is None or last.is_over(now):
                self._last[worker_id, action] = _Last(now)
            else:
                last.left_out += detail.get("count", 1)

    def rest(self, now: float) -> list[tuple[str, Note]]:
        """Workers, and what is to be told of them because something was left out and their minute is over."""
        return [
            (worker_id, (action, {"left_out": last.left_out}))
            for (worker_id, action), last in self._last.items()
            if last.left_out and last.is_over(now)
        ]

    def tidy(self, now: float) -> None:
        """What was the `rest` is told, and begins another minute; what nothing was left out of is forgotten."""
        over = {key: last for key, last in self._last.items() if last.is_over(now)}
        for key, last in over.items():
            if last.left_out:
                self._last[key] = _Last(now)
            else:
                del self._last[key]

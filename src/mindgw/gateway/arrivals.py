"""Agents whose greeting goes on, and what is decided about them meanwhile.

What the database says of a worker is read before its session begins, and some words go to and fro after that. Whoever decides something
in that time finds no session, or an older one: it is noted here, for the one to come.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from mindgw_agent.wire import Goodbye


class Arrival:
    """One greeting."""

    __slots__ = ("charge", "drained", "goodbye")

    def __init__(self) -> None:
        #: What was decided since it began; None: nothing. An empty charge is one that was dropped.
        self.drained: bool | None = None
        self.charge: str | None = None
        #: Why it may not come in any more.
        self.goodbye: Goodbye | None = None


class Arrivals:
    """All greetings. One owner: synchronous on the event loop."""

    def __init__(self) -> None:
        #: By the ids of workers.
        # bounded: by the greetings that go on
        self._open: dict[str, list[Arrival]] = {}

    @contextmanager
    def expect(self, worker_id: str) -> Iterator[Arrival]:
        """To be entered before the database is asked, and left once the session is attached."""
        arrival = Arrival()
        self._open.setdefault(worker_id, []).append(arrival)
        try:
            yield arrival
        finally:
            others = self._open[worker_id]
            others.remove(arrival)
            if not others:
                del self._open[worker_id]

    def drain(self, worker_id: str, *, drained: bool) -> None:
        """An operator wants nothing new sent to a worker, or wants so no longer."""
        for arrival in self._open.get(worker_id, ()):
            arrival.drained = drained

    def accuse(self, worker_id: str, charge: str) -> None:
        """A worker is in quarantine; with an empty charge: it is not any more."""
        for arrival in self._open.get(worker_id, ()):
            arrival.charge = charge

    def dismiss(self, worker_id: str, goodbye: Goodbye) -> None:
        """A worker may not come in."""
        for arrival in self._open.get(worker_id, ()):
            arrival.goodbye = goodbye

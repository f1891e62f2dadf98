"""What was decided about workers at another server of the database: it holds for the links that are here, too."""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from mindgw.gateway.errands import Errands
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.seat import Worker


class Said(Protocol):
    """What the database says of a worker."""

    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def drained(self) -> bool: ...


class Decrees:
    """Of all workers. One owner: synchronous on the event loop."""

    def __init__(self, fleet: Fleet, errands: Errands, remove: Callable[[str], None], lock: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._errands = errands
        #: Close the link of a worker, by its id.
        self._remove = remove
        self._lock = lock

    @property
    def mark(self) -> int:
        """To be kept before the database is read; `heed` is told."""
        return self._fleet.decisions

    @property
    def present(self) -> Collection[str]:
        """Ids of the workers that have a link here."""
        return self._fleet.workers.keys()

    def heed(self, said: Mapping[str, Said], mark: int) -> None:
        """What was read since `mark`. Where something was decided here about a worker meanwhile it may be older than that: then it waits
        for the next time, and nobody else does."""
        for worker in list(self._fleet.workers.values()):
            one = said.get(worker.id)
            if one is not None and worker.decided <= mark and worker.link.closing is None:
                self._obey(worker, one)

    def _obey(self, worker: Worker, said: Said) -> None:
        if said.state in {"removed", "locked"}:
            (self._remove if said.state == "removed" else self._lock)(worker.id)
            return
        if said.drained != worker.drained:
            (self._errands.drain if said.drained else self._errands.undrain)(worker.id)
        if said.state == "quarantined":
            if not worker.charge:
                self._fleet.accuse(worker, said.reason)
            worker.booked = True
        # a charge that is not written down yet is none of the database's
        elif said.state == "active" and worker.charge and worker.booked:
            self._errands.release(worker.id)

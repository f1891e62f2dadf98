"""When something may have to be done about a request that nothing else happens to: `Patience`, in this server."""

from mindgw.config import Timeouts
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.meter import Tally
from mindgw.gateway.patience import Limit, Patience
from mindgw.gateway.queue import Queue

#: Seconds between looks at the fleet while a request waits.
LOOK = 1.0


class Watch(Patience):
    """Over all requests. Monotonic seconds."""

    def __init__(self, timeouts: Timeouts, fleet: Fleet, queue: Queue) -> None:
        super().__init__(timeouts)
        self._fleet = fleet
        self._queue = queue

    def look(self, tally: Tally, now: float) -> None:
        """Looks whether a worker that has the model may take requests."""
        if self._is_there(tally):
            tally.seen = now

    def _is_there(self, tally: Tally) -> bool:
        return bool(tally.asked) and self._fleet.present(*tally.goal)

    def limit(self, tally: Tally, *, waiting: bool) -> Limit:
        """When patience ends, and what the caller hears then."""
        return self.waiting(tally, self._is_there(tally)) if waiting else self.running(tally)

    def next_sign(self, tally: Tally, *, waiting: bool, begun: bool) -> float:
        """When a client that hears nothing should be told something; `begun`: the head of its stream has left."""
        return self.sign_due(tally, begun=begun, waiting=self._queue.leisure if waiting else 0.0)

    def due(self, tally: Tally, now: float, *, waiting: bool, begun: bool) -> float:
        """When something may have to be done."""
        if not waiting and not tally.stream:
            return self.running(tally)[0]  # nobody is told that he is not forgotten
        look = now + LOOK * self._queue.leisure if waiting else tally.hedge
        return min(self.limit(tally, waiting=waiting)[0], self.next_sign(tally, waiting=waiting, begun=begun), look)

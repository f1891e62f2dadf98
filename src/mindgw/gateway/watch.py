"""How long one request may take where it is, and when its client should hear that it is not forgotten: `Patience`, in this server."""

from mindgw.gateway.admission import Ask
from mindgw.gateway.meter import Tally
from mindgw.gateway.patience import FOREVER, Limit, Patience
from mindgw.gateway.stages import Stages

#: Seconds between looks at the fleet while a request waits.
LOOK = 1.0


class Watch(Patience):
    """Over one request, whose `tally` says how far it has come. Monotonic seconds."""

    __slots__ = ("_fleet", "_model", "_queue", "_tally")

    def __init__(self, stages: Stages, tally: Tally, now: float) -> None:
        super().__init__(stages.timeouts, now)
        self._fleet = stages.fleet
        self._queue = stages.queue
        self._tally = tally
        #: What it asks for; "" until it was admitted.
        self._model = ""

    def admitted(self, ask: Ask, now: float) -> None:
        """It may wait from now on."""
        self._model, self.deadline, self.queued = ask.peek.model, ask.deadline, now

    def look(self, now: float) -> None:
        """Looks whether a worker that has the model may take requests."""
        if self._is_there():
            self.seen = now

    def _is_there(self) -> bool:
        return bool(self._model) and self._fleet.present(self._model)

    def limit(self, *, waiting: bool) -> Limit:
        """When patience ends, and what the caller hears then."""
        if waiting:
            return self.waiting(self._is_there())
        placed = self._tally.placed if self._tally.placed is not None else self.queued
        return self.running(placed, self._tally.stream, begun=self._tally.first is not None)

    def next_sign(self, *, waiting: bool, begun: bool) -> float:
        """When a client that hears nothing should be told something; `begun`: the head of its stream has left."""
        return self.sign_due(self._tally.stream, begun=begun, waiting=self._queue.leisure if waiting else 0.0)

    def due(self, now: float, *, waiting: bool, begun: bool) -> float:
        """When something may have to be done."""
        look = now + LOOK * self._queue.leisure if waiting else FOREVER
        return min(self.limit(waiting=waiting)[0], self.next_sign(waiting=waiting, begun=begun), look)

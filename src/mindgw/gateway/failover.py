"""What all requests share when workers fail them: the breaker is told of every end, retries come out of one budget, and attempts that
were given up on keep their slots until their workers let go."""

from mindgw import errors, metrics
from mindgw.config import Routing
from mindgw.core.breaker import ALL, End, Who
from mindgw.core.hedging import Hedging
from mindgw.core.retries import Shares
from mindgw.core.routing import Where
from mindgw.gateway import ejection
from mindgw.gateway.attempt import Leftovers
from mindgw.gateway.fleet import Fleet, Placement
from mindgw.gateway.route import Needs
from mindgw.gateway.seat import REST

#: How an engine says that it has no such model, or no such way to ask for it.
UNABLE = frozenset({404, 405, 501})
#: How it says that it has no room.
FULL = frozenset({429, 503})


class Failover:
    """Monotonic seconds throughout."""

    def __init__(self, fleet: Fleet, settings: Routing, counters: metrics.Counters, now: float) -> None:
        self._fleet = fleet
        self._counters = counters
        #: Workers that one request is tried on.
        self.tries = settings.tries
        self._retries = Shares(settings.retries / 100, settings.retries_least, now)
        self.leftovers = Leftovers()
        #: When a second try beside the first is worth it.
        self.hedging = Hedging()

    def offer(self, org: str, now: float) -> None:
        """A request of an organisation is sent to a worker for the first time."""
        self._retries.offer(org, now)

    def may(self, org: str, needs: Needs, now: float) -> bool:
        """Whether its request that an engine failed is tried again: there is another engine for it, and that is paid for."""
        if not ejection.others(self._fleet, needs.model, needs.kind, needs.shun, now, needs.where):
            return False
        if self._retries.take(org, now):
            return True
        self._counters.retries_refused += 1
        return False

    def replaced(self, code: str) -> None:
        """Another worker is asked, for this reason; the caller does not hear of it."""
        self._counters.failovers[code] += 1

    def may_hedge(self, org: str, now: float) -> bool:
        """Whether a second try beside one that is late would be paid for, out of the same budget."""
        return self._retries.left(org, now) >= 1.0

    def hedges(self, org: str, now: float) -> None:
        """It is made; to be called when it may be, and there is a slot for it."""
        self._retries.take(org, now)

    def hedged(self, outcome: str) -> None:
        """What became of one, or why there was none."""
        self._counters.hedges[outcome] += 1

    # -- what becomes known of workers ----------------------------------------------------------------------------

    def served(self, placement: Placement, now: float) -> None:
        """An answer began, or ended well."""
        placement.seat.rest = REST
        breaker = self._fleet.breaker
        if not breaker.is_quiet:
            probe, placement.probe = placement.probe, None
            breaker.ended((placement.seat.id, placement.model), True, (), now, probe)

    def failed(self, placement: Placement, where: Where, now: float, who: Who = ALL) -> End:
        """A request that might go to such a place came to nothing there, which is the fault of the worker, or of the one who sent it."""
        fleet, seat = self._fleet, placement.seat
        probe, placement.probe = placement.probe, None
        pool = frozenset(ejection.present(fleet, placement.model, placement.kind, where))
        if fleet.breaker.ended((seat.id, placement.model), False, pool, now, probe, who):
            self._counters.ejections[seat.worker.name, placement.model] += 1
        return End(now, False, who)

    def withdraw(self, placement: Placement, end: End) -> None:
        """That was not the worker's fault."""
        self._fleet.breaker.withdraw((placement.seat.id, placement.model), end)

    def lacks(self, placement: Placement, where: Where, now: float) -> bool:
        """The engine says that it has no such model, or no such way to ask for it. Whether that is believed."""
        return self._fleet.doubt(placement.seat, placement.model, placement.kind, now, where)

    def has(self, placement: Placement) -> None:
        """It is not believed any more."""
        self._fleet.trust(placement.seat, placement.model, placement.kind)

    # -- who waits in vain ----------------------------------------------------------------------------------------

    def check(self, needs: Needs, now: float, who: Who) -> None:
        """As `look`, of somebody who is there: what rests on too little for them is opened."""
        fleet = self._fleet
        if not fleet.breaker.is_quiet:
            fleet.breaker.comes(fleet.ids(needs.model), who, now)
        self.look(needs, now)

    def look(self, needs: Needs, now: float) -> None:
        """Raises NoWorker when the only engine that could serve it fails whatever it is sent, and BadRequest when it turned out that none
        can. What nobody has or had is a ModelNotFound, or a NoResidence."""
        fleet = self._fleet
        fleet.check(needs.model, needs.kind, needs.where)
        if not fleet.breaker.tripped:
            return
        wait = ejection.cut_off(fleet, needs.model, needs.kind, now, needs.where)
        if wait is not None:
            raise errors.NoWorker("The only worker of this model fails whatever it is sent.", retry_after=wait)

    def is_stranded(self, needs: Needs, now: float) -> bool:
        """Whether all engines that are left for a request have failed it."""
        return bool(needs.shun) and not ejection.others(self._fleet, needs.model, needs.kind, needs.shun, now, needs.where)

    def sweep(self, now: float) -> None:
        """To be called a few times a second."""
        self.leftovers.sweep(now)
        self._fleet.sweep(now)

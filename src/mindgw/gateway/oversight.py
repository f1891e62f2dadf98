"""What operators see of the requests that are under way, of queue, workers and models, and what they do about them: the side of the
pipeline that management looks at. Nothing here is on the path of a request.
"""

from collections.abc import Callable, Sequence

from mindgw import errors
from mindgw.core.routing import EVERYWHERE, Where
from mindgw.gateway import lineup as views
from mindgw.gateway import roster, signals
from mindgw.gateway.accounts import Accounts
from mindgw.gateway.admission import Caller
from mindgw.gateway.exchange import Exchange
from mindgw.gateway.failover import Failover
from mindgw.gateway.fleet import Fleet
from mindgw.gateway.flows import flow
from mindgw.gateway.queue import Queue
from mindgw.gateway.routes import Routes, Way
from mindgw.gateway.snapshot import BudgetView, ModelView, Offer, Snapshot
from mindgw.gateway.stages import Stages
from mindgw.gateway.story import told
from mindgw.gateway.ticket import Ticket
from mindgw.store.stories import Story


class Oversight:
    """Of what the pipeline has and does; it makes these, and says there what they are."""

    fleet: Fleet
    queue: Queue
    routes: Routes
    accounts: Accounts
    _failover: Failover
    _stages: Stages
    _running: set[Exchange]
    _started: float
    _now: Callable[[], float]

    def post(self, exchange: Exchange, event: signals.Event) -> None:
        """Brings an event to its exchange and carries out what follows."""
        raise NotImplementedError

    # -- operators ---------------------------------------------------------------------------------------------

    def cancel_request(self, request_id: str) -> bool:
        """Ends a request that waits or runs, with an error that says who did; False when there is none of this id, or its client has been
        served or is gone already."""
        exchange = self._find(request_id)
        if exchange is None or not self.is_under_way(request_id):
            return False
        self.post(exchange, signals.Stopped(errors.Cancelled()))
        return True

    def is_under_way(self, request_id: str) -> bool:
        """Whether `cancel_request` would end something."""
        exchange = self._find(request_id)
        return exchange is not None and exchange.state is not signals.CLOSING

    def waits(self, request_id: str) -> bool:
        """Whether `bump_request` would do something."""
        exchange = self._find(request_id)
        return exchange is not None and exchange.ticket is not None and exchange.ticket.waiting

    def bump_request(self, request_id: str) -> bool:
        """Puts a request that waits before all others; False when none of this id waits."""
        exchange = self._find(request_id)
        ticket = exchange.ticket if exchange is not None else None
        if ticket is None or not ticket.waiting:
            return False
        self.queue.bump(ticket, self._now())
        self.queue.wake(self._now())
        return True

    def pause_queue(self, model: str = "") -> None:
        """Nobody is given a slot, for one model or at all; who runs goes on."""
        self.queue.pause(model)

    def resume_queue(self, model: str = "") -> None:
        """Ends one pause, or all of them."""
        self.queue.resume(model)
        self.queue.wake(self._now())

    def runs(self, request_id: str) -> bool:
        """Whether a request is under way here."""
        return self._find(request_id) is not None

    def _find(self, request_id: str) -> Exchange | None:
        return next((exchange for exchange in self._running if exchange.head.request_id == request_id), None)

    # -- views ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The live state, as values."""
        return Snapshot(
            workers=roster.workers(self.fleet, self._now()),
            waiting=self.queue.waiting,
            running=self.fleet.used,
            started_at=self._started,
        )

    def lineup(self) -> list[views.Entry]:
        """Who waits, in the order of their turns, then who runs; a thousand of either."""
        return views.entries(self._running, self.queue, self._taken, self._now())

    async def ranking(self, wanted: views.Wanted) -> list[str]:
        """Ids of all who are wanted: who waits in the order of their turns, then who runs."""
        return await views.ranking(self._running, self.queue, wanted)

    async def places_of(self, request_ids: Sequence[str]) -> list[views.Entry]:
        """Those of them that wait or run, in the same order."""
        return await views.entries_of(self._running, self.queue, self._taken, self._now(), request_ids)

    def place_of(self, request_id: str) -> views.Entry | None:
        """A request that waits or runs; None when there is none of this id."""
        return views.find(self._running, self.queue, self._taken, self._now(), request_id)

    def offers_of(self, model: str) -> dict[str, frozenset[str]]:
        """Id of each model that goes by a name -> all names of that one; empty when nobody knows it now."""
        return self.fleet.offers(model)

    def legs_of(self, model: str) -> list[str]:
        """The models that requests for a name go to by its route; empty when it has none, or one that leads nowhere."""
        return self.routes.legs(model)

    def org_of(self, request_id: str) -> str:
        """Id of the organisation whose request waits or runs; "" when there is none of this id."""
        exchange = self._find(request_id)
        return exchange.caller.org_id if exchange is not None and exchange.caller is not None else ""

    def story(self, request_id: str) -> Story | None:
        """What became so far of a request that is under way, or all of it of one that was over a moment ago; None for all others."""
        exchange = self._find(request_id)
        facts = exchange.facts() if exchange is not None else None
        if facts is not None:
            return told(facts)
        return self._stages.stories.find(request_id) if self._stages.stories is not None else None

    def queue_stats(self) -> views.Stats:
        """The queue in numbers."""
        return views.stats(self.queue, self.fleet.used, self.fleet.serves, self._now())

    def budgets(self) -> list[BudgetView]:
        """The budgets that requests fell under of late."""
        return self.accounts.quotas.standings()

    def served(self, where: Where = EVERYWHERE) -> list[ModelView]:
        """The models that are served now in a place, by name."""
        return roster.models(self.fleet, where)

    def models(self, caller: Caller | None = None) -> list[Offer]:
        """What can be asked for now, by name; of a caller: by it."""
        return self.routes.offers(caller)

    def explain(self, caller: Caller, model: str, kind: str) -> Way:
        """What would become of a request of that caller now; nothing is sent."""
        now = self._now()
        return self.routes.explain(caller, model, kind, flow(caller, (), "", ""), lambda needs: self._failover.look(needs, now))

    def _taken(self, ticket: Ticket) -> tuple[int, int]:
        return self.fleet.taken(*ticket.line)

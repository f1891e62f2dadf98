"""The live workers and the leases of their slots. One owner, one thread, no awaits."""

from collections.abc import Callable, Collection, Mapping

from msgspec.structs import replace

from mindgw.core.breaker import Breaker
from mindgw.core.routing import EVERYWHERE, KEPT, Rules, Where, kept_for
from mindgw.core.worker import Event, State, step
from mindgw.gateway.arrivals import Arrivals
from mindgw.gateway.experience import Choice, Experience
from mindgw.gateway.seat import LONG_REST, Seat, Worker, alike
from mindgw.gateway.serving import Serving
from mindgw.gateway.verdict import judge
from mindgw_agent import wire

#: Seconds for which an engine's word is believed that it has no such model, against its agent's report.
DOUBT = 300.0


class Placement:
    """A slot on a worker for one attempt; `release` gives it back, once, however often it is called."""

    __slots__ = ("_fleet", "_held", "choice", "kind", "model", "probe", "seat")

    def __init__(self, fleet: "Fleet", seat: Seat, model: str, kind: str = "", choice: Choice | None = None) -> None:
        self._fleet = fleet
        self.seat = seat
        #: Why this one; None when there was no other.
        self.choice = choice
        #: The name by which this worker's engine knows the model.
        self.model = model
        #: chat, completions or embeddings.
        self.kind = kind
        self._held = True
        #: The probe that it is, until it is known how that ended; None for almost all.
        self.probe = fleet.breaker.tried((seat.id, model)) if fleet.breaker.tripped else None
        fleet.turns += 1
        seat.turn = fleet.turns
        seat.used += 1
        if seat.ranks:
            seat.changed()

    @property
    def names(self) -> Collection[str]:
        """All names that the model goes by there."""
        offer = self.seat.model(self.model)
        return (offer.id, *offer.aliases) if offer is not None else (self.model,)

    def release(self) -> None:
        """Gives the slot back; calling it again does nothing."""
        if self._held:
            self._held = False
            if self.probe is not None:
                self._fleet.breaker.void(self.probe)
            seat = self.seat
            seat.used -= 1
            if seat.ranks:
                seat.changed()
            self._fleet.changed()


class Fleet(Serving):
    """All workers that have a link now."""

    def __init__(self, on_change: Callable[[], None], strategy: str = "score", breaker: Breaker | None = None) -> None:
        super().__init__()
        #: Called after a slot became free or a worker changed, as somebody may be placed now; must not raise.
        self.changed = on_change
        #: Where models fail.
        self.breaker = breaker or Breaker()
        #: Agents that are about to come.
        self.arrivals = Arrivals()
        #: Leases so far.
        self.turns = 0
        #: Sessions that began, and what was decided here about them, so far; each worker knows which was the last about it.
        self.decisions = 0
        #: By what rule one of several seats is taken, where nothing else is wished; and what was seen of them.
        self.strategy = strategy
        self.experience = Experience()
        #: Seats that cannot serve what their reports say, and until when that is believed.
        # bounded: by the seats of the last minutes
        self._doubted: dict[Seat, float] = {}

    def attach(self, worker: Worker, approved: bool) -> Worker | None:
        """Takes a freshly authenticated session; an older one of the same agent is told to go, and returned: the caller must tell
        those who wait for its answers, once the new one has reported. What the older one was accused of goes on."""
        self._decides(worker)
        older = self.workers.get(worker.id)
        self.workers[worker.id] = worker
        if older is not None and not worker.charge:
            worker.charge, worker.booked = older.charge, older.booked
        if not worker.charge:
            self.remembered.pop(worker.id, None)
        worker.rules = self.rules
        self._label(worker)
        worker.state = step(step(State.OFFLINE, Event.DIALLED), Event.WELCOMED if approved else Event.HELD)
        if older is not None:
            self._leave(older)
            older.link.goodbye("replaced", "A newer session of this agent took over.")
        return older

    def detach(self, worker: Worker) -> None:
        """Forgets a session that ended; nothing happens when a newer one has taken its place."""
        if self.workers.get(worker.id) is worker:
            del self.workers[worker.id]
            if worker.is_inside and not worker.link.is_revoked:
                self._remember(worker)
            self._leave(worker)
            self._index()

    def report(self, worker: Worker, report: wire.Report) -> wire.Report | None:
        """Takes an agent's report, and gives it back as it may be used; one that is older than the last is dropped: None."""
        if report.serial <= worker.serial:
            return None
        worker.serial = report.serial
        report, charge = judge(report)
        if charge:
            self.accuse(worker, charge)  # before the report counts: what is waited for is what it had before
        worker.gpus = list(report.gpus)
        self._keep(worker, list(report.teams))
        worker.paused_until = report.paused_until
        worker.draining = worker.draining or report.draining
        before = {id: seat.engine.models for id, seat in worker.seats.items()}
        old, worker.seats = worker.seats, {}
        for engine in report.engines:
            seat = old.get(engine.id) or Seat(worker, engine)
            # an engine that gives no answer names no models; who asks for them waits for it, as for a worker that is away
            lost = not engine.healthy and not engine.models
            if seat.unable and not lost and not alike(seat.engine.models, engine.models):
                seat.doubt(frozenset())
            seat.engine = replace(engine, models=seat.engine.models) if lost else engine
            worker.seats[engine.id] = seat
        for id, seat in old.items():
            if id in worker.seats:
                continue
            if seat.used:  # it may come back while its slots are still leased
                seat.engine = replace(seat.engine, healthy=False, slots=0, models=[])
                worker.seats[id] = seat
            else:
                self.experience.left(seat)
        self._settle(worker)
        after = {id: seat.engine.models for id, seat in worker.seats.items()}
        if worker.is_inside and (before.keys() != after.keys() or not all(alike(before[id], after[id]) for id in after)):
            self._index()
        self.changed()
        return report

    def _keep(self, worker: Worker, teams: list[str]) -> None:
        """Its owner keeps it for these teams; none: for all."""
        if teams == worker.teams:
            return
        worker.teams = teams
        self._label(worker)
        self._index()
        if teams and not self.is_kept:
            self.is_kept = True
            self.kept += 1

    def _label(self, worker: Worker) -> None:
        """Its tags, with those of its owner's making."""
        plain = self.tags.get(worker.id) or {name: value for name, value in worker.tags.items() if name != KEPT}
        worker.tags = {**plain, **kept_for(worker.teams)} if worker.teams else plain

    def leaves(self, worker: Worker) -> None:
        """Its agent comes to its end: no new requests for this session."""
        worker.draining = True
        self._settle(worker)

    def adopt(self, rules: Rules, tags: Mapping[str, Mapping[str, str]]) -> None:
        """These rules and tags from now on; `tags`: those of all workers, by their ids."""
        if rules.routes == self.rules.routes and tags == self.tags:
            return
        self.rules, self.tags = rules, dict(tags)
        for worker in self.workers.values():
            worker.rules = rules
            self._label(worker)
            for seat in worker.seats.values():
                seat.forget()
        self._index()
        self.changed()

    def pauses(self, worker: Worker) -> None:
        """Its owner wants it for a while, as it said when it turned a request down; its next report says more."""
        worker.state = step(worker.state, Event.PAUSE)
        self.changes += 1
        for seat in worker.seats.values():
            seat.changed()

    def drain(self, worker: Worker) -> None:
        """An operator wants no new requests on it, until `undrain`."""
        self._decides(worker)
        worker.drained = True
        self._settle(worker)

    def undrain(self, worker: Worker) -> None:
        """Ends what `drain` began."""
        self._decides(worker)
        worker.drained = False
        if not worker.draining:
            worker.state = step(worker.state, Event.UNDRAIN)
        self._settle(worker)
        self.changed()

    def accuse(self, worker: Worker, charge: str) -> None:
        """It said what cannot be true: no new requests until an operator has looked. The first charge stays."""
        if worker.is_inside:
            self._remember(worker)
        if not worker.charge:  # an agent that goes on lying decides nothing anew
            self._decides(worker)
            worker.charge, worker.booked = charge, False
        self.arrivals.accuse(worker.id, worker.charge)
        self._settle(worker)

    def booked(self, worker: Worker) -> None:
        """What it is accused of stands in the database, so that whoever says otherwise from now on has released it."""
        self._decides(worker)
        worker.booked = True

    def release(self, worker: Worker) -> None:
        """Ends what `accuse` began."""
        self._decides(worker)
        worker.charge = ""
        self.remembered.pop(worker.id, None)
        worker.state = step(worker.state, Event.RELEASE)
        self._settle(worker)
        self.changed()

    def rest(self, seat: Seat, now: float) -> None:
        """Leaves a seat alone for a moment, because its engine had no room although its slots were not all leased; for twice as long each
        time that this happens with nothing served between."""
        seat.rests_until = now + seat.rest
        seat.rest = min(2 * seat.rest, LONG_REST)

    def doubt(self, seat: Seat, model: str, kind: str, now: float, where: Where = EVERYWHERE) -> bool:
        """An engine has no such model, or no such way to ask for it: it is not asked again until its agent reports other models, or for
        DOUBT seconds. False: it goes on to be asked, as there is nobody else in that place."""
        if not any(other is not seat and other.is_up for other in self.seats(model, kind, where)):
            return False
        seat.doubt(seat.unable | _lines(seat, model, kind))
        self._doubted[seat] = now + DOUBT
        self._index()
        return True

    def trust(self, seat: Seat, model: str, kind: str) -> None:
        """It was wrong to `doubt` that."""
        seat.doubt(seat.unable - _lines(seat, model, kind))
        self._index()
        self.changed()

    def sweep(self, now: float) -> None:
        """To be called now and then: what is known of failures, and is long ago, is forgotten."""
        self.breaker.sweep(now)
        for seat in [seat for seat, until in self._doubted.items() if now >= until]:
            del self._doubted[seat]
            seat.doubt(frozenset())
            self._index()

    def lease(self, seat: Seat, model: str = "") -> Placement:
        """Takes one slot of a seat that is free, for a model that its engine knows by that name."""
        return Placement(self, seat, model)

    @property
    def used(self) -> int:
        """Slots that are leased, of all workers."""
        return sum(worker.used for worker in self.workers.values())

    def _decides(self, worker: Worker) -> None:
        """What was read of it before is out of date."""
        self.decisions += 1
        worker.decided = self.decisions

    def _leave(self, worker: Worker) -> None:
        """Nothing is sent to this session any more."""
        worker.state = step(worker.state, Event.LOST)
        for seat in worker.seats.values():
            self.experience.left(seat)
            seat.changed()

    def _settle(self, worker: Worker) -> None:
        """Says again what is true of it, the weightiest last."""
        is_up = any(seat.engine.healthy for seat in worker.seats.values())
        events = [Event.PAUSE if worker.paused_until else Event.RESUME, Event.ENGINE_UP if is_up else Event.ENGINE_DOWN]
        events += [Event.DRAIN] * (worker.drained or worker.draining) + [Event.ACCUSE] * bool(worker.charge)
        for event in events:
            worker.state = step(worker.state, event)
        self.changes += 1
        if worker.is_inside is not (worker in self._indexed):
            self._index()
        for seat in worker.seats.values():
            seat.changed()

    def _remember(self, worker: Worker) -> None:
        """What it has now is waited for once it is away."""
        self.remembered[worker.id] = frozenset(name for seat in worker.seats.values() for name in seat.names())


def _lines(seat: Seat, model: str, kind: str) -> frozenset[tuple[str, str]]:
    """What a model of an engine is asked for by."""
    found = seat.model(model)
    return frozenset((name, kind) for name in ((found.id, *found.aliases) if found is not None else (model,)))

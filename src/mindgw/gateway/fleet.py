"""The live workers and the leases of the slots that their engines announce. One owner, one thread, no awaits.

A *seat* is one engine of one worker. The number of slots is the agent's word; the leases are counted here, so two requests
can never be promised the same slot. A seat whose engine said "busy" all the same rests for a moment before it is tried again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

from msgspec.structs import replace

from mindgw import errors
from mindgw.core.breaker import Breaker
from mindgw.core.routing import EVERYWHERE, OWN, Rules, Where, permits, shown
from mindgw.core.worker import Event, State, step
from mindgw.gateway.experience import Choice, Experience, Past
from mindgw.gateway.places import Line, Part, Places
from mindgw.gateway.rank import FULL, Rank
from mindgw.gateway.tunnel import Link
from mindgw.gateway.verdict import judge
from mindgw_agent import wire

#: Seconds for which a seat is left alone after its agent answered BUSY.
REST = 0.5
#: The most of them, after it answered so again and again.
LONG_REST = 8.0
#: Seconds for which an engine's word is believed that it has no such model, against its agent's report.
DOUBT = 300.0
#: Asked for at every step: a member of an Enum costs more than a call.
_READY = State.READY


class Worker:
    """One session of one agent."""

    __slots__ = (
        "charge", "drained", "draining", "epoch", "gpus", "id", "last_seen", "link", "name", "paused_until", "rtt", "rules", "seats",
        "serial", "state", "tags", "teams",
    )  # fmt: skip

    def __init__(self, id: str, name: str, epoch: int, link: Link) -> None:
        self.id = id
        self.name = name
        #: Counts the sessions of this agent; a worker of an older epoch is void.
        self.epoch = epoch
        self.link = link
        self.state = State.CONNECTING
        #: What an operator says of it, and its name; and the rules that its models are held to.
        self.tags: Mapping[str, str] = {OWN: name}
        self.rules = Rules()
        #: engine id -> seat, as last reported.
        self.seats: dict[str, Seat] = {}
        self.gpus: list[wire.Gpu] = []
        #: Serial of the last report; an older one is dropped.
        self.serial = -1
        #: True when its agent takes nothing new because it comes to its end.
        self.draining = False
        #: True when an operator wants it to take nothing new.
        self.drained = False
        #: Unix seconds until which its owner paused it, 0 when not.
        self.paused_until = 0
        #: Why it is in quarantine; empty: it is not.
        self.charge = ""
        #: Names of the teams that its owner keeps it for; none: for all.
        self.teams: list[str] = []
        #: Round trip in seconds; None until measured.
        self.rtt: float | None = None
        #: Wall-clock seconds of the last message.
        self.last_seen = 0.0

    @property
    def slots(self) -> int:
        """Requests that it carries at once."""
        return sum(seat.engine.slots for seat in self.seats.values())

    @property
    def used(self) -> int:
        """Slots that are leased."""
        return sum(seat.used for seat in self.seats.values())


class Seat:
    """One engine of a worker, and how many of its slots are leased."""

    __slots__ = (
        "_lines", "_models", "_read", "engine", "owner", "past", "places", "ranks", "rest", "rests_until", "stamp", "turn", "unable",
        "used", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, engine: wire.EngineReport) -> None:
        self.worker = worker
        #: Id of the worker.
        self.owner = worker.id
        self.engine = engine
        self.used = 0
        #: Monotonic seconds before which it is not tried again, and the seconds of its next rest.
        self.rests_until = 0.0
        self.rest = REST
        #: When it was last leased, counted in leases of the fleet: ties go to the one that waited longest.
        self.turn = 0
        #: Counts what changed about it, for the ranks that want to be told.
        self.stamp = 0
        # bounded: by `lines`
        self.ranks: list[Rank[Seat]] = []
        #: What was seen of it.
        self.past = Past()
        #: Lines of places that it is in, as far as they were asked for.
        # bounded: by `places.MOST`
        self.places: frozenset[Line] = frozenset()
        #: What `lines` and `model` say, and of which report that was made.
        self._lines: frozenset[Line] = frozenset()
        self._models: dict[str, wire.Model] = {}
        self._read: wire.EngineReport | None = None
        #: What its report says that it can serve and its engine says that it cannot.
        # bounded: by what the report names
        self.unable: frozenset[tuple[str, str]] = frozenset()

    @property
    def tags(self) -> Mapping[str, str]:
        """Those of its worker."""
        return self.worker.tags

    @property
    def share(self) -> float:
        """The part of its slots that is leased; infinite when it takes nothing more until something changes."""
        slots, used = self.engine.slots, self.used
        # whoever else uses the engine was counted a moment ago; one request is always tried, and may be told that it is busy
        if used >= slots or used >= max(1, slots - self.engine.elsewhere) or self.worker.state is not _READY:
            return FULL
        return used / slots if self.engine.healthy else FULL

    def free(self, now: float) -> bool:
        """True when a request may be sent to it."""
        engine, used = self.engine, self.used
        if used >= engine.slots or now < self.rests_until or not engine.healthy or self.worker.state is not _READY:
            return False
        return not engine.elsewhere or self.share < FULL

    def changed(self) -> None:
        """To be called when anything about it did but the moment until which it rests."""
        if self.ranks:
            self.stamp += 1
            for rank in self.ranks:
                rank.offer(self)

    def names(self) -> Collection[str]:
        """All names that its models go by."""
        if self._read is not self.engine:
            self._look()
        return self._models.keys()

    def lines(self) -> frozenset[Line]:
        """(model name, kind) of everything that its slots can serve, and the lines of the places that it is in."""
        if self._read is not self.engine:
            self._look()
        return self._lines | self.places if self.places else self._lines

    def forget(self) -> None:
        """What its models are held to is another thing now."""
        self._read = None

    def model(self, name: str) -> wire.Model | None:
        """The model that goes by `name` here, by its id or an alias."""
        if self._read is not self.engine:
            self._look()
        return self._models.get(name)

    def _look(self) -> None:
        """Reads the report."""
        self._read, models, rules = self.engine, self.engine.models, self.worker.rules
        if rules.pins:
            models = [one for one in models if permits(rules.pinned((one.id, *one.aliases)), self.worker.tags)]
        self._models = {name: model for model in reversed(models) for name in (model.id, *model.aliases)}
        self._lines = frozenset((name, kind) for name, model in self._models.items() for kind in model.kinds) - self.unable

    def doubt(self, unable: frozenset[tuple[str, str]]) -> None:
        """What its engine cannot serve, whatever the report says; the fleet must be indexed afterwards."""
        self.unable, self._read = unable, None


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
        #: The circuit whose probe it is, until it is known how that ended; None for almost all.
        self.probe = fleet.breaker.tried(seat.owner, model) if fleet.breaker.tripped else None
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


class Fleet:
    """All workers that have a link now."""

    def __init__(self, on_change: Callable[[], None], strategy: str = "score", breaker: Breaker | None = None) -> None:
        #: Called after a slot became free or a worker changed, as somebody may be placed now; must not raise.
        self.changed = on_change
        #: Where models fail.
        self.breaker = breaker or Breaker()
        #: worker id -> its one session.
        self.workers: dict[str, Worker] = {}
        #: model name or alias -> seats whose engine has it; (name, kind) -> those of them that can answer so.
        self._serving: dict[str, list[Seat]] = {}
        self._lines: dict[tuple[str, str], list[Seat]] = {}
        #: The same in the order in which they are taken, of lines that were asked for; and of those, what is in some place alone.
        # bounded: by `_lines`
        self._ranks: dict[tuple[str, str], Rank[Seat]] = {}
        self._places: Places[Seat] = Places()
        #: What pins models to workers, and the tags of all workers by their ids.
        self.rules = Rules()
        self.tags: Mapping[str, Mapping[str, str]] = {}
        #: Sessions whose seats are in all these.
        self._indexed: frozenset[Worker] = frozenset()
        #: name -> ids of the models that go by it; name -> the id that means the same everywhere.
        self._ids: dict[str, frozenset[str]] = {}
        self.canonical: dict[str, str] = {}
        #: What `offers` says, of names that were asked for.
        # bounded: by `_serving`
        self._offers: dict[str, dict[str, frozenset[str]]] = {}
        #: worker id -> names of the models it had when it was last seen; their requests wait a while for it instead of failing.
        self.remembered: dict[str, frozenset[str]] = {}
        #: Leases so far; and changes so far of who may be sent what, leases apart.
        self.turns = self.changes = 0
        #: By what rule one of several seats is taken, where nothing else is wished; and what was seen of them.
        self.strategy = strategy
        self.experience = Experience()
        #: What `ejection` remembers, by lines that were asked for.
        # bounded: by `_lines`, and those of `_places`
        self.ejected: dict[Line, tuple[int, int, float, frozenset[str]]] = {}
        #: Seats that cannot serve what their reports say, and until when that is believed.
        # bounded: by the seats of the last minutes
        self._doubted: dict[Seat, float] = {}

    def attach(self, worker: Worker, approved: bool) -> Worker | None:
        """Takes a freshly authenticated session; an older one of the same agent is told to go, and returned: the caller must tell
        those who wait for its answers, once the new one has reported."""
        older = self.workers.get(worker.id)
        self.workers[worker.id] = worker
        self.remembered.pop(worker.id, None)
        worker.tags, worker.rules = self.tags.get(worker.id, worker.tags), self.rules
        worker.state = step(step(State.OFFLINE, Event.DIALLED), Event.WELCOMED if approved else Event.HELD)
        if older is not None:
            older.link.goodbye("replaced", "A newer session of this agent took over.")
        return older

    def detach(self, worker: Worker) -> None:
        """Forgets a session that ended; nothing happens when a newer one has taken its place."""
        if self.workers.get(worker.id) is worker:
            del self.workers[worker.id]
            worker.state = step(worker.state, Event.LOST)
            for seat in worker.seats.values():
                self.experience.left(seat)
            if not worker.link.is_revoked:
                self.remembered[worker.id] = frozenset(name for seat in worker.seats.values() for name in seat.names())
            self._index()

    def report(self, worker: Worker, report: wire.Report) -> wire.Report | None:
        """Takes an agent's report, and gives it back as it may be used; one that is older than the last is dropped: None."""
        if report.serial <= worker.serial:
            return None
        worker.serial = report.serial
        report, charge = judge(report)
        worker.gpus, worker.teams = list(report.gpus), list(report.teams)
        worker.paused_until = report.paused_until
        worker.draining = worker.draining or report.draining
        before = {id: seat.engine.models for id, seat in worker.seats.items()}
        old, worker.seats = worker.seats, {}
        for engine in report.engines:
            seat = old.get(engine.id) or Seat(worker, engine)
            # an engine that gives no answer names no models; who asks for them waits for it, as for a worker that is away
            lost = not engine.healthy and not engine.models
            if seat.unable and not lost and seat.engine.models != engine.models:
                seat.doubt(frozenset())
            seat.engine = replace(engine, models=seat.engine.models) if lost else engine
            worker.seats[engine.id] = seat
        for id, seat in old.items():
            if id not in worker.seats and seat.used:  # it may come back while its slots are still leased
                seat.engine = replace(seat.engine, healthy=False, slots=0, models=[])
                worker.seats[id] = seat
        self._settle(worker)
        if charge:
            self.accuse(worker, charge)
        if worker not in self._indexed or before != {id: seat.engine.models for id, seat in worker.seats.items()}:
            self._index()
        self.changed()
        return report

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
            worker.tags, worker.rules = tags.get(worker.id, worker.tags), rules
            for seat in worker.seats.values():
                seat.forget()
        self._index()
        self.changed()

    def drain(self, worker: Worker) -> None:
        """An operator wants no new requests on it, until `undrain`."""
        worker.drained = True
        self._settle(worker)

    def undrain(self, worker: Worker) -> None:
        """Ends what `drain` began."""
        worker.drained = False
        if not worker.draining:
            worker.state = step(worker.state, Event.UNDRAIN)
        self._settle(worker)
        self.changed()

    def accuse(self, worker: Worker, charge: str) -> None:
        """It said what cannot be true: no new requests until an operator has looked. The first charge stays."""
        worker.charge = worker.charge or charge
        self._settle(worker)

    def release(self, worker: Worker) -> None:
        """Ends what `accuse` began."""
        worker.charge = ""
        worker.state = step(worker.state, Event.RELEASE)
        self._settle(worker)
        self.changed()

    def rest(self, seat: Seat, now: float) -> None:
        """Leaves a seat alone for a moment, because its engine had no room although its slots were not all leased; for twice as long each
        time that this happens with nothing served between."""
        seat.rests_until = now + seat.rest
        seat.rest = min(2 * seat.rest, LONG_REST)

    def doubt(self, seat: Seat, model: str, kind: str, now: float) -> None:
        """An engine has no such model, or no such way to ask for it: it is not asked again until its agent reports other models, or for
        DOUBT seconds."""
        found = seat.model(model)
        names = (found.id, *found.aliases) if found is not None else (model,)
        seat.doubt(seat.unable | {(name, kind) for name in names})
        self._doubted[seat] = now + DOUBT
        self._index()

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

    def seats(self, model: str, kind: str, where: Where = EVERYWHERE) -> Iterator[Seat]:
        """Seats of connected workers in a place whose engine can answer `kind` (chat, completions or embeddings) with `model`."""
        return iter(self._part(model, kind, where).seats if where else self._lines.get((model, kind), ()))

    def rank(self, model: str, kind: str, where: Where = EVERYWHERE) -> Rank[Seat] | None:
        """Those seats in the order in which they are taken; None when there are none."""
        if where:
            return self._part(model, kind, where).rank
        line = (model, kind)
        rank = self._ranks.get(line)
        if rank is None:
            seats = self._lines.get(line)
            if seats is None:
                return None
            rank = self._ranks[line] = Rank(seats)
            for seat in seats if rank.is_long else ():
                seat.ranks.append(rank)
        return rank

    def has_choice(self, model: str, kind: str, where: Where = EVERYWHERE) -> bool:
        """Whether more than one seat in a place can answer `kind` with the model."""
        return len(self._part(model, kind, where).seats if where else self._lines.get((model, kind), ())) > 1

    def _part(self, model: str, kind: str, where: Where) -> Part[Seat]:
        if self._places.is_full:
            self._index()
        line = self.canonical.get(model, model), kind
        return self._places.find(line, where, self._lines.get(line, []))

    def ids(self, name: str) -> frozenset[str]:
        """What a name stands for: ids of models, itself when nobody has it."""
        return self._ids.get(name) or frozenset((name,))

    def line(self, model: str, kind: str, where: Where = EVERYWHERE) -> Line:
        """What the same slots can serve, whichever name is asked for: an alias is its model's id, where every worker that has the model
        knows it by both. A place is left out where all of them are in it."""
        return self._part(model, kind, where).line if where else (self.canonical.get(model, model), kind)

    def known(self, model: str, where: Where = EVERYWHERE) -> bool:
        """True when a connected worker has the model, or one that is away had it; of those in a place."""
        if any(permits(where, seat.worker.tags) for seat in self._serving.get(model, ())):
            return True
        return any(model in names and permits(where, self.tags.get(id, {})) for id, names in self.remembered.items())

    def offers(self, name: str) -> dict[str, frozenset[str]]:
        """Id of each model that goes by a name -> all names of that one."""
        known = self._offers.get(name)
        if known is None:
            found: dict[str, set[str]] = {}
            for seat in self._serving.get(name, ()):
                offer = seat.model(name)
                if offer is not None:
                    found.setdefault(offer.id, {offer.id}).update(offer.aliases)
            known = {id: frozenset(names) for id, names in found.items()}
            if known:
                self._offers[name] = known
        return known

    def check(self, model: str, kind: str, where: Where = EVERYWHERE) -> None:
        """Raises ModelNotFound for a model that nobody has or had, BadRequest when none of those who have it now can do `kind`, and
        NoResidence when nobody in that place has or had it."""
        if (model, kind) in self._lines and (not where or self._part(model, kind, where).seats):
            return
        if not self.known(model):
            raise errors.ModelNotFound(f"The model '{model}' does not exist or no worker serves it.", param="model")
        if where and not self.known(model, where):
            raise errors.NoResidence(f"No worker with {shown(where)} serves '{model}', and this request may go to no other.")
        if any(permits(where, seat.worker.tags) for seat in self._serving.get(model, ())):
            raise errors.BadRequest(f"The model '{model}' does not support {kind}.", param="model", code="unsupported_endpoint")

    def slots(self, model: str, kind: str, where: Where = EVERYWHERE) -> int:
        """Slots of ready workers that can answer `kind` with the model, free or not."""
        return sum(seat.engine.slots for seat in self.seats(model, kind, where) if seat.worker.state is _READY and seat.engine.healthy)

    def taken(self, model: str, kind: str, where: Where = EVERYWHERE) -> tuple[int, int]:
        """Of these slots those that are leased, and all."""
        seats = [seat for seat in self.seats(model, kind, where) if seat.worker.state is _READY and seat.engine.healthy]
        return sum(seat.used for seat in seats), sum(seat.engine.slots for seat in seats)

    @property
    def used(self) -> int:
        """Slots that are leased, of all workers."""
        return sum(worker.used for worker in self.workers.values())

    def serves(self, model: str) -> bool:
        """Whether a connected worker announces the model, by whatever name."""
        return any(model in seat.names() for worker in self.workers.values() for seat in worker.seats.values())

    def present(self, model: str, where: Where = EVERYWHERE) -> bool:
        """True when a connected worker in that place that may take requests has the model."""
        seats = self._serving.get(model, ())
        return any(seat.worker.state is _READY and seat.engine.healthy and permits(where, seat.worker.tags) for seat in seats)

    def models(self, where: Where = EVERYWHERE) -> dict[str, list[Seat]]:
        """Model id -> the seats of ready workers in a place whose engine has it, may serve it and answers (aliases left out)."""
        out: dict[str, list[Seat]] = {}
        there = [worker for worker in self.workers.values() if worker.state is _READY and permits(where, worker.tags)]
        for seat in (seat for worker in there for seat in worker.seats.values() if seat.engine.healthy):
            for model in seat.engine.models:
                if seat.model(model.id) is not None:
                    out.setdefault(model.id, []).append(seat)
        return out

    def _settle(self, worker: Worker) -> None:
        """Says again what is true of it, the weightiest last."""
        is_up = any(seat.engine.healthy for seat in worker.seats.values())
        events = [Event.PAUSE if worker.paused_until else Event.RESUME, Event.ENGINE_UP if is_up else Event.ENGINE_DOWN]
        events += [Event.DRAIN] * (worker.drained or worker.draining) + [Event.ACCUSE] * bool(worker.charge)
        for event in events:
            worker.state = step(worker.state, event)
        self.changes += 1
        for seat in worker.seats.values():
            seat.changed()

    def _index(self) -> None:
        serving: dict[str, list[Seat]] = {}
        lines: dict[tuple[str, str], list[Seat]] = {}
        for seat in (seat for worker in self.workers.values() for seat in worker.seats.values()):
            seat.ranks, seat.places = [], frozenset()
            for name in seat.names():
                serving.setdefault(name, []).append(seat)
            for model, kind, *_ in seat.lines():
                lines.setdefault((model, kind), []).append(seat)
        had_places = len(self._places) > 0
        self._serving, self._lines, self._ranks, self._offers, self._places, self.ejected = serving, lines, {}, {}, Places(), {}
        self.changes += 1
        self._indexed = frozenset(self.workers.values())
        self._ids = {name: frozenset(found.id for seat in seats if (found := seat.model(name))) for name, seats in serving.items()}
        # who waits is sorted anew when this becomes another object; who waits for a place may have other seats in it now
        canonical = {name: id for name, ids in self._ids.items() for id in ids if len(ids) == 1 and serving.get(id) == serving[name]}
        self.canonical = self.canonical if canonical == self.canonical and not had_places else canonical

"""The live workers and the leases of the slots that their engines announce. One owner, one thread, no awaits.

A *seat* is one engine of one worker. The number of slots is the agent's word; the leases are counted here, so two requests
can never be promised the same slot. A seat whose engine said "busy" all the same rests for a moment before it is tried again.
"""

from collections.abc import Callable, Collection, Iterator

from msgspec.structs import replace

from mindgw import errors
from mindgw.core.worker import Event, State, step
from mindgw.gateway.rank import FULL, Rank
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire

#: Seconds for which a seat is left alone after its agent answered BUSY.
REST = 0.5
#: Asked for at every step: a member of an Enum costs more than a call.
_READY = State.READY


class Worker:
    """One session of one agent."""

    __slots__ = ("draining", "epoch", "gpus", "id", "last_seen", "link", "name", "rtt", "seats", "serial", "state")

    def __init__(self, id: str, name: str, epoch: int, link: Link) -> None:
        self.id = id
        self.name = name
        #: Counts the sessions of this agent; a worker of an older epoch is void.
        self.epoch = epoch
        self.link = link
        self.state = State.CONNECTING
        #: engine id -> seat, as last reported.
        self.seats: dict[str, Seat] = {}
        self.gpus: list[wire.Gpu] = []
        #: Serial of the last report; an older one is dropped.
        self.serial = -1
        #: True when either side asked it to drain.
        self.draining = False
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

    __slots__ = ("_lines", "_models", "_read", "engine", "owner", "ranks", "rests_until", "stamp", "turn", "used", "worker")

    def __init__(self, worker: Worker, engine: wire.EngineReport) -> None:
        self.worker = worker
        #: Id of the worker.
        self.owner = worker.id
        self.engine = engine
        self.used = 0
        #: Monotonic seconds before which it is not tried again.
        self.rests_until = 0.0
        #: When it was last leased, counted in leases of the fleet: ties go to the one that waited longest.
        self.turn = 0
        #: Counts what changed about it, for the ranks that want to be told.
        self.stamp = 0
        # bounded: by `lines`
        self.ranks: list[Rank[Seat]] = []
        #: What `lines` and `model` say, and of which report that was made.
        self._lines: frozenset[tuple[str, str]] = frozenset()
        self._models: dict[str, wire.Model] = {}
        self._read: wire.EngineReport | None = None

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

    def lines(self) -> frozenset[tuple[str, str]]:
        """(model name, kind) of everything that its slots can serve."""
        if self._read is not self.engine:
            self._look()
        return self._lines

    def model(self, name: str) -> wire.Model | None:
        """The model that goes by `name` here, by its id or an alias."""
        if self._read is not self.engine:
            self._look()
        return self._models.get(name)

    def _look(self) -> None:
        """Reads the report."""
        self._read, models = self.engine, self.engine.models
        self._models = {name: model for model in reversed(models) for name in (model.id, *model.aliases)}
        self._lines = frozenset((name, kind) for name, model in self._models.items() for kind in model.kinds)


class Placement:
    """A slot on a worker for one attempt; `release` gives it back, once, however often it is called."""

    __slots__ = ("_fleet", "_held", "model", "seat")

    def __init__(self, fleet: "Fleet", seat: Seat, model: str) -> None:
        self._fleet = fleet
        self.seat = seat
        #: The name by which this worker's engine knows the model.
        self.model = model
        self._held = True
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
            seat = self.seat
            seat.used -= 1
            if seat.ranks:
                seat.changed()
            self._fleet.changed()


class Fleet:
    """All workers that have a link now."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        #: Called after a slot became free or a worker changed, as somebody may be placed now; must not raise.
        self.changed = on_change
        #: worker id -> its one session.
        self.workers: dict[str, Worker] = {}
        #: model name or alias -> seats whose engine has it; (name, kind) -> those of them that can answer so.
        self._serving: dict[str, list[Seat]] = {}
        self._lines: dict[tuple[str, str], list[Seat]] = {}
        #: The same in the order in which they are taken, of lines that were asked for.
        # bounded: by `_lines`
        self._ranks: dict[tuple[str, str], Rank[Seat]] = {}
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
        #: Leases so far.
        self.turns = 0

    def attach(self, worker: Worker, approved: bool) -> Worker | None:
        """Takes a freshly authenticated session; an older one of the same agent is told to go, and returned: the caller must tell
        those who wait for its answers, once the new one has reported."""
        older = self.workers.get(worker.id)
        self.workers[worker.id] = worker
        self.remembered.pop(worker.id, None)
        worker.state = step(step(State.OFFLINE, Event.DIALLED), Event.WELCOMED if approved else Event.HELD)
        if older is not None:
            older.link.goodbye("replaced", "A newer session of this agent took over.")
        return older

    def detach(self, worker: Worker) -> None:
        """Forgets a session that ended; nothing happens when a newer one has taken its place."""
        if self.workers.get(worker.id) is worker:
            del self.workers[worker.id]
            worker.state = step(worker.state, Event.LOST)
            if not worker.link.is_revoked:
                self.remembered[worker.id] = frozenset(name for seat in worker.seats.values() for name in seat.names())
            self._index()

    def report(self, worker: Worker, report: wire.Report) -> None:
        """Takes an agent's report; one that is older than the last is dropped."""
        if report.serial <= worker.serial:
            return
        worker.serial = report.serial
        worker.gpus = list(report.gpus)
        before = {id: seat.engine.models for id, seat in worker.seats.items()}
        old, worker.seats = worker.seats, {}
        for engine in report.engines:
            seat = old.get(engine.id) or Seat(worker, engine)
            # an engine that gives no answer names no models; who asks for them waits for it, as for a worker that is away
            lost = not engine.healthy and not engine.models
            seat.engine = replace(engine, models=seat.engine.models) if lost else engine
            worker.seats[engine.id] = seat
        for id, seat in old.items():
            if id not in worker.seats and seat.used:  # it may come back while its slots are still leased
                seat.engine = replace(seat.engine, healthy=False, slots=0, models=[])
                worker.seats[id] = seat
        if any(engine.healthy for engine in report.engines):
            self._happened(worker, Event.ENGINE_UP)
        else:
            self._happened(worker, Event.ENGINE_DOWN)
        if report.draining and not worker.draining:
            self.drain(worker)
        if worker not in self._indexed or before != {id: seat.engine.models for id, seat in worker.seats.items()}:
            self._index()
        self.changed()

    def drain(self, worker: Worker) -> None:
        """No new requests for this session."""
        worker.draining = True
        self._happened(worker, Event.DRAIN)

    def rest(self, seat: Seat, now: float) -> None:
        """Leaves a seat alone for a moment, because its engine had no room although its slots were not all leased."""
        seat.rests_until = now + REST

    def lease(self, seat: Seat, model: str = "") -> Placement:
        """Takes one slot of a seat that is free, for a model that its engine knows by that name."""
        return Placement(self, seat, model)

    def seats(self, model: str, kind: str) -> Iterator[Seat]:
        """Seats of connected workers whose engine can answer `kind` (chat, completions or embeddings) with `model`."""
        return iter(self._lines.get((model, kind), ()))

    def best(self, model: str, kind: str, avoid: frozenset[str], now: float) -> Seat | None:
        """Which of them is to be leased next; None when none is free. One of a worker to be avoided only when there is no other."""
        line = (model, kind)
        rank = self._ranks.get(line)
        if rank is None:
            seats = self._lines.get(line)
            if seats is None:
                return None
            rank = self._ranks[line] = Rank(seats)
            for seat in seats if rank.is_long else ():
                seat.ranks.append(rank)
        return rank.best(avoid, now)

    def ids(self, name: str) -> frozenset[str]:
        """What a name stands for: ids of models, itself when nobody has it."""
        return self._ids.get(name) or frozenset((name,))

    def line(self, model: str, kind: str) -> tuple[str, str]:
        """What the same slots can serve, whichever name is asked for: an alias is its model's id, where every worker that has the model
        knows it by both."""
        return self.canonical.get(model, model), kind

    def known(self, model: str) -> bool:
        """True when a connected worker has the model, or one that is away had it."""
        return model in self._serving or any(model in names for names in self.remembered.values())

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

    def check(self, model: str, kind: str) -> None:
        """Raises ModelNotFound for a model that nobody has or had, BadRequest when none of those who have it now can do `kind`."""
        if (model, kind) in self._lines:
            return
        if not self.known(model):
            raise errors.ModelNotFound(f"The model '{model}' does not exist or no worker serves it.", param="model")
        if model in self._serving:
            raise errors.BadRequest(f"The model '{model}' does not support {kind}.", param="model", code="unsupported_endpoint")

    def slots(self, model: str, kind: str) -> int:
        """Slots of ready workers that can answer `kind` with the model, free or not."""
        return sum(seat.engine.slots for seat in self.seats(model, kind) if seat.worker.state is _READY and seat.engine.healthy)

    def taken(self, model: str, kind: str) -> tuple[int, int]:
        """Of these slots those that are leased, and all."""
        seats = [seat for seat in self.seats(model, kind) if seat.worker.state is _READY and seat.engine.healthy]
        return sum(seat.used for seat in seats), sum(seat.engine.slots for seat in seats)

    @property
    def used(self) -> int:
        """Slots that are leased, of all workers."""
        return sum(worker.used for worker in self.workers.values())

    def serves(self, model: str) -> bool:
        """Whether a connected worker announces the model, by whatever name."""
        return any(model in seat.names() for worker in self.workers.values() for seat in worker.seats.values())

    def present(self, model: str) -> bool:
        """True when a connected worker that may take requests has the model."""
        return any(seat.worker.state is _READY and seat.engine.healthy for seat in self._serving.get(model, ()))

    def models(self) -> dict[str, list[Seat]]:
        """Model id -> the seats of ready workers whose engine has it and answers (aliases left out)."""
        out: dict[str, list[Seat]] = {}
        for worker in self.workers.values():
            for seat in worker.seats.values() if worker.state is _READY else ():
                for model in seat.engine.models if seat.engine.healthy else ():
                    out.setdefault(model.id, []).append(seat)
        return out

    def _happened(self, worker: Worker, event: Event) -> None:
        worker.state = step(worker.state, event)
        for seat in worker.seats.values():
            seat.changed()

    def _index(self) -> None:
        serving: dict[str, list[Seat]] = {}
        lines: dict[tuple[str, str], list[Seat]] = {}
        for seat in (seat for worker in self.workers.values() for seat in worker.seats.values()):
            seat.ranks = []
            for name in seat.names():
                serving.setdefault(name, []).append(seat)
            for line in seat.lines():
                lines.setdefault(line, []).append(seat)
        self._serving, self._lines, self._ranks, self._offers = serving, lines, {}, {}
        self._indexed = frozenset(self.workers.values())
        self._ids = {name: frozenset(found.id for seat in seats if (found := seat.model(name))) for name, seats in serving.items()}
        # who waits is sorted anew when this becomes another object
        canonical = {name: id for name, ids in self._ids.items() for id in ids if len(ids) == 1 and serving.get(id) == serving[name]}
        self.canonical = self.canonical if canonical == self.canonical else canonical

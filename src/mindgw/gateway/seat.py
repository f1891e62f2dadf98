"""A worker as it is connected now, and its seats.

A *seat* is one engine of one worker. The number of slots is the agent's word; the leases are counted here, so two requests
can never be promised the same slot. A seat whose engine said "busy" all the same rests for a moment before it is tried again.
"""

from collections.abc import Collection, Mapping, Sequence

from mindgw.core.routing import OWN, Rules, permits
from mindgw.core.worker import State
from mindgw.gateway.experience import Past
from mindgw.gateway.places import Line
from mindgw.gateway.rank import FULL, Rank, SeatId
from mindgw.gateway.tunnel import Link
from mindgw_agent import wire

#: Seconds for which a seat is left alone after its agent answered BUSY.
REST = 0.5
#: The most of them, after it answered so again and again.
LONG_REST = 8.0
#: Asked for at every step: a member of an Enum costs more than a call.
_READY = State.READY
#: What a worker is of which nobody is to know: it was not let in, or said what cannot be true.
_OUTSIDE = frozenset({State.CONNECTING, State.PENDING, State.QUARANTINED, State.LOCKED})


def alike(one: Sequence[wire.Model], other: Sequence[wire.Model]) -> bool:
    """Whether these are the same models under the same names, which can be asked for in the same ways: whatever else is said of them says
    nothing about who can serve what."""
    return one == other or [(m.id, m.aliases, m.kinds) for m in one] == [(m.id, m.aliases, m.kinds) for m in other]


class Worker:
    """One session of one agent."""

    __slots__ = (
        "booked", "charge", "decided", "drained", "draining", "epoch", "gpus", "id", "last_seen", "link", "name", "paused_until", "rtt",
        "rules", "seats", "serial", "state", "tags", "teams",
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
        #: Whether the database knows of that.
        self.booked = False
        #: Which of the fleet's decisions was the last about it.
        self.decided = 0
        #: Names of the teams that its owner keeps it for; none: for all.
        self.teams: list[str] = []
        #: Round trip in seconds; None until measured.
        self.rtt: float | None = None
        #: Wall-clock seconds of the last message.
        self.last_seen = 0.0

    @property
    def is_inside(self) -> bool:
        """Whether what it says of its models counts, be it ready or not."""
        return self.state not in _OUTSIDE

    @property
    def slots(self) -> int:
        """Requests that those of its engines carry at once that answer."""
        return sum(seat.engine.slots for seat in self.seats.values() if seat.engine.healthy)

    @property
    def used(self) -> int:
        """Slots that are leased."""
        return sum(seat.used for seat in self.seats.values())


class Seat:
    """One engine of a worker, and how many of its slots are leased."""

    __slots__ = (
        "_lines", "_models", "_read", "engine", "id", "owner", "past", "places", "ranks", "rest", "rests_until", "stamp", "turn", "unable",
        "used", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, engine: wire.EngineReport) -> None:
        self.worker = worker
        #: Id of the worker.
        self.owner = worker.id
        #: By which it is told from all others, of its worker and of others; the same after a new session.
        self.id: SeatId = (worker.id, engine.id)
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

    @property
    def is_weary(self) -> bool:
        """Whether it rests as long as can be, as it turned down whatever it was sent, and only one slot is leased: nothing of ours can be
        what it has no room for."""
        return self.rest >= LONG_REST and self.used <= 1

    @property
    def is_up(self) -> bool:
        """Whether it may be sent requests, free or not."""
        return self.worker.state is _READY and self.engine.healthy

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

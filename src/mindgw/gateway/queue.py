"""Where admitted requests wait for a slot, in fair order (`core.fair`), and how long they will (`gateway.pace`).

One dispatcher, no awaits: `wake` gives each free slot to the ticket whose turn it is among those that it can serve. A ticket is
joined, perhaps taken and rejoined, and settled or left exactly once.
"""

import hashlib
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Any, Protocol

from msgspec import Struct

from mindgw import errors
from mindgw.config import Limits
from mindgw.core import fair, payload
from mindgw.core.routing import EVERYWHERE, Where
from mindgw.gateway.flows import BUMPED, CLASSES, DEPTH, SHEDDABLE
from mindgw.gateway.pace import Pace
from mindgw.gateway.places import Line
from mindgw.gateway.rank import NOBODY, SeatId
from mindgw.gateway.route import Needs, Placement
from mindgw.gateway.ticket import Ticket

#: Seconds for which the place of a client that hung up is kept, and how many such places.
_KEPT, _PLACES = 30.0, 10_000
#: Waiting tickets from which on each is looked at less often.
_MANY = 2000
#: Lines of those for whom only some of a line's workers are; where there are more, those stand in one.
APART = 32
#: Longest `retry-after` in seconds: clients take a longer one for "never".
LATER = 120.0
#: Ways to ask for a model.
_KINDS = (payload.CHAT, payload.COMPLETIONS, payload.EMBEDDINGS)


#: Those of a line who wait for some of its workers only: whose workers they are not to go to, nobody's where they stand in one.
Apart = tuple[Line, frozenset[SeatId]]


class Outlook(Struct, frozen=True):
    """What a ticket that waits may be told."""

    #: 1 for the one whose turn is next.
    position: int
    #: Seconds until its turn; None when nobody can tell yet.
    eta: float | None


class Names(Protocol):
    """What models go by, and who has them."""

    def slots(self, model: str, kind: str, where: Where = EVERYWHERE) -> int:
        """Slots that could serve it, free or not."""

    def line(self, model: str, kind: str, where: Where = EVERYWHERE) -> Line:
        """What the same slots can serve, whichever name is asked for."""

    def ids(self, name: str) -> frozenset[str]:
        """The models that a name stands for."""


class Queue:
    """All who wait."""

    def __init__(
        self,
        place: Callable[[Needs, float], Placement | None],
        names: Names,
        limits: Limits,
        weight: Callable[[fair.Path], float] = lambda path: 1.0,
        aging: tuple[float, ...] = fair.AGING,
    ) -> None:
        """`place` leases a slot for these needs, now."""
        self._place = place
        self._names = names
        self._limits = limits
        self.order = fair.Fair(DEPTH, weight, aging)
        self.pace = Pace(self.order)
        #: Bytes that those who wait keep in memory.
        self.held = 0
        #: Tickets that wait by the id of their request, and those of them that may be shed; oldest first.
        self._line: OrderedDict[str, Ticket] = OrderedDict()
        self._sheddable: OrderedDict[str, Ticket] = OrderedDict()
        #: Those of each organisation, key and end user that wait.
        # bounded: by what waits
        self._waiting: Counter[fair.Path] = Counter()
        #: Model -> those of them that stand in lines of some place, or apart.
        # bounded: by what waits
        self._placed: Counter[str] = Counter()
        #: Names of models that nobody is served of until an operator says so, and whether all are paused.
        self.paused_models: set[str] = set()
        self.paused = False
        #: identity of a request -> its number in its flow and until when it is kept.
        self._places: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        #: Tickets that wait for some of the workers of their line only, as the others failed them, by the lines where they stand instead.
        # bounded: by APART and the lines
        self._apart: Counter[Apart] = Counter()
        self._secret = secrets.token_bytes(32)
        #: True while `wake` is at work: slots that become free meanwhile are seen by its next round.
        self._waking = self._again = False

    @property
    def waiting(self) -> int:
        """Tickets that wait."""
        return len(self._line)

    @property
    def leisure(self) -> float:
        """How much less often those who wait are looked at, because there are many: 1 or more."""
        return max(1.0, len(self._line) / _MANY)

    def oldest(self, now: float) -> float:
        """Seconds for which the one that stands for longest does."""
        return now - min((ticket.entered for ticket in self._line.values()), default=now)

    # -- coming and going -----------------------------------------------------------------------------------------

    def join(self, ticket: Ticket, now: float, identity: bytes = b"") -> Placement | None:
        """A slot at once when one is free and nobody waits for it; otherwise the ticket stands in line, with the `identity` of one that
        left a moment ago in its place. Raises QueueFull, RateLimited."""
        ticket.entered = now
        needs = ticket.needs
        line = ticket.line = self._names.line(needs.model, needs.kind, needs.where)
        entry = ticket.entry = fair.Ticket(ticket, self.pace.cost(ticket))
        if not (self._line and self.order.standing(line)) and not ((self.paused or self.paused_models) and self.is_paused(line)):
            placement = self._place(needs, now)
            if placement is not None:
                self.pace.serve(ticket, entry, self._serves(placement) if self._apart else placement.seat.lines(), now)
                return placement
        try:
            self._make_room(ticket, now)
        except errors.MindGWError:
            ticket.entry = None
            raise
        self._stand(ticket, self._reclaim(identity, now), now)
        outlook = self.outlook(ticket, now)
        ticket.position, ticket.eta = outlook.position, outlook.eta
        return None

    def rejoin(self, ticket: Ticket, now: float) -> Placement | None:
        """As `join`, for a ticket whose turn came to nothing: it goes back to the head of its flow and is never refused."""
        entry = ticket.entry
        assert entry is not None
        self.pace.undo(ticket)
        needs = ticket.needs
        ticket.line = self._names.line(needs.model, needs.kind, needs.where)  # it may want another model now
        if not self.is_paused(ticket.line) and (placement := self._place(ticket.needs, now)) is not None:
            self.pace.begin(ticket, now)
            return placement
        self._stand(ticket, self.order.front(), now, lifted=False)
        return None

    def leave(self, ticket: Ticket, now: float) -> None:
        """Takes a ticket out; nothing happens when it does not wait."""
        if ticket.waiting:
            assert ticket.entry is not None
            self._unstand(ticket, now)
            self.order.leave(ticket.entry)
            ticket.entry = None

    def vacate(self, ticket: Ticket, identity: bytes, now: float) -> None:
        """As `leave`, for a client that hung up or heard that it is too late: should it come back soon, it has its place again."""
        if ticket.waiting:
            assert ticket.entry is not None
            self._places[identity] = (ticket.entry.number, now + _KEPT)
            self._places.move_to_end(identity)
            while len(self._places) > _PLACES:
                self._places.popitem(last=False)
        self.leave(ticket, now)

    def settle(self, ticket: Ticket, prompt: int, completion: int, now: float) -> None:
        """A ticket that had a slot is over; these tokens were used. Nothing happens the second time, or when it has no slot."""
        if ticket.entry is None or ticket.placed is None:
            return
        self.pace.end(ticket, prompt, completion, now)
        ticket.entry = None

    def identity(self, ticket: Ticket, path: str, body: bytes) -> bytes:
        """By which a request is known when it comes again: whose it is and what it says, worth nothing outside of this process."""
        hashed = hashlib.blake2b(path.encode(), digest_size=16, key=self._secret)
        for name in ticket.flow.path:
            hashed.update(name.encode("utf-8", "surrogatepass") + b"\0")
        hashed.update(body)
        return hashed.digest()

    # -- turns ----------------------------------------------------------------------------------------------------

    def wake(self, now: float) -> None:
        """Gives every slot that is free to the ticket whose turn it is."""
        if not self._line:
            return
        self._again = True
        if self._waking:
            return
        self._waking = True
        try:
            while self._again:
                self._again = False
                self._round(now)
        finally:
            self._waking = False

    def _round(self, now: float) -> None:
        if self.paused or not self._line:
            return
        blocked = {line for line in self.order.lines() if self.is_paused(line)}
        while (found := self._next(blocked, now)) is not None:
            ticket, placement = found
            self.pace.begin(ticket, now)
            ticket.holder.granted(placement)

    def _next(self, blocked: set[Hashable], now: float) -> tuple[Ticket, Placement] | None:
        """Whose turn it is, out of the line and with a slot; adds lines in which nobody can be served to `blocked`. Who waits for some of
        the workers only stands apart, and so holds up nobody who could have the others."""
        while (entry := self.order.best(blocked)) is not None:
            ticket: Ticket = entry.item
            placement = self._place(ticket.needs, now)
            if placement is not None:
                serves = self._serves(placement)
                self._unstand(ticket, now)
                self.order.take(entry, serves)
                return ticket, placement
            blocked.add(_stands(entry))
        return None

    def _serves(self, placement: Placement) -> Collection[Hashable]:
        """The lines that could have had a slot."""
        seat, lines = placement.seat, placement.seat.lines()
        return lines.union(apart for apart in self._apart if apart[0] in lines and seat.id not in apart[1]) if self._apart else lines

    def lines(self) -> frozenset[Line]:
        """The lines of those who wait, be it for some of their workers only."""
        return frozenset(map(_base, self.order.lines()))

    def outlook(self, ticket: Ticket, now: float) -> Outlook:
        """Where a ticket stands and how long it will; 0 for one that does not wait."""
        if not ticket.waiting:
            return Outlook(0, None)
        assert ticket.entry is not None
        ahead = self.order.ahead(ticket.entry)
        eta = None if self.is_paused(ticket.line) else self.pace.wait(ticket, ahead, self._slots(ticket), now)
        return Outlook(1 + round(ahead.tickets), eta)

    def later(self, ticket: Ticket, now: float) -> float:
        """Seconds after which it makes sense to ask again, for one that waited in vain."""
        return min(max(self.outlook(ticket, now).eta or 5.0, 1.0), LATER)

    def rename(self, now: float) -> None:
        """Models go by other names now: whoever waits stands where the same slots are, in the place that it had."""
        for ticket in list(self._line.values()):
            self.move(ticket, now)

    def move(self, ticket: Ticket, now: float, needs: Needs | None = None) -> None:
        """A ticket that waits stands where its needs say (from now on `needs`), in the place that it had. Wake the queue afterwards."""
        wanted = needs or ticket.needs
        line = self._names.line(wanted.model, wanted.kind, wanted.where)
        if line != ticket.line or wanted.shun != ticket.needs.shun:
            number = ticket.entry.number if ticket.entry is not None else None
            self._unstand(ticket, now)
            self._lift(ticket)
            ticket.line, ticket.needs = line, wanted
            self._stand(ticket, number, now)
        else:
            ticket.needs = wanted

    def _lift(self, ticket: Ticket) -> None:
        """Out of the order, with an entry for another place in it."""
        assert ticket.entry is not None
        cost = ticket.entry.cost
        self.order.leave(ticket.entry)
        ticket.entry = fair.Ticket(ticket, cost)

    def _slots(self, ticket: Ticket) -> int:
        needs = ticket.needs
        return self._names.slots(needs.model, needs.kind, needs.where)

    # -- operators ------------------------------------------------------------------------------------------------

    def pause(self, model: str = "") -> None:
        """Nobody is served of a model, by whatever name, or at all, until `resume`; whoever runs goes on."""
        if model:
            self.paused_models.add(model)
        else:
            self.paused = True
        for ticket in self._line.values():
            if self.is_paused(ticket.line):
                ticket.eta = None  # nobody could know

    def resume(self, model: str = "") -> None:
        """Ends a pause; without a model all of them. Wake the queue afterwards."""
        if model:
            self.paused_models.discard(model)
        else:
            self.paused = False
            self.paused_models.clear()

    def bump(self, ticket: Ticket, now: float) -> None:
        """Puts a ticket before all others; nothing happens when it does not wait."""
        if ticket.waiting:
            assert ticket.entry is not None
            self._unstand(ticket, now)
            self._lift(ticket)
            ticket.rank = BUMPED
            self._stand(ticket, self.order.front(), now)

    def tickets(self) -> Iterator[Ticket]:
        """All who wait, in no order."""
        yield from self._line.values()

    def classes(self, line: Line | None = None) -> dict[str, int]:
        """Class -> tickets that wait, of a line or of all, the highest class first."""
        lines = self.order.lines() if line is None else [line]
        return {name: sum(self.order.standing(each, rank) for each in lines) for rank, name in enumerate(CLASSES)}

    # -- room -----------------------------------------------------------------------------------------------------

    def _make_room(self, ticket: Ticket, now: float) -> None:
        """Raises when a limit is reached; a sheddable ticket goes before anybody else is refused."""
        limits, path = self._limits, ticket.flow.path
        if path[-1] and self._waiting[path] >= limits.queue_end_user:
            raise self._full(ticket, errors.RateLimited, f"{limits.queue_end_user} requests of this end user wait.", "end_user_queue_full")
        if self._waiting[path[:4]] >= limits.queue_key:
            raise self._full(ticket, errors.RateLimited, f"{limits.queue_key} requests of this key are waiting.", "key_queue_full")
        if self._waiting[path[:1]] >= limits.queue_org:
            raise self._full(ticket, errors.QueueFull, f"{limits.queue_org} requests of this organisation are waiting.")
        model = ticket.line[0]
        if sum(self.order.standing((model, kind)) for kind in _KINDS) + self._placed[model] >= limits.queue_model:
            raise self._full(ticket, errors.QueueFull, f"{limits.queue_model} requests are waiting for this model.")
        if ticket.size > limits.queue_bytes:
            raise self._full(ticket, errors.QueueFull, "A request of this size may not wait.")
        while self.waiting >= limits.queue or self.held + ticket.size > limits.queue_bytes:
            if ticket.flow.rank == SHEDDABLE or not self._sheddable:
                raise self._full(ticket, errors.QueueFull, f"The queue is full: {self.waiting} requests are waiting.")
            newest = next(reversed(self._sheddable.values()))
            wrong = self._full(newest, errors.QueueFull, "The queue is full, and this request may be shed.")
            self.leave(newest, now)
            newest.holder.turned_out(wrong)

    def _full(self, ticket: Ticket, kind: type[errors.MindGWError], why: str, code: str | None = None) -> errors.MindGWError:
        """With the seconds until what waits in its line is served."""
        wait = self.pace.clears(ticket.line, self._slots(ticket))
        return kind(why, code=code, retry_after=min(max(wait or 5.0, 1.0), LATER))

    def _reclaim(self, identity: bytes, now: float) -> int | None:
        number, until = self._places.pop(identity, (None, 0.0)) if identity else (None, 0.0)
        return number if now < until else None

    def _stand(self, ticket: Ticket, number: int | None, now: float, *, lifted: bool = True) -> None:
        assert ticket.entry is not None
        line: Hashable = ticket.line
        if ticket.needs.shun:
            line = self._enter_apart(ticket.line, ticket.needs.shun)
        self.order.join(ticket.entry, ticket.flow.path, line, ticket.rank, number, lifted=lifted)
        self._waiting.update(_counted(ticket))
        if len(ticket.line) > 2 or ticket.needs.shun:
            self._placed[ticket.line[0]] += 1
        self.pace.joined(ticket, now)
        self.held += ticket.size
        self._line[ticket.id] = ticket
        if ticket.rank == SHEDDABLE:
            self._sheddable[ticket.id] = ticket

    def _unstand(self, ticket: Ticket, now: float) -> None:
        self.pace.left(ticket, now)
        self.held -= ticket.size
        for path in _counted(ticket):
            self._waiting[path] -= 1
            if not self._waiting[path]:
                del self._waiting[path]
        if ticket.needs.shun:
            self._leave_apart(ticket)
        if len(ticket.line) > 2 or ticket.needs.shun:
            self._placed.subtract((ticket.line[0],))
            self._placed += Counter()  # whoever has none left is forgotten
        del self._line[ticket.id]
        self._sheddable.pop(ticket.id, None)

    def _enter_apart(self, line: Line, shun: frozenset[SeatId]) -> Apart:
        """Where one stands who waits for some of a line's workers only."""
        apart = line, shun
        if apart not in self._apart and len(self._apart) >= APART:
            apart = line, NOBODY
        self._apart[apart] += 1
        return apart

    def _leave_apart(self, ticket: Ticket) -> None:
        assert ticket.entry is not None
        apart = _stands(ticket.entry)
        self._apart[apart] -= 1
        if not self._apart[apart]:
            del self._apart[apart]

    def is_paused(self, line: Hashable) -> bool:
        """Whether an operator let nobody of this line be served."""
        if not self.paused_models:
            return self.paused
        model = _base(line)[0]
        mine = self._names.ids(model) | {model}
        return self.paused or any(name in mine or self._names.ids(name) & mine for name in self.paused_models)


def _stands(entry: fair.Ticket) -> Any:
    """The line of the order that a ticket waits in: a Line or an Apart."""
    assert entry.band is not None
    return entry.band.line.name


def _base(line: Any) -> Line:
    """The line of a Line or an Apart."""
    return line[0] if isinstance(line[0], tuple) else line


def _counted(ticket: Ticket) -> tuple[fair.Path, ...]:
    """Its organisation, its key and its end user: who may have so many requests waiting."""
    path = ticket.flow.path
    return (path[:1], path[:4], path) if path[-1] else (path[:1], path[:4])

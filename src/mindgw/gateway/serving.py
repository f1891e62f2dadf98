"""Which seats serve what: under which names, in which ways, in which places, and in what order they are taken."""

from collections.abc import Iterator, Mapping, Sequence

from mindgw import errors
from mindgw.core.routing import EVERYWHERE, Rules, Where, permits, shown, without_team
from mindgw.core.worker import State
from mindgw.gateway.places import Line, Part, Places
from mindgw.gateway.rank import Rank, SeatId
from mindgw.gateway.seat import Seat, Worker

_READY = State.READY


class Serving:
    """The seats of all workers that have a link now, found by what is asked for. Of those that were not let in nothing is known here."""

    def __init__(self) -> None:
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
        #: Whether the owner of a worker keeps it for some teams: then it matters whose a request is. And how often that began.
        self.is_kept = False
        self.kept = 0
        #: Sessions that are inside, whose seats are in all these.
        self._indexed: frozenset[Worker] = frozenset()
        #: Something has changed since: whoever asks next has it all looked at anew. A thousand workers that come at once are one change.
        self._is_stale = False
        #: name -> ids of the models that go by it; name -> the id that means the same everywhere.
        self._ids: dict[str, frozenset[str]] = {}
        self._canonical: dict[str, str] = {}
        #: What `offers` says, of names that were asked for.
        # bounded: by `_serving`
        self._offers: dict[str, dict[str, frozenset[str]]] = {}
        #: worker id -> names of the models it had when it was last seen, or last inside; their requests wait a while instead of failing.
        self.remembered: dict[str, frozenset[str]] = {}
        #: Changes so far of who may be sent what, leases apart.
        self.changes = 0
        #: What `ejection` remembers, by lines that were asked for.
        # bounded: by `_lines`, and those of `_places`
        self.ejected: dict[Line, tuple[int, int, float, frozenset[SeatId]]] = {}

    @property
    def canonical(self) -> Mapping[str, str]:
        """name -> the id that means the same everywhere; another object when something about it has changed."""
        if self._is_stale:
            self._look()
        return self._canonical

    def seats(self, model: str, kind: str, where: Where = EVERYWHERE) -> Iterator[Seat]:
        """Seats of connected workers in a place whose engine can answer `kind` (chat, completions or embeddings) with `model`."""
        if self._is_stale:
            self._look()
        return iter(self._part(model, kind, where).seats if where else self._lines.get((model, kind), ()))

    def rank(self, model: str, kind: str, where: Where = EVERYWHERE) -> Rank[Seat] | None:
        """Those seats in the order in which they are taken; None when there are none."""
        if self._is_stale:
            self._look()
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
        if self._is_stale:
            self._look()
        return len(self._part(model, kind, where).seats if where else self._lines.get((model, kind), ())) > 1

    def _part(self, model: str, kind: str, where: Where) -> Part[Seat]:
        if self._places.is_full:
            self._index()
        if self._is_stale:
            self._look()
        line = self._canonical.get(model, model), kind
        return self._places.find(line, where, self._lines.get(line, []))

    def ids(self, name: str) -> frozenset[str]:
        """What a name stands for: ids of models, itself when nobody has it."""
        if self._is_stale:
            self._look()
        return self._ids.get(name) or frozenset((name,))

    def line(self, model: str, kind: str, where: Where = EVERYWHERE) -> Line:
        """What the same slots can serve, whichever name is asked for: an alias is its model's id, where every worker that has the model
        knows it by both. A place is left out where all of them are in it."""
        return self._part(model, kind, where).line if where else (self.canonical.get(model, model), kind)

    def known(self, model: str, where: Where = EVERYWHERE) -> bool:
        """True when a connected worker has the model, or one that is away, or in quarantine, had it; of those in a place."""
        if any(permits(where, seat.worker.tags) for seat in self._named(model)):
            return True
        return any(model in names and permits(where, self.tags.get(id, {})) for id, names in self.remembered.items())

    def offers(self, name: str) -> dict[str, frozenset[str]]:
        """Id of each model that goes by a name -> all names of that one."""
        named = self._named(name)
        known = self._offers.get(name)
        if known is None:
            found: dict[str, set[str]] = {}
            for seat in named:
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
        named = self._named(model)
        if (model, kind) in self._lines and (not where or self._part(model, kind, where).seats):
            return
        if not self.known(model):
            raise errors.ModelNotFound(f"The model '{model}' does not exist or no worker serves it.", param="model")
        if where and not self.known(model, where):
            if not self._is_elsewhere(named, where):
                raise errors.NoWorker(f"The owners of the workers that serve '{model}' keep them for other teams.")
            raise errors.NoResidence(f"No worker with {shown(where)} serves '{model}', and this request may go to no other.")
        there = [seat for seat in named if permits(where, seat.worker.tags)]
        if any((model, kind) in seat.unable for seat in there):
            raise errors.NoWorker(f"Nobody who is there could serve '{model}' when asked last.")
        if there:
            raise errors.BadRequest(f"The model '{model}' does not support {kind}.", param="model", code="unsupported_endpoint")

    def _is_elsewhere(self, seats: Sequence[Seat], where: Where) -> bool:
        """Whether none of them is in a place, whoever asks."""
        place = without_team(where)
        return not any(permits(place, seat.worker.tags) for seat in seats)

    def slots(self, model: str, kind: str, where: Where = EVERYWHERE) -> int:
        """Slots of ready workers that can answer `kind` with the model, free or not."""
        return sum(seat.engine.slots for seat in self.seats(model, kind, where) if seat.worker.state is _READY and seat.engine.healthy)

    def taken(self, model: str, kind: str, where: Where = EVERYWHERE) -> tuple[int, int]:
        """Of these slots those that are leased, and all."""
        seats = [seat for seat in self.seats(model, kind, where) if seat.worker.state is _READY and seat.engine.healthy]
        return sum(seat.used for seat in seats), sum(seat.engine.slots for seat in seats)

    def serves(self, model: str) -> bool:
        """Whether a connected worker announces the model, by whatever name."""
        return bool(self._named(model))

    def present(self, model: str, where: Where = EVERYWHERE) -> bool:
        """True when a connected worker in that place that may take requests has the model."""
        seats = self._named(model)
        return any(seat.worker.state is _READY and seat.engine.healthy and permits(where, seat.worker.tags) for seat in seats)

    def models(self, where: Where = EVERYWHERE) -> dict[str, list[Seat]]:
        """Model id -> the seats of ready workers in a place whose engine has it, may serve it, answers, and has not turned out to
        know no way in which it can be asked for (aliases left out)."""
        out: dict[str, list[Seat]] = {}
        there = [worker for worker in self.workers.values() if worker.state is _READY and permits(where, worker.tags)]
        for seat in (seat for worker in there for seat in worker.seats.values() if seat.engine.healthy):
            served = {line[0] for line in seat.lines()}
            for id in dict.fromkeys(model.id for model in seat.engine.models if model.id in served):
                out.setdefault(id, []).append(seat)
        return out

    def _named(self, name: str) -> Sequence[Seat]:
        """Seats whose engine has a model that goes by it."""
        if self._is_stale:
            self._look()
        return self._serving.get(name, ())

    def _index(self) -> None:
        """What is known here is not so any more."""
        self.changes += 1
        self._is_stale = True

    def _look(self) -> None:
        serving: dict[str, list[Seat]] = {}
        lines: dict[tuple[str, str], list[Seat]] = {}
        for seat in (seat for worker in self.workers.values() for seat in worker.seats.values()):
            seat.ranks, seat.places = [], frozenset()
        inside = [worker for worker in self.workers.values() if worker.is_inside]
        for seat in (seat for worker in inside for seat in worker.seats.values()):
            for name in seat.names():
                serving.setdefault(name, []).append(seat)
            for model, kind, *_ in seat.lines():
                lines.setdefault((model, kind), []).append(seat)
        self.is_kept = any(worker.teams for worker in self.workers.values())
        _believe(inside, lines)
        had_places = len(self._places) > 0
        self._serving, self._lines, self._ranks, self._offers, self._places, self.ejected = serving, lines, {}, {}, Places(), {}
        self._is_stale = False
        self._indexed = frozenset(inside)
        self._ids = {name: frozenset(found.id for seat in seats if (found := seat.model(name))) for name, seats in serving.items()}
        # who waits is sorted anew when this becomes another object; who waits for a place may have other seats in it now
        canonical = {name: id for name, ids in self._ids.items() for id in ids if len(ids) == 1 and serving.get(id) == serving[name]}
        self._canonical = self._canonical if canonical == self._canonical and not had_places else canonical


def _believe(workers: Sequence[Worker], lines: dict[tuple[str, str], list[Seat]]) -> None:
    """Whose engine did not know what its agent reports is asked all the same, where there is nobody else."""
    doubted = [seat for worker in workers for seat in worker.seats.values() if seat.unable]
    lonely = {line for seat in doubted for line in seat.unable} - lines.keys()
    for seat in doubted if lonely else ():
        seat.doubt(seat.unable - lonely)
        for line in seat.lines():
            if line in lonely:
                lines.setdefault((line[0], line[1]), []).append(seat)

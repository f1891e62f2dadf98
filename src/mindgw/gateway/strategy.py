"""By what rule one of several seats is taken; `gateway.experience` knows what each of them would make of the request.

Few seats are all looked at. Of many only those that may be the best: who remembers how the request begins, the one that has its session,
the least busy, and two at random, so that nobody is forgotten.
"""

from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

from mindgw.core import score
from mindgw.core.routing import Where
from mindgw.gateway.experience import Experience, Level, Traits
from mindgw.gateway.fleet import Fleet, Placement
from mindgw.gateway.rank import Rank, SeatId
from mindgw.gateway.seat import Seat

SCORE, LEAST_BUSY, ROUND_ROBIN, WEIGHTED, STICKY = "score", "least-busy", "round-robin", "weighted", "sticky"
STRATEGIES = (SCORE, LEAST_BUSY, ROUND_ROBIN, WEIGHTED, STICKY)
#: Of many seats: how many of those that remember most, of the least busy, and by chance are looked at.
_HOLDERS, _HEADS, _CHANCE = 3, 4, 2
#: Of so many seats one is drawn by its slots, before the least busy is taken.
_DRAWS = 8
#: Knuth's multiplicative hash: the numbers of leases become dice.
_GOLDEN, _WORD = 0x9E3779B97F4A7C15, 2**64 - 1
_NO_LEVELS: list[Level] = []
#: Organisation of a session, and which it is: its model, whose it is, its name.
Home = tuple[str, tuple[str, str, str]]


class Wanted(Protocol):
    """What a request needs of a worker (`route.Needs`)."""

    @property
    def model(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def avoid(self) -> frozenset[SeatId]: ...
    @property
    def where(self) -> Where: ...
    @property
    def strategy(self) -> str: ...
    @property
    def traits(self) -> Traits: ...


#: Whether a seat that was found would do.
Fits = Callable[[Seat], bool] | None
#: What a request needs, and ids of seats that it is not to have.
Asked = tuple[Wanted, frozenset[SeatId]]


def place(fleet: Fleet, rank: Rank[Seat], needs: Wanted, shun: frozenset[SeatId], now: float, fits: Fits = None) -> Placement | None:
    """A slot of one of the seats of a line that has several, but none that is to be shunned; None when none of them is free now, or the
    one that would be taken does not fit: then nothing is remembered of that."""
    rule, traits, experience = needs.strategy or fleet.strategy, needs.traits, fleet.experience
    model = fleet.canonical.get(needs.model, needs.model)
    levels = experience.levels(traits.prefix) if traits.prefix is not None else _NO_LEVELS
    considered: tuple[tuple[str, float], ...] = ()
    home = _home(traits, model, rule)
    seat: Seat | None
    if rule == SCORE:
        seats = _some(fleet, rank, (needs, shun), home, levels, now) if rank.is_long else rank.free(needs.avoid, now, shun)
        if not seats:
            return None
        totals = experience.totals(seats, model, traits, levels, now)
        seat = _best(experience, seats, totals, home, _dice(fleet))
        considered = tuple([(each.owner, found) for each, found in zip(seats, totals, strict=True)])
    else:
        seat = _by_rule(rule, fleet, rank, (needs, shun), home, now)
        if seat is None:
            return None
    if fits is not None and not fits(seat):
        return None
    if home is not None:
        experience.sessions.note(*home, seat.owner)
    choice = experience.take(seat, model, traits, levels, (rule, considered), now)
    offer = seat.model(needs.model)
    return Placement(fleet, seat, offer.id if offer is not None else needs.model, needs.kind, choice)


def _home(traits: Traits, model: str, rule: str) -> Home | None:
    """What is remembered of where a request's like was; a conversation is about one model, and so is what stays of it on a worker."""
    if traits.session is not None:
        return traits.org, (model, *traits.session)
    return (traits.org, (model, traits.caller, "")) if rule == STICKY and traits.caller else None


def _dice(fleet: Fleet) -> int:
    """Another number for each lease, as if by chance; the same in each run."""
    return (fleet.turns * _GOLDEN & _WORD) >> 16


def _best(experience: Experience, seats: Sequence[Seat], totals: Sequence[float], home: Home | None, dice: int) -> Seat:
    """Of those that are about as good as the best: the one that has the session, or the less busy of two."""
    near = score.near(totals)
    if len(near) == 1:
        return seats[near[0]]
    if home is not None:
        owner = experience.sessions.where(*home)
        for found in near:
            if seats[found].owner == owner:
                return seats[found]
    first, second = score.draw(len(near), dice)
    one, other = seats[near[first]], seats[near[second]]
    return one if (one.share, one.turn) <= (other.share, other.turn) else other


def _some(fleet: Fleet, rank: Rank[Seat], wanted: Asked, home: Home | None, levels: Sequence[Level], now: float) -> list[Seat]:
    """Of many seats those that are worth a look."""
    needs, shun = wanted
    avoid, experience = needs.avoid | shun, fleet.experience
    found = rank.heads(_HEADS, avoid, now)
    others = experience.holders(levels, _HOLDERS) if levels else []
    if home is not None:
        others += _at(fleet, home)
    for seat in [*others, *_drawn(rank, _dice(fleet), _CHANCE)]:
        if seat not in found and seat.id not in avoid and seat.free(now) and rank.has(seat):
            found.append(seat)
    if not found and needs.avoid and (best := rank.best(needs.avoid, now, shun)) is not None:
        found.append(best)
    return found


def _drawn(rank: Rank[Seat], dice: int, count: int) -> list[Seat]:
    """By chance, perhaps some twice."""
    return [rank.seats[(dice * step >> 7) % len(rank.seats)] for step in range(1, 1 + count)]


def _at(fleet: Fleet, home: Home) -> list[Seat]:
    """The seats of the worker that has a session."""
    worker = fleet.workers.get(fleet.experience.sessions.where(*home))
    return list(worker.seats.values()) if worker is not None else []


def _by_rule(rule: str, fleet: Fleet, rank: Rank[Seat], wanted: Asked, home: Home | None, now: float) -> Seat | None:
    needs, shun = wanted
    avoid = needs.avoid | shun
    if rule == ROUND_ROBIN:
        return rank.rotate(needs.avoid, now, shun)
    if rule == STICKY and home is not None:
        for seat in _at(fleet, home):
            if seat.id not in avoid and rank.has(seat) and seat.free(now):
                return seat
    if rule == WEIGHTED:
        dice = _dice(fleet)
        seats = (
            [each for each in _drawn(rank, dice, _DRAWS) if each.id not in avoid and each.free(now)]
            if rank.is_long
            else rank.free(needs.avoid, now, shun)
        )
        if seats:
            slots = list(accumulate(seat.engine.slots for seat in seats))
            return seats[bisect(slots, dice % slots[-1])]
    return rank.best(needs.avoid, now, shun)

"""Which worker answers a request, and what happens when it does not.

Of the workers that have the model and a free slot `gateway.strategy` takes one; where there is only one, nobody chooses.
A seat that turned the request down before is taken only when no other is free; one whose engine failed it is not taken again, nor one
that is left alone because the model fails there. Another engine of the same worker is as good as that of another one, unless the worker is
gone.
"""

from collections.abc import Callable, Generator
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from mindgw.core.routing import EVERYWHERE, Where
from mindgw.gateway import ejection, strategy
from mindgw.gateway.experience import NOTHING, Traits
from mindgw.gateway.fleet import Fleet, Placement
from mindgw.gateway.rank import NOBODY, SeatId

# the queue is handed one, and whoever asks for one has it from here
__all__ = ["TRIES", "Ended", "Needs", "Outcome", "Placement", "attempts", "place"]

#: Workers that one request is tried on before the caller hears of it.
TRIES = 3


class Needs(Struct, frozen=True, gc=False):
    """What a request needs of a worker."""

    model: str
    #: chat, completions or embeddings.
    kind: str
    #: Ids of seats that this request was lost on or turned down by.
    avoid: frozenset[SeatId] = NOBODY
    #: Ids of seats whose engine failed this request: it is not sent there again.
    shun: frozenset[SeatId] = NOBODY
    #: Where alone it may go: no worker that is not there is ever asked, whatever becomes of the others.
    where: Where = EVERYWHERE
    #: By what rule one of several seats is taken; "": by the fleet's.
    strategy: str = ""
    #: What a choice asks of the request.
    traits: Traits = NOTHING


class Outcome(Enum):
    """How an attempt ended before the caller saw a byte of its answer."""

    BUSY = "busy"  # the worker has no room, or drains: nothing was begun
    FULL = "full"  # its engine says that it has no room: nothing was begun, but it was asked
    LOST = "lost"  # the worker is gone, or cannot reach its engine
    FAILED = "failed"  # its engine answered with an error or with garbage, or not in time
    UNABLE = "unable"  # its engine has no such model, or no such way to ask for it


#: Ends before anything was begun.
TURNED_DOWN = frozenset({Outcome.BUSY, Outcome.FULL})


class Ended(Struct, frozen=True, gc=False):
    """An attempt that came to nothing."""

    outcome: Outcome
    #: Id of the seat that it had; of all its worker's, when that is gone.
    seats: frozenset[SeatId]
    #: Monotonic seconds.
    now: float
    #: The one that ran at the same time, which had come to nothing before.
    beside: "Ended | None" = None


def place(fleet: Fleet, needs: Needs, now: float, fits: strategy.Fits = None) -> Placement | None:
    """A slot for `needs`, leased; None when no worker has one free now, or the one that would be taken does not fit."""
    rank = fleet.rank(needs.model, needs.kind, needs.where)
    if rank is None:
        return None
    shun = needs.shun
    if fleet.breaker.tripped:
        shun |= ejection.held(fleet, needs.model, needs.kind, now, needs.where)
    if not rank.is_single:
        return strategy.place(fleet, rank, needs, shun, now, fits)
    best = rank.best(needs.avoid, now, shun)
    if best is None or (fits is not None and not fits(best)):
        return None
    model = best.model(needs.model)
    return Placement(fleet, best, model.id if model is not None else needs.model, needs.kind)


def attempts(needs: Needs, may: Callable[[Needs, float], bool], tries: int = TRIES) -> Generator[Needs, Ended, None]:
    """Yields what each attempt needs and is sent how it ended when it came to nothing; ends when no other may be made.

    Being turned down is no try and may happen any number of times; other ends make up `tries` at most. Another worker may always be there
    for one that was lost; after a failure `may` says whether one is asked, so that a fleet in which all fail is not asked all the more, and
    so it does once an engine said for the second time that it has no room. Of two that ran at the same time each counts.
    """
    while True:
        ended = yield needs
        ends = (ended,) if ended.beside is None else (ended.beside, ended)
        counted = sum(one.outcome not in TURNED_DOWN for one in ends)
        tries -= counted
        if counted and tries <= 0:
            return
        shun, is_paid = needs.shun, False
        for one in ends:
            is_paid = is_paid or (one.outcome is Outcome.FULL and one.seats <= needs.avoid)
            needs = _without(needs, one)
        if (is_paid or needs.shun is not shun) and not may(needs, ended.now):
            return


def _without(needs: Needs, ended: Ended) -> Needs:
    """What is needed after that."""
    if ended.outcome in TURNED_DOWN or ended.outcome is Outcome.LOST:
        return replace(needs, avoid=needs.avoid | ended.seats)
    return replace(needs, shun=needs.shun | ended.seats)

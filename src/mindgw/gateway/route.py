"""Which worker answers a request, and what happens when it does not.

For now: of the workers that have the model and a free slot, the least busy one; ties go to the one that waited longest.
A worker that turned the request down before is taken only when no other is free.
"""

from collections.abc import Generator
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from mindgw.core.routing import EVERYWHERE, Where
from mindgw.gateway.fleet import Fleet, Placement

# the queue is handed one, and whoever asks for one has it from here
__all__ = ["TRIES", "Needs", "Outcome", "Placement", "attempts", "place"]

#: Workers that one request is lost on before the caller hears of it.
TRIES = 3


class Needs(Struct, frozen=True, gc=False):
    """What a request needs of a worker."""

    model: str
    #: chat, completions or embeddings.
    kind: str
    #: Ids of workers that this request was lost on or turned down by.
    avoid: frozenset[str] = frozenset()
    #: Where alone it may go: no worker that is not there is ever asked, whatever becomes of the others.
    where: Where = EVERYWHERE
    #: How a seat is chosen; "": as the server does it.
    strategy: str = ""


class Outcome(Enum):
    """How an attempt ended before the caller saw a byte of it."""

    BUSY = "busy"
    LOST = "lost"


def place(fleet: Fleet, needs: Needs, now: float) -> Placement | None:
    """A slot for `needs`, leased; None when no worker has one free now."""
    best = fleet.best(needs.model, needs.kind, needs.avoid, now, where=needs.where)
    if best is None:
        return None
    model = best.model(needs.model)
    return Placement(fleet, best, model.id if model is not None else needs.model)


def attempts(needs: Needs) -> Generator[Needs, tuple[Outcome, str], None]:
    """Yields what each attempt needs and is sent (outcome, worker id) of the one that failed; ends when no other may be made.

    Being turned down costs nothing and may happen any number of times; being lost on a worker may happen TRIES times.
    """
    lost = 0
    while lost < TRIES:
        outcome, worker = yield needs
        needs = replace(needs, avoid=needs.avoid | {worker})
        lost += outcome is Outcome.LOST

"""The way of one request: the models and places that it goes to, one after the other, and on which of them it is."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from mindgw.core.routing import Leg, Where
from mindgw.gateway.places import Line


class Ground(Protocol):
    """What there is to go to; the fleet."""

    def present(self, model: str, where: Where) -> bool:
        """Whether a connected worker in that place may take requests for the model."""

    def taken(self, model: str, kind: str, where: Where) -> tuple[int, int]:
        """Slots there that are leased, and all."""

    def line(self, model: str, kind: str, where: Where) -> Line:
        """Where one stands who waits for it."""


class Standing(Protocol):
    """Who waits; the queue's order."""

    def standing(self, line: Line) -> int:
        """Tickets that wait in a line."""


class Course(Struct, frozen=True, gc=False):
    """Where a request may go. Each leg is held to all that its caller is bound to."""

    #: Name of the route; "": it goes by none.
    route: str
    legs: tuple[Leg, ...]
    #: Number of the one that it begins with, from 0.
    first: int = 0
    #: How a seat is chosen; "": as the server does it.
    strategy: str = ""
    #: Whether a stream that is late to begin is tried on a second worker at once.
    hedge: bool = False

    def after(self, leg: int, spent: int, ground: Ground) -> int | None:
        """Number of the next leg with a worker, behind the first `spent` and other than the one that it is on; None when there is none."""
        others = (number for number in range(spent, len(self.legs)) if number != leg)
        return next((number for number in others if ground.present(self.legs[number].model, self.legs[number].where)), None)


def begin(legs: Sequence[Leg], kind: str, ground: Ground, order: Standing, *, spill: bool) -> int:
    """Number of the leg that a request begins with: the first one with a worker; when it may spill, the first of these with a slot that
    nobody waits for."""
    there = [number for number, leg in enumerate(legs) if ground.present(leg.model, leg.where)]
    first = there[0] if there else 0
    return next((number for number in there if _is_free(legs[number], kind, ground, order)), first) if spill else first


def _is_free(leg: Leg, kind: str, ground: Ground, order: Standing) -> bool:
    used, slots = ground.taken(leg.model, kind, leg.where)
    return used < slots and not order.standing(ground.line(leg.model, kind, leg.where))

"""The way of one request: the models and places that it goes to, one after the other, and on which of them it is."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from mindgw.core.routing import Leg, Where
from mindgw.gateway.places import Line
from mindgw.gateway.route import Needs


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
    spill: bool = False
    #: How a seat is chosen; "": as the server does it.
    strategy: str = ""
    #: Whether a stream that is late to begin is tried on a second worker at once.
    hedge: bool = False

    def begin(self, kind: str, ground: Ground, order: Standing) -> Leg:
        """The leg that it begins with: the first one with a worker; when it may spill, the first of these with a slot that nobody waits
        for."""
        there = [leg for leg in self.legs if ground.present(leg.model, leg.where)]
        if self.spill:
            return next((leg for leg in there if _is_free(leg, kind, ground, order)), (there or self.legs)[0])
        return (there or self.legs)[0]

    def after(self, needs: Needs, spent: int, ground: Ground) -> Leg | None:
        """The next leg with a worker, behind those that are spent and other than the one that it is on; None when there is none."""
        mine = Leg(needs.model, needs.where)
        others: Sequence[Leg] = [leg for leg in self.legs[spent:] if leg != mine]
        return next((leg for leg in others if ground.present(leg.model, leg.where)), None)

    def place(self, needs: Needs) -> int:
        """On which leg it is."""
        return self.legs.index(Leg(needs.model, needs.where))


def _is_free(leg: Leg, kind: str, ground: Ground, order: Standing) -> bool:
    used, slots = ground.taken(leg.model, kind, leg.where)
    return used < slots and not order.standing(ground.line(leg.model, kind, leg.where))

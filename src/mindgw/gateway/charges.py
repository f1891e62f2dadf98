"""What one request has against engines: either they are broken, or it is.

The first one that fails it is blamed at once, so that others are spared. Once a second one fails it as well the fault is likelier its own,
and nobody is blamed; unless another engine serves it in the end: then all are who did not.
"""

from msgspec import Struct

from mindgw.core.breaker import End, Who
from mindgw.core.routing import Where
from mindgw.gateway.failover import Failover
from mindgw.gateway.fleet import Placement


class Charge(Struct):
    """One engine failed it."""

    placement: Placement
    #: Where else it might have gone.
    where: Where
    #: Whether the engine says that it has no such model, or no such way to ask for it.
    lacks: bool
    #: As the breaker was told of it; None: it was not.
    end: End | None = None
    #: Whether its seat is not asked so again because of it.
    marked: bool = False


class Charges:
    """Those of one request."""

    __slots__ = ("_all", "_failover", "_who")

    def __init__(self, failover: Failover, who: Who) -> None:
        self._failover = failover
        self._who = who
        # bounded: by the tries of a request
        self._all: list[Charge] = []

    def add(self, placement: Placement, where: Where, now: float, *, lacks: bool) -> None:
        """Another engine failed it; to be called before its slot is given back."""
        self._all.append(Charge(placement, where, lacks))
        if len(self._all) == 1:
            self._press(self._all[0], now)
        elif len(self._all) == 2:
            self._drop(self._all[0])

    def served(self, now: float) -> None:
        """An engine does what others did not."""
        charges, self._all = self._all, []
        if len(charges) > 1:
            for charge in charges:
                self._press(charge, now)

    def _press(self, charge: Charge, now: float) -> None:
        if charge.lacks:
            charge.marked = self._failover.lacks(charge.placement, charge.where, now)
        else:
            charge.end = self._failover.failed(charge.placement, charge.where, now, self._who)

    def _drop(self, charge: Charge) -> None:
        if charge.marked:
            self._failover.has(charge.placement)
        if charge.end is not None:
            self._failover.withdraw(charge.placement, charge.end)

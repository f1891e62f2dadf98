"""Lines that only some of a model's seats can serve: those in one place (`core.routing.Where`).

The queue has one line for each set of slots. Where all seats of a model are in a place its line is the model's own; places with the same
seats share one.
"""

from collections.abc import Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from mindgw.core.routing import Where, permits
from mindgw.gateway.rank import Place, Rank

#: What the same slots can serve: a model and a kind of answer, and where, unless it is everywhere.
Line = tuple[str, str] | tuple[str, str, Where]
#: Places that are remembered: labels of keys may name any number of them.
MOST: Final = 10_000


class Spot(Place, Protocol):
    """A seat, as far as places are concerned."""

    #: Ranks that want to be told of its changes, and lines of places that it can serve.
    ranks: list[Any]
    places: frozenset[Line]

    @property
    def tags(self) -> Mapping[str, str]:
        """Those of its worker."""


S = TypeVar("S", bound=Spot)


class Part(Generic[S]):
    """The seats of a model that are in one place, in the order in which they are taken."""

    __slots__ = ("line", "rank", "seats")

    def __init__(self, line: Line, seats: list[S]) -> None:
        self.line = line
        self.seats = seats
        self.rank: Rank[S] = Rank(seats)
        for seat in seats if self.rank.is_long else ():
            seat.ranks.append(self.rank)


class Places(Generic[S]):
    """Places that were asked for, of one state of the fleet: when that changes all is forgotten."""

    def __init__(self) -> None:
        # bounded: by MOST
        self._parts: dict[tuple[str, str, Where], Part[S]] = {}
        #: Model, kind and seats -> who has them.
        # bounded: as above
        self._same: dict[tuple[str, str, frozenset[S]], Part[S]] = {}

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def is_full(self) -> bool:
        """Whether it is time to forget them."""
        return len(self._parts) >= MOST

    def find(self, line: tuple[str, str], where: Where, seats: list[S]) -> Part[S]:
        """Those of the seats that are there; `seats` are all of the line."""
        model, kind = line
        part = self._parts.get((model, kind, where))
        if part is None:
            there = [seat for seat in seats if permits(where, seat.tags)]
            key = model, kind, frozenset(there)
            part = self._same.get(key)
            if part is None:
                part = self._same[key] = Part(line if len(there) == len(seats) else (model, kind, where), there)
                for seat in there if len(part.line) > 2 else ():
                    seat.places |= {part.line}
            self._parts[model, kind, where] = part
        return part

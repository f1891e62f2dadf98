"""The seats that can serve one line, in the order in which they are taken: the least busy first, then the one that waited longest.

Few seats are looked at one by one. Many stand in a heap, where each has one valid entry as long as it may have room: whoever changes what
an entry was made of tells `offer`. So a choice costs O(log n) among any number of workers.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final, Generic, Protocol, TypeVar

#: Seats beyond which they stand in a heap.
FEW = 12
#: The share of one that takes nothing more.
FULL: Final = float("inf")
#: Ids of a worker and of its engine.
SeatId = tuple[str, str]
NOBODY: Final[frozenset[SeatId]] = frozenset()


class Place(Protocol):
    """A seat, as far as the order depends on it."""

    @property
    def share(self) -> float:
        """How busy it is; infinite when all its slots are taken, or when it takes nothing until further notice."""

    @property
    def turn(self) -> int:
        """When it was last leased."""

    @property
    def stamp(self) -> int:
        """Another one after each change of the above."""

    @property
    def id(self) -> SeatId: ...

    def free(self, now: float) -> bool: ...


P = TypeVar("P", bound=Place)
#: Share, turn, number among the seats, stamp.
_Entry = tuple[float, int, int, int]


class Rank(Generic[P]):
    """The seats of one line."""

    __slots__ = ("_heap", "_next", "_numbers", "is_single", "seats")

    def __init__(self, seats: Sequence[P]) -> None:
        """They do not change: other seats are another rank."""
        self.seats = seats
        #: Whether there is nothing to choose.
        self.is_single = len(seats) == 1
        #: The place of the one whose turn is next, where each has its turn.
        self._next = 0
        #: None while they are few.
        self._heap: list[_Entry] | None = None
        self._numbers: dict[P, int] = {}
        if len(seats) > FEW:
            self._numbers = {seat: number for number, seat in enumerate(seats)}
            self._rebuild()

    @property
    def is_long(self) -> bool:
        """Whether it wants to be told of changes."""
        return self._heap is not None

    def has(self, seat: P) -> bool:
        """Whether it is one of them."""
        return seat in self._numbers if self._heap is not None else seat in self.seats

    def offer(self, seat: P) -> None:
        """Something about a seat has changed."""
        heap = self._heap
        if heap is None or seat.share == FULL:
            return
        heappush(heap, (seat.share, seat.turn, self._numbers[seat], seat.stamp))
        if len(heap) > 2 * len(self.seats) + FEW:
            self._rebuild()

    def best(self, avoid: frozenset[SeatId], now: float, shun: frozenset[SeatId] = NOBODY) -> P | None:
        """The seat to take; one to be avoided only when there is no other, one to be shunned never. None
        when none is free."""
        if self._heap is not None:
            return self._from_heap(self._heap, avoid, now, shun)
        if self.is_single:
            only = self.seats[0]
            return only if only.free(now) and only.id not in shun else None
        best: P | None = None
        rank: tuple[bool, float, int] | None = None
        for seat in self.seats:
            if seat.free(now) and seat.id not in shun:
                mine = (seat.id in avoid, seat.share, seat.turn)
                if rank is None or mine < rank:
                    best, rank = seat, mine
        return best

    def free(self, avoid: frozenset[SeatId], now: float, shun: frozenset[SeatId] = NOBODY) -> list[P]:
        """All that are free, those to be avoided only when there are no others, and none to be shunned."""
        found = [seat for seat in self.seats if seat.free(now)]
        if shun:
            found = [seat for seat in found if seat.id not in shun]
        return [seat for seat in found if seat.id not in avoid] or found if avoid else found

    def heads(self, most: int, avoid: frozenset[SeatId], now: float) -> list[P]:
        """As often `best`: the first that are free, and are not to be avoided; only where they are many."""
        heap, found, aside = self._heap or [], list[P](), list[_Entry]()
        while heap and len(found) < most:
            entry = heappop(heap)
            seat = self.seats[entry[2]]
            if entry[3] != seat.stamp or seat.share == FULL:
                continue
            aside.append(entry)
            if seat.id not in avoid and seat.free(now):
                found.append(seat)
        for entry in aside:
            heappush(heap, entry)
        return found

    def rotate(self, avoid: frozenset[SeatId], now: float, shun: frozenset[SeatId] = NOBODY) -> P | None:
        """The next in turn that is free; one to be avoided only when there is no other, one to be shunned never."""
        seats, count, other = self.seats, len(self.seats), None
        for step in range(count):
            place = (self._next + step) % count
            if not seats[place].free(now) or seats[place].id in shun:
                continue
            if seats[place].id not in avoid:
                self._next = place + 1
                return seats[place]
            other = other or seats[place]
        return other

    def _from_heap(self, heap: list[_Entry], avoid: frozenset[SeatId], now: float, shun: frozenset[SeatId]) -> P | None:
        aside: list[_Entry] = []
        found: P | None = None
        while heap:
            entry = heap[0]
            seat = self.seats[entry[2]]
            if entry[3] != seat.stamp or seat.share == FULL:
                heappop(heap)
                continue
            if seat.free(now) and seat.id not in shun:
                if seat.id not in avoid:
                    found = seat
                    break
                found = found or seat
            aside.append(heappop(heap))  # it rests, or is to be avoided or shunned
        for entry in aside:
            heappush(heap, entry)
        return found

    def _rebuild(self) -> None:
        self._heap = [(seat.share, seat.turn, number, seat.stamp) for number, seat in enumerate(self.seats) if seat.share < FULL]
        heapify(self._heap)

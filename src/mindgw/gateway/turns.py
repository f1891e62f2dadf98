"""Whose turns come first, without asking where everybody stands.

Inside a band the turns are played through: whoever has the smallest counter is next, and its counter grows by what its ticket is expected
to cost. Bands are merged by how many had their turn before, those of higher classes that pass among them. The first thousand of ten
thousand cost little more than a thousand.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace, merge
from itertools import count

from mindgw.core import fair
from mindgw.core.fair.tree import Band, Branch
from mindgw.gateway.queue import Queue
from mindgw.gateway.ticket import Ticket

#: Tickets before it, a number of its own for those that have as many, and itself.
_Place = tuple[float, int, fair.Ticket]


def turns(queue: Queue) -> Iterator[Ticket]:
    """Who waits, whose turn comes first first; an estimate, as `Queue.outlook` is. Void as soon as anything happens to the queue."""
    entries = (ticket.entry for ticket in queue.tickets())
    bands = dict.fromkeys(entry.band for entry in entries if entry is not None and entry.band is not None)
    numbers = count()
    for *_, entry in merge(*(_placed(queue.order, band, numbers) for band in bands)):
        yield entry.item


def _placed(order: fair.Fair, band: Band, numbers: Iterator[int]) -> Iterator[_Place]:
    part, place = _Part(band.root), 0.0
    higher = sum(order.standing(band.line.name, rank) for rank in range(band.rank))
    for turn in range(band.root.waiting):
        ticket = part.next()
        passing = min(higher, max(0.0, order.ahead(ticket).tickets - turn)) if higher else 0
        place = max(place, turn + passing)
        yield place, next(numbers), ticket


class _Part:
    """A branch while its turns are played through; what is below it is not looked at before its first turn."""

    __slots__ = ("_branch", "_parts", "_tickets", "left", "start")

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        #: Tickets that had no turn yet.
        self.left = branch.waiting
        #: Its counter once what runs now is paid for.
        self.start = branch.key() + max(0.0, branch.flow.owed) / branch.flow.weight
        #: The parts of a branch by their counters, or the tickets of a leaf.
        self._parts: list[tuple[float, int, _Part]] = []
        self._tickets: Iterator[fair.Ticket] | None = None

    def next(self) -> fair.Ticket:
        """The ticket whose turn is next; there must be one left."""
        if self._tickets is None:
            self._look()
        self.left -= 1
        ticket = self._turn()
        self.start += ticket.cost / self._branch.flow.weight
        return ticket

    def _turn(self) -> fair.Ticket:
        assert self._tickets is not None
        if not self._parts:
            return next(self._tickets)
        _start, number, part = self._parts[0]
        ticket = part.next()
        if part.left:
            heapreplace(self._parts, (part.start, number, part))
        else:
            heappop(self._parts)
        return ticket

    def _look(self) -> None:
        live = [entry for entry in self._branch.heap if entry[2].entry is entry]
        leaf = isinstance(live[0][2], fair.Ticket)
        self._tickets = iter(sorted((entry[2] for entry in live), key=_number) if leaf else ())
        if not leaf:
            parts = ((_Part(entry[2]), entry[1]) for entry in live)
            self._parts = [(part.start, number, part) for part, number in parts]
            heapify(self._parts)


def _number(ticket: fair.Ticket) -> int:
    return ticket.number

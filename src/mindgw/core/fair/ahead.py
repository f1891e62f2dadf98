"""What stands before a ticket in the fair order: how many tickets, and how many units.

Among siblings the smallest counter goes first. A ticket whose flow has the counter k and `own` units before it comes up when the
flow has reached v = k + own / weight; until then a sibling with the counter c gets what it wants, but no more than
weight x (v - c) and half a ticket, because whoever begins before v is served to the end. The sum over the siblings is what stands
before the ticket in the flow above, where the same is asked again.

The sum is piecewise linear in v. Its corners are kept with the branch and made anew when an eighth of the branch has changed, so
that a look costs O(depth x log n), also among ten thousand siblings. Who arrives later is not foreseen here.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from mindgw.core.fair.tree import Branch, Flow, Ticket


class Ahead(NamedTuple):
    """What is served before a ticket; an estimate, as tickets are not served in parts."""

    tickets: float
    units: float
    #: Units among them that its own flow wants, of the same line and class.
    own: float = 0.0


class Ranks:
    """The tickets of a leaf by number, with sums."""

    __slots__ = ("numbers", "sums")

    def __init__(self, leaf: Branch) -> None:
        tickets = sorted((entry[2] for entry in leaf.heap if entry[2].entry is entry), key=_number)
        self.numbers = [ticket.number for ticket in tickets]
        #: Units before each ticket.
        self.sums = [0.0]
        for ticket in tickets:
            self.sums.append(self.sums[-1] + ticket.cost)

    def before(self, ticket: Ticket) -> Ahead:
        """What stands before it in its leaf."""
        index = bisect_left(self.numbers, ticket.number)
        return Ahead(index, self.sums[index], self.sums[index])


class Corners:
    """What the children of a branch get until a given counter, as a function with corners."""

    __slots__ = ("at", "slopes", "sums")

    def __init__(self, branches: list[Branch]) -> None:
        """Those of one flow, in all lines that wait for the same slots: a child that waits in several advances in all of them at once."""
        steps: list[tuple[float, float, float, float, float]] = []
        for parts in _children(branches):
            steps.extend(_steps(parts))
        steps.sort()
        #: Counters at which something changes.
        self.at = [step[0] for step in steps]
        #: Tickets and units that were served up to each corner, and what one more unit of the counter adds from there on.
        self.sums = [(0.0, 0.0)]
        self.slopes = [(0.0, 0.0)]
        last = steps[0][0] if steps else 0.0
        for at, tickets, units, more_tickets, more_units in steps:
            (had_tickets, had_units), (slope_tickets, slope_units) = self.sums[-1], self.slopes[-1]
            width = at - last
            self.sums.append((had_tickets + slope_tickets * width + tickets, had_units + slope_units * width + units))
            self.slopes.append((slope_tickets + more_tickets, slope_units + more_units))
            last = at

    def until(self, counter: float) -> Ahead:
        """What all children together get before theirs is `counter`."""
        index = bisect_right(self.at, counter)
        if index == 0:
            return Ahead(0.0, 0.0)
        width = counter - self.at[index - 1]
        (tickets, units), (more_tickets, more_units) = self.sums[index], self.slopes[index]
        return Ahead(tickets + more_tickets * width, units + more_units * width)


def before(ticket: Ticket, changes: int) -> Ahead:
    """What is served before a ticket that waits, of its own class, in its line and in those that wait for the same slots; `changes` counts
    what happened to the queue so far."""
    branch = ticket.branch
    assert branch is not None
    mine = _all(branch)
    ahead = _own(ticket, branch, mine)
    while (parent := branch.parent) is not None:
        above = _all(parent)
        if sum(one.live for one in above) > len(mine):
            counter = _start(mine) + ahead.units / branch.flow.weight
            total, part = _corners(above, changes).until(counter), _until(mine, counter)
            tickets, units = max(0.0, total.tickets - part.tickets), max(0.0, total.units - part.units)
            ahead = Ahead(ahead.tickets + tickets, ahead.units + units, ahead.own)
        branch, mine = parent, above
    return ahead


def _all(branch: Branch) -> list[Branch]:
    """The parts of one flow in all lines that wait for the same slots, `branch` first."""
    branches = branch.flow.branches.values()
    return [branch, *(other for other in branches if other.waiting and branch.band.rivals(other.band))]


def _own(ticket: Ticket, leaf: Branch, all_of_it: list[Branch]) -> Ahead:
    """What stands before it in its own flow: whoever has a smaller number, in whichever line."""
    if len(all_of_it) == 1 and ticket.number >= leaf.newest:
        units = leaf.cost - ticket.cost
        return Ahead(leaf.waiting - 1, units, units)
    return _sum(_ranks(one).before(ticket) for one in all_of_it)


def _sum(parts: Iterable[Ahead]) -> Ahead:
    tickets = units = own = 0.0
    for part in parts:
        tickets += part.tickets
        units += part.units
        own += part.own
    return Ahead(tickets, units, own)


def _ranks(leaf: Branch) -> Ranks:
    if not isinstance(leaf.profile, Ranks) or leaf.changes > leaf.live // 8:
        leaf.profile, leaf.changes = Ranks(leaf), 0
    return leaf.profile


def _corners(branches: list[Branch], changes: int) -> Corners:
    """Those of a moment ago, when less than an eighth of the children came or went since, and little was charged."""
    branch, live = branches[0], sum(one.live for one in branches)
    came = branch.changes if len(branches) == 1 else changes - branch.profiled
    if came > live // 8 or changes - branch.profiled > 4 * live or not isinstance(branch.profile, Corners):
        branch.profile, branch.changes, branch.profiled = Corners(branches), 0, changes
    return branch.profile


def _children(branches: list[Branch]) -> Iterable[list[Branch]]:
    """The parts of each child, in all these branches of its parent."""
    if len(branches) == 1:
        return ([entry[2]] for entry in branches[0].heap if entry[2].entry is entry)
    found: dict[Flow, list[Branch]] = {}
    for child in (entry[2] for branch in branches for entry in branch.heap if entry[2].entry is entry):
        found.setdefault(child.flow, []).append(child)
    return found.values()


def _start(parts: list[Branch]) -> float:
    """The counter once what runs now is paid for."""
    flow = parts[0].flow
    key = parts[0].key() if len(parts) == 1 else min(part.key() for part in parts)
    return key + max(0.0, flow.owed) / flow.weight


def _wants(parts: list[Branch]) -> tuple[int, float]:
    """Tickets of one child that wait, and their units."""
    if len(parts) == 1:
        return parts[0].waiting, parts[0].cost
    return sum(part.waiting for part in parts), sum(part.cost for part in parts)


def _steps(parts: list[Branch]) -> list[tuple[float, float, float, float, float]]:
    """Corners of one child: where, a jump and a change of slope, each in tickets and in units."""
    start, weight, (waiting, cost) = _start(parts), parts[0].flow.weight, _wants(parts)
    mean = cost / waiting
    if waiting == 1 or mean <= 0:
        return [(start, waiting, cost, 0.0, 0.0)]
    end = start + (cost - mean / 2) / weight
    return [(start, 0.5, mean / 2, weight / mean, weight), (end, 0.0, 0.0, -weight / mean, -weight)]


def _until(parts: list[Branch], counter: float) -> Ahead:
    """What one child gets before its own counter is `counter`, which is no less than it is now."""
    start, weight, (waiting, cost) = _start(parts), parts[0].flow.weight, _wants(parts)
    mean = cost / waiting
    if waiting == 1 or mean <= 0:
        return Ahead(waiting, cost)
    units = min(cost, mean / 2 + weight * (counter - start))
    return Ahead(units / mean, units)


def _number(ticket: Ticket) -> int:
    return ticket.number

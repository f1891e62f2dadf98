"""What stands before a ticket in the fair order: how many tickets, and how many units.

Among siblings the smallest counter goes first. A ticket whose flow has the counter k and `own` units before it comes up when the
flow has reached v = k + own / weight; until then a sibling with the counter c gets what it wants, but no more than
weight x (v - c) and half a ticket, because whoever begins before v is served to the end. The sum over the siblings is what stands
before the ticket in the flow above, where the same is asked again.

The sum is piecewise linear in v. Its corners are kept with the branch and made anew when an eighth of the branch has changed, so
that a look costs O(depth x log n), also among ten thousand siblings. Who arrives later is not foreseen here.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from mindgw.core.fair.tree import Branch, Ticket


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

    def __init__(self, branch: Branch) -> None:
        steps: list[tuple[float, float, float, float, float]] = []
        for entry in branch.heap:
            if entry[2].entry is entry:
                steps.extend(_steps(entry[2]))
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
    """What is served before a ticket that waits, of its own class and line; `changes` counts what happened to the queue so far."""
    branch = ticket.branch
    assert branch is not None
    if ticket.number >= branch.newest:
        own = branch.cost - ticket.cost
        ahead = Ahead(branch.waiting - 1, own, own)
    else:
        ahead = _ranks(branch).before(ticket)
    while (parent := branch.parent) is not None:
        if parent.live == 1:
            branch = parent
            continue
        counter = _start(branch) + ahead.units / branch.flow.weight
        total, mine = _corners(parent, changes).until(counter), _until(branch, counter)
        others = Ahead(max(0.0, total.tickets - mine.tickets), max(0.0, total.units - mine.units))
        ahead = Ahead(ahead.tickets + others.tickets, ahead.units + others.units, ahead.own)
        branch = parent
    return ahead


def _ranks(leaf: Branch) -> Ranks:
    if not isinstance(leaf.profile, Ranks) or leaf.changes > leaf.live // 8:
        leaf.profile, leaf.changes = Ranks(leaf), 0
    return leaf.profile


def _corners(branch: Branch, changes: int) -> Corners:
    """Those of a moment ago, when less than an eighth of the children came or went since, and little was charged."""
    stale = branch.changes > branch.live // 8 or changes - branch.profiled > 4 * branch.live
    if stale or not isinstance(branch.profile, Corners):
        branch.profile, branch.changes, branch.profiled = Corners(branch), 0, changes
    return branch.profile


def _start(branch: Branch) -> float:
    """The counter once what runs now is paid for."""
    return branch.key() + max(0.0, branch.flow.owed) / branch.flow.weight


def _steps(branch: Branch) -> list[tuple[float, float, float, float, float]]:
    """Corners of one branch: where, a jump and a change of slope, each in tickets and in units."""
    start, weight, mean = _start(branch), branch.flow.weight, branch.cost / branch.waiting
    if branch.waiting == 1 or mean <= 0:
        return [(start, branch.waiting, branch.cost, 0.0, 0.0)]
    end = start + (branch.cost - mean / 2) / weight
    return [(start, 0.5, mean / 2, weight / mean, weight), (end, 0.0, 0.0, -weight / mean, -weight)]


def _until(branch: Branch, counter: float) -> Ahead:
    """What one child gets before its own counter is `counter`, which is no less than it is now."""
    start, weight, mean = _start(branch), branch.flow.weight, branch.cost / branch.waiting
    if branch.waiting == 1 or mean <= 0:
        return Ahead(branch.waiting, branch.cost)
    units = min(branch.cost, mean / 2 + weight * (counter - start))
    return Ahead(units / mean, units)


def _number(ticket: Ticket) -> int:
    return ticket.number

"""The order of the queue: weighted Virtual Token Counters over a tree of flows, inside priority classes that age.

Every flow (tenant -> team -> user -> key -> end user) has a counter of the service it got, in units of weighted tokens divided by
its weight. The next slot goes to the waiting flow with the smallest counter, level by level. A flow that was idle is lifted to the
smallest counter that waits in its band, so nobody saves up credit; and it is lowered to `lead` above that, so nobody is punished for
long for having used what nobody else wanted. Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (Virtual Token
Counter); the tree and the eligibility by lines are ours (docs/explanation/fairness.md).

Words: a *line* is what the same slots can serve (say a model and an endpoint); a *band* is one priority class of a line; a *branch*
is the part of a flow that waits in one band. Counters are kept by flow, order is kept by branch, so a head that no free slot can
serve never stands before another. Joining, taking and leaving cost O(depth x log n).

Pure: no clock, no I/O. Work is measured in units, not in seconds, so no clock can jump.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from heapq import heappush
from math import inf, isfinite

from mindgw.core.fair import turn
from mindgw.core.fair.ahead import Ahead, before
from mindgw.core.fair.tree import Band, Branch, Flow, Line, Path, Ticket, below

#: Name of the child that shares its counter among all who find no room for a counter of their own.
OTHERS = "*"
#: Children of one flow that have counters of their own.
FANOUT = 1000
#: Units that a flow may be ahead of those who wait when it comes back; also what may pass its branch between two turns.
LEAD = 250_000.0
#: The most units that a ticket may be expected to cost, or that can be charged at once: sums stay exact enough.
MOST = 1e15
#: The greatest weight; the smallest is as small as this is great.
WEIGHTIEST = 1e6
#: Lines that are kept although nobody waits there.
_LINES = 1000
#: Units that may pass a waiting class before it is late: bumped, high, normal, batch, sheddable. The class that is latest has the next
#: turn, so that between two turns of one there pass at most aging + (slots + classes that wait for them - 1) x largest cost, and whatever
#: was bumped: that is always next.
AGING = (inf, 20_000.0, 20_000.0, 100_000.0, 400_000.0)

Names = Collection[Hashable]


class Fair:
    """All who wait, in the order in which they are served, and all who run, as far as they still count."""

    def __init__(
        self,
        depth: int,
        weight: Callable[[Path], float] = lambda path: 1.0,
        aging: tuple[float, ...] = AGING,
        lead: float = LEAD,
        fanout: int = FANOUT,
    ) -> None:
        """Paths have `depth` names; `weight(path)` is asked once for every flow and must be finite and above 0; at most `fanout`
        children of a flow have counters of their own at a time; `aging` has the units of each rank."""
        self._depth = depth
        self._weight = weight
        self._aging = aging
        self._lead = lead
        self._fanout = fanout
        self._root = Flow("", None, 1.0)
        self._lines: dict[Hashable, Line] = {}
        #: The last numbers given out at the back, and at the front.
        self._last = self._first = 0
        #: Order of entries with equal keys.
        self._order = 0
        #: What happened so far; tells how old a look at the order is.
        self._changes = 0

    # -- waiting --------------------------------------------------------------------------------------------------

    def join(self, ticket: Ticket, path: Path, line: Hashable, rank: int, number: int | None = None, *, lifted: bool = True) -> None:
        """Stands `ticket` (one that does not wait) in line. With `number` it takes that place of its flow again; `front()` gives one
        before all others. `lifted=False`, for a turn that came to nothing: its flow keeps the credit that it had when it was taken."""
        self._check(ticket, path, rank)
        if number is None:
            self._last += 1
            number = self._last
        band = self._band(line, rank)
        leaf = self._claim(ticket, path)
        ticket.number, ticket.leaf, ticket.band = number, leaf, band
        self._stand(ticket, band, leaf, lifted)

    def front(self) -> int:
        """A number before all that were given out."""
        self._first -= 1
        return self._first

    def leave(self, ticket: Ticket) -> None:
        """Takes out a ticket that waits; it is over. Nothing happens when it does not wait."""
        if ticket.branch is not None:
            self._withdraw(ticket)
            self.finish(ticket)

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits."""
        return self._root.waiting > 0

    def waiting(self, path: Path = ()) -> int:
        """Tickets of a flow that wait; of all, without a path."""
        flow = self._find(path)
        return flow.waiting if flow is not None else 0

    def standing(self, line: Hashable, rank: int | None = None) -> int:
        """Tickets that wait in a line, of one class or of all."""
        found = self._lines.get(line)
        bands = found.bands if found is not None else ()
        return sum(band.root.waiting for band in bands if rank is None or band.rank == rank)

    def backlog(self, line: Hashable) -> float:
        """Units that those who wait in a line are expected to cost."""
        found = self._lines.get(line)
        return sum(band.root.cost for band in found.bands) if found is not None else 0.0

    def lines(self) -> list[Hashable]:
        """Names of the lines in which somebody waits."""
        return [name for name, line in self._lines.items() if any(band.root.waiting for band in line.bands)]

    def tickets(self) -> Iterator[Ticket]:
        """All who wait, in no order."""
        for line in self._lines.values():
            for band in line.bands:
                yield from below(band.root)

    # -- turns ----------------------------------------------------------------------------------------------------

    def best(self, blocked: set[Hashable] | frozenset[Hashable] = frozenset()) -> Ticket | None:
        """Whose turn it is among the lines that are not blocked; None when nobody waits there."""
        best: tuple[float, int, Ticket] | None = None
        for name, line in self._lines.items():
            if name in blocked or (found := turn.band_of(line, self._aging)) is None:
                continue
            late, band = found
            ticket = turn.pick(band.root)
            if best is None or turn.before((late, band.rank, ticket), best):
                best = (late, band.rank, ticket)
        return best[2] if best is not None else None

    def take(self, ticket: Ticket, serves: Names = ()) -> None:
        """A ticket that waited has a slot, one that could have served all lines of that name. Charge it, and `finish` it once."""
        assert ticket.band is not None
        line = ticket.band.line
        ticket.serves = line.shares = serves or (line.name,)
        branch = ticket.branch
        while branch is not None and branch.parent is not None:
            # What its flow gets elsewhere may keep this branch from its turn only for so long.
            branch.limit = max(branch.limit, branch.parent.floor() + self._lead)
            branch.flow.owed += ticket.cost
            branch = branch.parent
        ticket.owed = ticket.cost
        self._withdraw(ticket)
        ticket.band.mark = line.work

    def serve(self, ticket: Ticket, path: Path, line: Hashable, rank: int, serves: Collection[Hashable] = (), units: float = 0.0) -> None:
        """As `join`, `take` and `charge` in one, for a ticket that found a free slot with nobody before it."""
        self._check(ticket, path, rank)
        if not 0 <= units <= MOST:
            raise ValueError(f"cannot charge {units} units")
        self._changes += 1
        known = self._lines.get(line)
        band, leaf = self._band(line, rank) if known is None else known.bands[rank], self._claim(ticket, path)
        # a comparison is a third of a call of min(), and this is the hot path
        cost = ticket.cost
        ticket.leaf, ticket.band, ticket.owed = leaf, band, cost - units if units < cost else 0.0
        ticket.serves = band.line.shares = serves or (line,)
        band.mark = band.line.work
        owed, lead, idle, above = ticket.owed, self._lead, self._root.waiting == 0, band.root
        for flow in leaf.chain:
            branch, counter = flow.branches.get(band) or flow.branch(band), flow.counter
            if idle and above.latest is branch:
                # as `_fit`, where it is the one that those who come are compared with
                key, limit = counter + (branch.shift or 0.0), branch.limit
                branch.limit = top = (limit if limit < key else key) + lead  # noqa: FURB136
                if key > top:
                    branch.shift = top - counter
                flow.home = branch
            else:
                if branch.waiting == 0:
                    self._fit(branch, above, lifted=True)
                above.latest = branch
            flow.owed += owed
            flow.counter = counter + units / flow.weight
            above = branch
        self._work(ticket, units)

    def ahead(self, ticket: Ticket) -> Ahead:
        """What is served before a ticket that waits, with what may pass its class."""
        assert ticket.band is not None
        ahead, line, rank = before(ticket, self._changes), ticket.band.line, ticket.band.rank
        roots = (root for root in self._root.branches.values() if root.waiting and root.band.rank < rank)
        higher = [root for root in roots if line.meets(root.band.line)]  # in those somebody waits for the same slots
        tickets, units = sum(root.waiting for root in higher), sum(root.cost for root in higher)
        if units <= 0:
            return Ahead(ahead.tickets + tickets, ahead.units, ahead.own)
        passing = min(units, (ahead.tickets + 1) * self._aging[ticket.band.rank])
        return Ahead(ahead.tickets + tickets * passing / units, ahead.units + passing, ahead.own)

    def charge(self, ticket: Ticket, units: float) -> None:
        """Books service on a ticket that is not over; less than nothing when an estimate was too high. What is not a number, or
        absurd, is an error."""
        if not abs(units) <= MOST:
            raise ValueError(f"cannot charge {units} units")
        if ticket.leaf is None:
            return
        self._changes += 1
        paid = min(units, ticket.owed) if ticket.branch is None else 0.0
        ticket.owed -= paid
        for flow in ticket.leaf.chain:
            flow.counter += units / flow.weight
            flow.owed -= paid
            if units < 0:
                flow.lowered()
        self._work(ticket, units)

    def _work(self, ticket: Ticket, units: float) -> None:
        """Whatever the slot could have served, it did this instead."""
        lines, serves = self._lines, ticket.serves
        if len(serves) > len(lines):
            serves = [name for name in lines if name in serves]
        for name in serves:
            if (line := lines.get(name)) is not None:
                line.work += units

    def settle(self, ticket: Ticket, units: float) -> None:
        """As `charge` and `finish` in one, for a ticket that runs."""
        if not abs(units) <= MOST:
            raise ValueError(f"cannot charge {units} units")
        leaf = ticket.leaf
        if leaf is None:
            return
        if ticket.branch is not None:
            raise ValueError("the ticket waits")
        self._changes += 1
        owed, ticket.owed, ticket.leaf, ticket.band = ticket.owed, 0.0, None, None
        lowers = units < 0 and self._root.waiting > 0
        for flow in leaf.chain:
            flow.counter += units / flow.weight
            flow.owed -= owed
            if lowers:
                flow.lowered()
        if leaf.claims > 1:
            leaf.claims -= 1
        else:
            leaf.disclaim()
        self._work(ticket, units)

    def finish(self, ticket: Ticket) -> None:
        """A ticket is over: it neither waits nor runs. Nothing happens the second time."""
        if ticket.branch is not None:
            self._withdraw(ticket)
        self._forgive(ticket)
        leaf, ticket.leaf = ticket.leaf, None
        ticket.band = None
        if leaf is not None:
            leaf.disclaim()

    # -- memory ---------------------------------------------------------------------------------------------------

    def counters(self) -> Iterator[tuple[Path, float]]:
        """How far every flow is ahead of those it stood with last, from 0 to `lead`, parents before children; to be kept over a
        restart."""
        stack = list(self._root.children.values())
        while stack:
            flow = stack.pop()
            yield flow.path, min(max(flow.lag(), 0.0), self._lead)
            stack.extend(flow.children.values())

    def restore(self, counters: Iterable[tuple[Path, float]]) -> None:
        """Takes over what `counters` gave; before the first ticket. Flows that are not a number, or have no parent, are left out."""
        for path, counter in counters:
            parent = self._find(path[:-1])
            if parent is None or not 0 < len(path) <= self._depth or not isfinite(counter):
                continue
            flow = parent.children.get(path[-1])
            if flow is None and len(parent.children) < self._fanout:
                flow = self._plant(parent, path[-1])
            if flow is not None:
                flow.counter = min(max(counter, 0.0), self._lead)

    # -- how it works ---------------------------------------------------------------------------------------------

    def _find(self, path: Path) -> Flow | None:
        flow: Flow | None = self._root
        for name in path:
            flow = flow.children.get(name) if flow is not None else None
        return flow

    def _check(self, ticket: Ticket, path: Path, rank: int) -> None:
        if not 0 <= rank < len(self._aging):
            raise ValueError(f"no priority class has the rank {rank}")
        if ticket.branch is not None:
            raise ValueError("the ticket waits already")
        if not 0 <= ticket.cost <= MOST:
            raise ValueError(f"a ticket cannot cost {ticket.cost} units")
        if len(path) != self._depth:
            raise ValueError(f"a path has {self._depth} names, not {len(path)}")

    def _band(self, name: Hashable, rank: int) -> Band:
        line = self._lines.get(name)
        if line is None:
            if len(self._lines) >= _LINES:
                self._lines = {name: line for name, line in self._lines.items() if any(band.root.waiting for band in line.bands)}
            line = self._lines[name] = Line(name, self._root, len(self._aging))
        return line.bands[rank]

    def _claim(self, ticket: Ticket, path: Path) -> Flow:
        """The leaf of a ticket; one that comes back has it still, and what it was expected to cost is no longer expected."""
        if ticket.leaf is not None:
            self._forgive(ticket)
            return ticket.leaf
        flow = self._root
        for name in path:
            flow = flow.children.get(name) or self._grow(flow, name)
        if flow.claims:
            flow.claims += 1
        else:
            flow.claim()
        return flow

    def _grow(self, parent: Flow, name: str) -> Flow:
        """A child for `name`: a new one, in place of the one that is idle for longest when there are too many."""
        if len(parent.children) - (OTHERS in parent.children) >= self._fanout:
            forgotten = next((idle for idle in parent.idle if idle != OTHERS), None)
            if forgotten is not None:
                parent.forget(forgotten)
            else:
                name = OTHERS
                if (others := parent.children.get(name)) is not None:
                    return others
        return self._plant(parent, name)

    def _plant(self, parent: Flow, name: str) -> Flow:
        weight = self._weight((*parent.path, name))
        if not 1 / WEIGHTIEST <= weight <= WEIGHTIEST:
            raise ValueError(f"the weight of {name!r} is {weight}, but must lie between {1 / WEIGHTIEST:g} and {WEIGHTIEST:g}")
        child = parent.children[name] = parent.idle[name] = Flow(name, parent, weight)
        return child

    def _forgive(self, ticket: Ticket) -> None:
        """Nothing more is expected of a ticket that ran."""
        owed, ticket.owed = ticket.owed, 0.0
        if owed and ticket.leaf is not None:
            for flow in ticket.leaf.chain:
                flow.owed -= owed

    def _stand(self, ticket: Ticket, band: Band, leaf: Flow, lifted: bool) -> None:
        """Makes the branches that are missing, from the top down, and puts the ticket into the last one."""
        self._changes += 1
        branch = band.root
        if branch.waiting == 0:
            band.mark = band.line.work
            self._root.branches[band] = branch
        self._root.waiting += 1
        branch.waiting += 1
        branch.changes += 1
        branch.cost += ticket.cost
        for flow in leaf.chain:
            flow.waiting += 1
            below = flow.branch(band)
            if below.waiting == 0:
                self._fit(below, branch, lifted)
                branch.live += 1
                self._order += 1
                branch.enter(below, self._order)
            below.waiting += 1
            below.changes += 1
            below.cost += ticket.cost
            branch = below
        ticket.branch = branch
        branch.newest = max(branch.newest, ticket.number)
        branch.live += 1
        self._order += 1
        ticket.entry = (ticket.number, self._order, ticket)
        heappush(branch.heap, ticket.entry)

    def _fit(self, branch: Branch, parent: Branch, lifted: bool) -> None:
        """Fits the key of a branch where nothing waits to those who wait: no credit is saved up, and no debt above `lead`. Who comes
        back because the turn came to nothing keeps the credit, but not above `lead` either."""
        flow, floor = branch.flow, parent.floor()
        key = flow.counter + branch.shift if branch.shift is not None else flow.counter if flow.home is None else floor + flow.lag()
        fitting = min(max(key, floor if lifted else floor - self._lead), floor + self._lead)
        if branch.shift is None or fitting != key:
            branch.shift = fitting - flow.counter
        branch.limit = floor + self._lead
        branch.parent = parent
        flow.home = branch

    def _withdraw(self, ticket: Ticket) -> None:
        """Takes a ticket out of its branch, and branches that became empty out of theirs."""
        self._changes += 1
        branch, ticket.branch, ticket.entry = ticket.branch, None, None
        assert branch is not None
        branch.live -= 1
        branch.tidy()
        while branch is not None:
            parent = branch.parent
            branch.waiting -= 1
            branch.changes += 1
            branch.cost -= ticket.cost
            branch.flow.waiting -= 1
            if branch.waiting == 0:
                branch.close()
                if parent is None:
                    del branch.flow.branches[branch.band]
                else:
                    parent.live -= 1
                    parent.tidy()
                    parent.latest = branch
            branch = parent

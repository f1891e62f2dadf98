"""The whole order against a plain model: whatever happens in whatever order, nothing is lost and every heap tells the truth."""

from collections import Counter, defaultdict
from itertools import pairwise
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mindgw.core.fair import Fair, Ticket

NAMES = st.sampled_from("abc")
LINES = st.sampled_from("XYZ")
RANKS = st.integers(0, 4)
COSTS = st.integers(0, 50).map(float)
BLOCKED = st.frozensets(LINES)
ANY = st.integers(0, 10**6)
#: Powers of two, so that all sums are exact.
WEIGHT = {"a": 1.0, "b": 2.0, "c": 0.25}


class Order(RuleBasedStateMachine):
    """The model is a list of tickets that wait, one of those that run, and what was charged for each flow."""

    @initialize(depth=st.integers(2, 3), lead=st.sampled_from([10.0, 100.0, 1e5]), fanout=st.sampled_from([1, 2, 1000]))
    def start(self, depth, lead, fanout):
        self.depth = depth
        self.lead = lead
        self.aging = (float("inf"), 20.0, 40.0, 100.0, 400.0)
        self.fair = Fair(depth, lambda path: WEIGHT.get(path[-1], 1.0), self.aging, lead, fanout)
        self.waiting, self.running, self.over = [], [], []
        self.where = {}
        self.ledger = defaultdict(float)
        self.work = defaultdict(float)
        self.mark = {}

    def path(self, names):
        return tuple(names[: self.depth])

    def stands(self, ticket, path, line, rank):
        """What the model knows of a ticket that joins."""
        if not any(self.where[other][1:] == (line, rank) for other in self.waiting):
            self.mark[line, rank] = self.work[line]
        self.waiting.append(ticket)
        self.where[ticket] = (path, line, rank)

    @rule(names=st.tuples(NAMES, NAMES, NAMES), line=LINES, rank=RANKS, cost=COSTS)
    def join(self, names, line, rank, cost):
        ticket = Ticket(names, cost)
        self.fair.join(ticket, self.path(names), line, rank)
        self.stands(ticket, self.path(names), line, rank)

    @rule(names=st.tuples(NAMES, NAMES, NAMES), line=LINES, rank=RANKS, cost=COSTS, units=COSTS)
    def is_served_at_once(self, names, line, rank, cost, units):
        ticket = Ticket(names, cost)
        self.fair.serve(ticket, self.path(names), line, rank, (line,), units)
        self.mark[line, rank] = self.work[line]
        self.running.append(ticket)
        self.where[ticket] = (self.path(names), line, rank)
        self.books(ticket, units)

    @precondition(lambda self: self.running)
    @rule(index=ANY, first=st.booleans(), lifted=st.booleans(), elsewhere=st.none() | st.tuples(LINES, RANKS))
    def comes_back(self, index, first, lifted, elsewhere):
        ticket = self.running.pop(index % len(self.running))
        path, line, rank = self.where[ticket]
        if elsewhere is not None:
            line, rank = elsewhere
        leaf = ticket.leaf
        self.fair.join(ticket, path, line, rank, self.fair.front() if first else ticket.number, lifted=lifted)
        assert ticket.leaf is leaf, "it belongs to whom it belonged"
        self.stands(ticket, path, line, rank)
        if first and len(self.waiting) > 1:
            assert ticket.number < min(other.number for other in self.waiting if other is not ticket)

    @precondition(lambda self: self.waiting)
    @rule(index=ANY, finish=st.booleans())
    def leaves(self, index, finish):
        ticket = self.waiting.pop(index % len(self.waiting))
        (self.fair.finish if finish else self.fair.leave)(ticket)
        self.over.append(ticket)

    @rule(index=ANY)
    def leaves_or_ends_in_vain(self, index):
        for ticket in self.running[index % 3 :: 3]:
            self.fair.leave(ticket)
        for ticket in self.over[index % 3 :: 3]:
            self.fair.leave(ticket)
            self.fair.finish(ticket)
            self.fair.charge(ticket, 7.0)
            self.fair.settle(ticket, 7.0)

    @rule(blocked=BLOCKED, shared=st.booleans())
    def takes_the_best(self, blocked, shared):
        ticket = self.fair.best(blocked)
        open_to = [other for other in self.waiting if self.where[other][1] not in blocked]
        if ticket is None:
            assert not open_to
            return
        assert ticket in open_to
        _, line, rank = self.where[ticket]
        self.is_of_the_right_band(line, rank, open_to)
        self.is_smallest_all_the_way(ticket)
        same = [other for other in self.waiting if other.branch is ticket.branch]
        assert ticket.number == min(other.number for other in same), "first in, first out inside a flow"
        self.fair.take(ticket, tuple("XYZ") if shared else ())
        self.waiting.remove(ticket)
        self.running.append(ticket)
        self.mark[line, rank] = self.work[line]

    def is_of_the_right_band(self, line, rank, open_to):
        """Whoever was put before all others; else the latest of all classes; if none is late, the highest."""
        late = {
            (li, ra): inf if self.aging[ra] == inf else max(0.0, self.work[li] - self.mark[li, ra] - self.aging[ra])
            for _, li, ra in map(self.where.get, open_to)
        }
        mine = late[line, rank]
        assert mine == max(late.values())
        assert rank == min(ra for (_, ra), value in late.items() if value == mine)

    def is_smallest_all_the_way(self, ticket):
        chains = [self.chain(other) for other in self.waiting]
        for level, branch in enumerate(self.chain(ticket)[1:], start=1):
            siblings = {chain[level] for chain in chains if chain[level - 1] is branch.parent}
            assert branch.key() == min(other.key() for other in siblings)

    def chain(self, ticket):
        """Branches from the top down."""
        out, branch = [], ticket.branch
        while branch is not None:
            out.insert(0, branch)
            branch = branch.parent
        return out

    @precondition(lambda self: self.waiting)
    @rule(index=ANY)
    def takes_another(self, index):
        """The owner may have reasons of his own."""
        ticket = self.waiting.pop(index % len(self.waiting))
        _, line, rank = self.where[ticket]
        self.fair.take(ticket)
        self.running.append(ticket)
        self.mark[line, rank] = self.work[line]

    @precondition(lambda self: self.running or self.waiting)
    @rule(index=ANY, units=st.integers(-60, 120).map(float))
    def is_charged(self, index, units):
        living = self.running + self.waiting
        ticket = living[index % len(living)]
        self.books(ticket, units)
        self.fair.charge(ticket, units)

    def books(self, ticket, units):
        for flow in ticket.leaf.chain:
            self.ledger[flow] += units / flow.weight
        for line in self.fair._lines.keys() & {*ticket.serves}:
            self.work[line] += units

    @precondition(lambda self: self.running)
    @rule(index=ANY, units=st.none() | st.integers(-60, 120).map(float))
    def ends(self, index, units):
        ticket = self.running.pop(index % len(self.running))
        if units is None:
            self.fair.finish(ticket)
        else:
            self.books(ticket, units)
            self.fair.settle(ticket, units)
        self.over.append(ticket)

    @precondition(lambda self: self.waiting)
    @rule(index=ANY)
    def is_asked_what_stands_before(self, index):
        ticket = self.waiting[index % len(self.waiting)]
        ahead = self.fair.ahead(ticket)
        assert ahead.tickets >= 0
        assert ahead.units >= 0

    # -- what holds at all times ------------------------------------------------------------------------------------

    @invariant()
    def nobody_is_lost_or_doubled(self):
        assert Counter(map(id, self.fair.tickets())) == Counter(map(id, self.waiting))
        assert self.fair.waiting() == len(self.waiting)
        stand = Counter(self.where[ticket][1] for ticket in self.waiting)
        assert {line: self.fair.standing(line) for line in "XYZ"} == {line: stand[line] for line in "XYZ"}
        assert set(self.fair.lines()) == set(stand)
        for line in "XYZ":
            assert self.fair.backlog(line) == sum(ticket.cost for ticket in self.waiting if self.where[ticket][1] == line)
        assert (self.fair.best() is None) == (not self.waiting)
        assert all(line.work == self.work[name] for name, line in self.fair._lines.items())

    @invariant()
    def flows_know_what_is_theirs(self):
        claims, waiting, owed = Counter(), Counter(), Counter()
        for ticket in self.waiting + self.running:
            for flow in ticket.leaf.chain:
                waiting[flow] += ticket.branch is not None
                owed[flow] += ticket.owed
            claims[ticket.leaf] += 1
        for leaf in list(claims):
            for above, flow in pairwise(reversed(leaf.chain)):
                claims[flow] = sum(1 for child in flow.children.values() if claims[child])
                assert above.parent is flow
        stack = list(self.fair._root.children.values())
        while stack:
            flow = stack.pop()
            assert (flow.claims, flow.waiting, flow.owed) == (claims[flow], waiting[flow], owed[flow])
            assert flow.counter == self.ledger[flow]
            assert (flow.name in flow.parent.idle) == (flow.claims == 0)
            assert len(flow.children) <= self.fair._fanout + 1
            stack.extend(flow.children.values())
        assert all(ticket.leaf is None and ticket.branch is None and ticket.owed == 0 for ticket in self.over)

    @invariant()
    def heaps_tell_the_truth(self):
        below = defaultdict(set)
        for ticket in self.waiting:
            chain = [*self.chain(ticket), ticket]
            for parent, child in pairwise(chain):
                below[parent].add(child)
        for branch, children in below.items():
            assert {entry[2] for entry in branch.heap if entry[2].entry is entry} == children
            assert len(children) == branch.live
            assert len(branch.heap) <= 2 * branch.live + 17
            tickets = [ticket for ticket in self.waiting if branch in self.chain(ticket)]
            assert (branch.waiting, branch.cost) == (len(tickets), sum(ticket.cost for ticket in tickets))
            if isinstance(next(iter(children)), Ticket):
                assert branch.head().number == min(child.number for child in children)
                continue
            assert all(child.entry[0] <= child.key() for child in children), "an entry that is too high would hide its branch"
            assert branch.top().key() == branch.floor() == min(child.key() for child in children)

    @invariant()
    def what_is_kept_over_a_restart_is_bounded(self):
        assert all(0 <= ahead <= self.lead for _, ahead in self.fair.counters())


Order.TestCase.settings = settings(stateful_step_count=70)
TestOrder = Order.TestCase

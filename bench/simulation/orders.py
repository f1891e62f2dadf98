"""Who is next: the fair order, and the two that it is compared with, behind one interface."""

from collections import OrderedDict
from collections.abc import Collection, Hashable
from typing import Protocol

from bench.simulation.jobs import RANKS, Job
from mindgw.core.fair import Ahead, Fair, Path, Ticket

Line = tuple[str, str]


class Order(Protocol):
    """A queue's order. A ticket's `item` is the job; it is joined, then taken or left, charged while it runs, finished at its end."""

    def join(self, ticket: Ticket, line: Line) -> None: ...
    def best(self, blocked: set[Hashable]) -> Ticket | None: ...
    def take(self, ticket: Ticket, serves: Collection[Line]) -> None: ...
    def leave(self, ticket: Ticket) -> None: ...
    def charge(self, ticket: Ticket, units: float) -> None: ...
    def finish(self, ticket: Ticket) -> None: ...
    def ahead(self, ticket: Ticket) -> Ahead: ...
    def waiting(self) -> int: ...


class FairOrder:
    """The kernel. A path is a team and a user: what stands before the last slash of a client's name is its team."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._fair = Fair(2, lambda path: weights.get("/".join(path), 1.0))

    def join(self, ticket: Ticket, line: Line) -> None:
        job: Job = ticket.item
        self._fair.join(ticket, path_of(job.client), line, RANKS[job.priority])

    def best(self, blocked: set[Hashable]) -> Ticket | None:
        return self._fair.best(blocked)

    def take(self, ticket: Ticket, serves: Collection[Line]) -> None:
        self._fair.take(ticket, serves)

    def leave(self, ticket: Ticket) -> None:
        self._fair.leave(ticket)

    def charge(self, ticket: Ticket, units: float) -> None:
        self._fair.charge(ticket, units)

    def finish(self, ticket: Ticket) -> None:
        self._fair.finish(ticket)

    def ahead(self, ticket: Ticket) -> Ahead:
        return self._fair.ahead(ticket)

    def waiting(self) -> int:
        return self._fair.waiting()


class Rotation:
    """First come, first served; or, with flows, one request of each flow in turn."""

    def __init__(self, by_client: bool) -> None:
        self._by_client = by_client
        #: line -> flow -> tickets; the flow whose turn it is stands first.
        self._lines: dict[Line, OrderedDict[str, OrderedDict[int, Ticket]]] = {}
        self._number = 0
        self._count = 0
        #: What waits in each line, and in each flow of it: units.
        self._cost: dict[Line, float] = {}
        self._own: dict[tuple[Line, str], float] = {}
        self._where: dict[int, tuple[Line, str, int]] = {}

    def join(self, ticket: Ticket, line: Line) -> None:
        self._number += 1
        job: Job = ticket.item
        flow = job.client if self._by_client else ""
        self._lines.setdefault(line, OrderedDict()).setdefault(flow, OrderedDict())[self._number] = ticket
        self._where[id(ticket)] = (line, flow, self._number)
        self._cost[line] = self._cost.get(line, 0.0) + ticket.cost
        self._own[line, flow] = self._own.get((line, flow), 0.0) + ticket.cost
        self._count += 1

    def best(self, blocked: set[Hashable]) -> Ticket | None:
        heads = [next(iter(next(iter(flows.values())).items())) for line, flows in self._lines.items() if line not in blocked]
        return min(heads)[1] if heads else None

    def take(self, ticket: Ticket, serves: Collection[Line]) -> None:
        self.leave(ticket)

    def leave(self, ticket: Ticket) -> None:
        line, flow, number = self._where.pop(id(ticket))
        flows = self._lines[line]
        tickets = flows[flow]
        del tickets[number]
        flows.move_to_end(flow)
        if not tickets:
            del flows[flow]
        if not flows:
            del self._lines[line]
        self._cost[line] -= ticket.cost
        self._own[line, flow] -= ticket.cost
        self._count -= 1

    def charge(self, ticket: Ticket, units: float) -> None:
        """What somebody got does not matter here."""

    def finish(self, ticket: Ticket) -> None:
        """Nor does who runs."""

    def ahead(self, ticket: Ticket) -> Ahead:
        """Of one that joined just now: those who were there, as far as they have their turns before it."""
        line, flow, _ = self._where[id(ticket)]
        flows = self._lines[line]
        turns = len(flows[flow])  # its own included
        tickets = float(sum(min(turns, len(each)) for each in flows.values()) - 1)
        waiting = sum(len(each) for each in flows.values())
        own = self._own[line, flow] - ticket.cost if self._by_client else 0.0
        return Ahead(tickets, (self._cost[line] - ticket.cost) * tickets / max(1, waiting - 1), own)

    def waiting(self) -> int:
        return self._count


def path_of(client: str) -> Path:
    """A client's path in the tree of flows; one without a team is a team of its own."""
    team, _, user = client.rpartition("/")
    return team or user, user


#: The fair order in which the expected answer is paid for with the prompt, and the difference at its end.
PREPAID = "fair, prepaid"
POLICIES = ("fair", PREPAID, "fifo", "round robin")


def made(policy: str, weights: dict[str, float]) -> Order:
    """An order by the name of its policy."""
    return FairOrder(weights) if policy in {"fair", PREPAID} else Rotation(by_client=policy == "round robin")

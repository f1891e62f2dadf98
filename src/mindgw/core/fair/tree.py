"""What the order is kept in: flows with their counters, and the branches of flows that wait."""

from collections.abc import Collection, Hashable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import Any

Path = tuple[str, ...]
#: Heaps may hold this many entries that are void before they are rebuilt.
_SLACK = 16
#: A flow remembers its part in this many bands, and in all in which it waits.
_BRANCHES = 64


class Flow:
    """One node of the tree of flows: who is served, and how much it got."""

    __slots__ = ("branches", "chain", "children", "claims", "counter", "home", "idle", "name", "owed", "parent", "waiting", "weight")

    def __init__(self, name: str, parent: "Flow | None", weight: float) -> None:
        self.name = name
        self.parent = parent
        self.weight = weight
        #: The flows of its path, from the top down, without the root.
        self.chain: tuple[Flow, ...] = (*parent.chain, self) if parent is not None else ()
        #: Service that it got, in units per weight; at first, how far it is ahead of those who begin at 0.
        self.counter = 0.0
        #: Units that its running tickets are still expected to cost.
        self.owed = 0.0
        self.children: dict[str, Flow] = {}
        #: Children that neither wait nor run, longest idle first: the first to be forgotten.
        self.idle: dict[str, Flow] = {}
        #: Where it began to wait last: how far it is ahead there, it is ahead in a band that it does not know yet.
        self.home: Branch | None = None
        #: Tickets that wait or run, at a leaf; above, children that have such.
        self.claims = 0
        #: Tickets below it that wait.
        self.waiting = 0
        #: Its part in each band in which something of it waits, or did wait: the oldest of these are forgotten.
        self.branches: dict[Band, Branch] = {}

    @property
    def path(self) -> Path:
        """Names from the top down to this flow."""
        return () if self.parent is None else (*self.parent.path, self.name)

    def claim(self) -> None:
        """One more ticket of this leaf waits or runs."""
        flow = self
        flow.claims += 1
        while flow.claims == 1 and (parent := flow.parent) is not None:
            parent.idle.pop(flow.name, None)
            parent.claims += 1
            flow = parent

    def disclaim(self) -> None:
        """One ticket less does."""
        flow = self
        flow.claims -= 1
        while flow.claims == 0 and (parent := flow.parent) is not None:
            flow.owed = 0.0
            parent.idle[flow.name] = flow
            parent.claims -= 1
            flow = parent

    def forget(self, name: str) -> None:
        """Drops an idle child with all below it. They refer to each other in circles, which are opened here: who comes and goes once in a
        request would leave them to the garbage collector."""
        del self.idle[name]
        stack = [self.children.pop(name)]
        while stack:
            flow = stack.pop()
            stack.extend(flow.children.values())
            flow.chain, flow.home = (), None
            for branch in flow.branches.values():
                branch.parent = None
            for parts in (flow.branches, flow.children, flow.idle):
                parts.clear()

    def lag(self) -> float:
        """How far it is ahead of the smallest of those that it stood with last."""
        home = self.home
        if home is None or home.parent is None:
            return self.counter
        return home.key() - home.parent.floor()

    def lowered(self) -> None:
        """Its counter fell: its parts need new entries at once; those of counters that grow are mended when they come to the top."""
        for branch in self.branches.values():
            if branch.parent is not None and branch.entry is not None and branch.key() < branch.entry[0]:
                branch.parent.enter(branch, branch.entry[1])

    def branch(self, band: "Band") -> "Branch":
        """Its part in a band, made when there is none."""
        found = self.branches.get(band)
        if found is None:
            if len(self.branches) >= _BRANCHES and (old := next((b for b in self.branches.values() if not b.waiting), None)) is not None:
                del self.branches[old.band]
            found = self.branches[band] = Branch(self, band)
        return found


class Branch:
    """The part of a flow that waits in one band: a heap of branches, or of tickets at the leaf.

    Its key is the counter of its flow, put into the band's own scale: who shares a band is compared, and bands in which others are
    served, faster or not at all, have no say in it."""

    __slots__ = (
        "band", "changes", "cost", "entry", "flow", "heap", "latest", "limit", "live", "newest", "parent", "profile", "profiled", "shift",
        "waiting",
    )  # fmt: skip

    def __init__(self, flow: Flow, band: "Band") -> None:
        self.flow = flow
        self.band = band
        #: The part of the flow above, since it waited last; None at the top.
        self.parent: Branch | None = None
        #: Children by key, or tickets by number; entries that are void are dropped when they come to the top.
        self.heap: list[tuple[float, int, Any]] = []
        #: Children or tickets in the heap that are not void.
        self.live = 0
        #: Tickets below it that wait, and what they are expected to cost.
        self.waiting = 0
        self.cost = 0.0
        #: It counts for no more than this, however much its flow gets elsewhere meanwhile: one turn per `lead` is sure.
        self.limit = inf
        #: Added to its flow's counter; None before it waited for the first time.
        self.shift: float | None = None
        #: The child that emptied last: where newcomers begin when nobody waits.
        self.latest: Branch | None = None
        #: Its one valid entry in its parent's heap.
        self.entry: tuple[float, int, Any] | None = None
        #: The largest number that a ticket of a leaf ever had.
        self.newest = 0
        #: What `ahead` keeps here, how many came or went since, and how much had happened to the queue when it was made.
        self.profile: Any = None
        self.changes = self.profiled = 0

    def key(self) -> float:
        """What its turn is decided by."""
        return min(self.limit, self.flow.counter + (self.shift or 0.0))

    def floor(self) -> float:
        """The smallest key of a child that waits. When none does, that of the last that did, or, if more, the smallest of those who
        wait elsewhere for the same slots."""
        if (top := self.top()) is not None:
            return top.key()
        start = self.latest.key() if self.latest is not None else 0.0
        rivals = [top.key() for other in self.flow.branches.values() if self.band.rivals(other.band) and (top := other.top()) is not None]
        return max(start, min(rivals, default=start))

    def top(self) -> "Branch | None":
        """The child branch whose turn is next; void and outdated entries are mended on the way."""
        heap = self.heap
        while heap:
            entry = heap[0]
            child: Branch = entry[2]
            if child.entry is not entry:
                heappop(heap)
                continue
            key = child.key()
            if entry[0] >= key:
                return child
            child.entry = (key, entry[1], child)
            heapreplace(heap, child.entry)
        return None

    def head(self) -> "Ticket":
        """The oldest ticket of a leaf where one waits."""
        heap = self.heap
        while heap[0][2].entry is not heap[0]:
            heappop(heap)
        ticket: Ticket = heap[0][2]
        return ticket

    def enter(self, child: "Branch", order: int) -> None:
        """Puts a child in at its present key, anew when it was there."""
        child.entry = (child.key(), order, child)
        heappush(self.heap, child.entry)
        self.tidy()

    def tidy(self) -> None:
        """Drops what is void once it is more than half."""
        if len(self.heap) > 2 * self.live + _SLACK:
            self.heap = [entry for entry in self.heap if entry[2].entry is entry]
            heapify(self.heap)

    def close(self) -> None:
        """Nothing waits there any more; what is void goes at once."""
        self.heap.clear()
        self.cost = 0.0
        self.profile = self.entry = None


class Band:
    """One priority class of a line."""

    __slots__ = ("line", "mark", "rank", "root")

    def __init__(self, line: "Line", rank: int, flow: Flow) -> None:
        self.line = line
        self.rank = rank
        self.root = Branch(flow, self)
        #: The line's work when this band began to wait or had its last turn.
        self.mark = 0.0

    def rivals(self, other: "Band") -> bool:
        """Whether another band of the same rank waits for the same slots."""
        return self is not other and self.rank == other.rank and self.line.meets(other.line)


class Line:
    """What the same slots can serve."""

    __slots__ = ("bands", "name", "shares", "work")

    def __init__(self, name: Hashable, flow: Flow, ranks: int) -> None:
        self.name = name
        #: Units charged so far for what slots did that this line could have had.
        self.work = 0.0
        #: Names of the lines that the last slot of this line could have served.
        self.shares: Collection[Hashable] = ()
        self.bands = tuple(Band(self, rank, flow) for rank in range(ranks))

    def meets(self, other: "Line") -> bool:
        """Whether both wait for the same slots, as far as is known."""
        return self is other or self.name in other.shares or other.name in self.shares


class Ticket:
    """One request: it waits (`branch` is set), or runs, or is over."""

    __slots__ = ("band", "branch", "cost", "entry", "item", "leaf", "number", "owed", "serves")

    def __init__(self, item: Any, cost: float) -> None:
        #: Whatever the owner wants to find again.
        self.item = item
        #: Units that it is expected to cost in all; only forecasts depend on it.
        self.cost = cost
        #: Units that it is still expected to cost while it runs.
        self.owed = 0.0
        #: Order of arrival; negative for those that came back to the head.
        self.number = 0
        #: None once it is over.
        self.leaf: Flow | None = None
        self.band: Band | None = None
        #: Where it waits; None while it runs.
        self.branch: Branch | None = None
        #: Its one valid entry there.
        self.entry: tuple[float, int, Ticket] | None = None
        #: Names of all lines that its slot could have served.
        self.serves: Collection[Hashable] = ()


def below(branch: Branch) -> Iterator[Ticket]:
    """The tickets of a branch."""
    stack = [branch]
    while stack:
        branch = stack.pop()
        for entry in branch.heap:
            below = entry[2]
            if below.entry is not entry:
                continue
            if isinstance(below, Ticket):
                yield below
            else:
                stack.append(below)

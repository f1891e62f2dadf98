"""Why a request waits, in words."""

from collections import defaultdict
from collections.abc import Callable

from mindgw.core.fair import Path
from mindgw.core.fair.tree import Flow
from mindgw.core.routing import shown
from mindgw.gateway.flows import CLASSES
from mindgw.gateway.places import Line
from mindgw.gateway.queue import Queue
from mindgw.gateway.ticket import Ticket

#: What is said of those of a level who have no name there.
_NAMELESS = {2: "keys without a team", 3: "keys without a user", 5: "requests without an end user"}
_KEY = 4
#: Flow -> what it used.
_Used = dict[str, float]


class Reasons:
    """One look at the queue: what is true of many tickets is found out once."""

    def __init__(self, queue: Queue, used: Callable[[Ticket], tuple[int, int]]) -> None:
        """`used`: slots that are taken, and all, of the workers that could serve a ticket."""
        self._queue = queue
        self._used = used
        #: Slots, and the highest class that waits, by line.
        self._lines: dict[Line, tuple[tuple[int, int], str]] = {}
        #: Path of a flow -> what those below it used of late; None until it is asked for.
        self._shares: dict[Path, _Used] | None = None
        #: Path of a flow -> what those below it weigh together.
        self._even: dict[Path, float] = {}

    def reason(self, ticket: Ticket, position: int, key: str) -> str:
        """Why a ticket waits at that position of its line; `key` is the name of its key."""
        if self._queue.is_paused(ticket.line):
            return "paused by an operator"
        (used, slots), highest = self._line(ticket)
        if not slots:
            place = f" with {place}" if (place := shown(ticket.needs.where)) else ""
            return f"no worker{place} is ready for {ticket.needs.model}"
        reasons = [f"no free slot {used}/{slots}"]
        if highest and highest != CLASSES[ticket.rank]:
            reasons.append(f"{CLASSES[ticket.rank]} yields to {highest}")
        if position > 1 and (share := self._share(ticket, key)):
            reasons.append(share)
        return ", ".join(reasons)

    def _line(self, ticket: Ticket) -> tuple[tuple[int, int], str]:
        found = self._lines.get(ticket.line)
        if found is None:
            waiting = self._queue.classes(ticket.line)
            highest = next((name for name, count in waiting.items() if count), "")
            found = self._lines[ticket.line] = self._used(ticket), highest
        return found

    def _share(self, ticket: Ticket, key: str) -> str:
        """Where it, or who it belongs to, used more of late than would be even among those beside it."""
        if self._shares is None:
            self._shares = self._by_parent()
        path = ticket.flow.path
        for depth, flow in enumerate(_chain(ticket)[1:], 2):
            name, beside = path[depth - 1], self._shares.get(path[: depth - 1], {})
            mine, whole = beside.get(name, 0.0), sum(beside.values())
            if whole <= 0 or mine / whole <= flow.weight / self._weights(flow, path[:depth], beside):
                continue
            label = (key if depth == _KEY else "") or name or _NAMELESS[depth]
            return f"fair share: {label} used {100 * mine / whole:.0f} %"
        return ""

    def _weights(self, flow: Flow, path: Path, beside: _Used) -> float:
        """What the flow weighs together with all beside it who used something of late, or wait now."""
        found = self._even.get(path[:-1])
        if found is None:
            assert flow.parent is not None
            weights = {name: child.weight for name, child in flow.parent.children.items() if child.waiting or name in beside}
            found = self._even[path[:-1]] = sum({**dict.fromkeys(beside, 1.0), **weights}.values())
        return found

    def _by_parent(self) -> dict[Path, _Used]:
        found: dict[Path, _Used] = defaultdict(dict)
        for path, units in self._queue.pace.shares.items():
            if units > 0:
                found[path[:-1]][path[-1]] = units
        return found


def _chain(ticket: Ticket) -> list[Flow]:
    """The flows that it belongs to, from the organisation down."""
    found: list[Flow] = []
    flow = ticket.entry.leaf if ticket.entry is not None else None
    while flow is not None and flow.parent is not None:
        found.append(flow)
        flow = flow.parent
    return found[::-1]

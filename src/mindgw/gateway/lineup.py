"""Who waits and who runs, and why who waits does: values for management, made when somebody looks."""

from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest
from itertools import islice
from typing import Protocol

from msgspec import Struct

from mindgw.gateway.admission import Caller
from mindgw.gateway.flows import CLASSES
from mindgw.gateway.queue import Outlook, Queue
from mindgw.gateway.ticket import Ticket

#: Requests that are shown at most, of those that wait and of those that run.
MOST = 1000


class Entry(Struct, frozen=True, kw_only=True):
    """One request that waits or runs."""

    #: Of the request, as in the log and in `x-mindgw-request-id`.
    id: str
    #: waiting or running.
    state: str
    model: str
    kind: str
    #: bumped, high, normal, batch or sheddable.
    priority: str
    key_id: str
    key: str
    team: str
    user: str
    #: Who is behind a trusted proxy, "" for nobody.
    end_user: str
    #: Where it stands in its line, 1 is next; 0 when it runs.
    position: int
    #: Seconds until its turn; None when nobody can tell yet.
    eta_s: float | None
    #: Seconds that it waited, and that it runs.
    waited_s: float
    running_s: float
    #: Name of the worker that it runs on.
    worker: str
    #: Why it waits.
    reason: str
    #: Units that it is expected to cost, or that were charged so far.
    units: float


class Share(Struct, frozen=True, kw_only=True):
    """What a team got of the last minutes."""

    team: str
    #: Between 0 and 1.
    share: float
    units: float


class Stats(Struct, frozen=True, kw_only=True):
    """The queue in numbers."""

    #: Requests that wait.
    waiting: int
    #: Requests that have a slot.
    running: int
    #: Waiting tickets by class.
    classes: dict[str, int]
    #: Seconds that the oldest one waits.
    oldest_s: float
    #: Error of the estimates at entry, |estimate - wait| / max(wait, 5 s), half of them are not worse; null before there was one.
    eta_error_median: float | None
    #: The same, nine in ten are not worse.
    eta_error_p90: float | None
    #: What each team got of the last minutes: `team`, `share` between 0 and 1, `units`.
    shares: list[Share]
    #: Bytes of the requests that wait.
    bytes: int
    #: Whether all models are paused.
    paused: bool
    #: Models that are paused beside that.
    paused_models: list[str]


class Request(Protocol):
    """A request under way."""

    @property
    def caller(self) -> Caller | None: ...
    @property
    def ticket(self) -> Ticket | None: ...
    @property
    def worker(self) -> str: ...


def entries(requests: Iterable[Request], queue: Queue, used: Callable[[Ticket], tuple[int, int]], now: float) -> list[Entry]:
    """Who waits, in the order of their turns as far as it is known, then who runs; of either the MOST that came first. `used`: slots
    that are taken, and all, of the workers that could serve a ticket."""
    view = View(queue, used, now)
    known = [(ticket, request) for request in requests if (ticket := request.ticket) is not None]
    found = [view.entry(ticket, request) for ticket, request in nsmallest(MOST, known, key=_came) if ticket.waiting]
    found += [view.entry(ticket, request) for ticket, request in islice((pair for pair in known if pair[0].running), MOST)]
    return sorted(found, key=lambda entry: (entry.state == "running", entry.position, -entry.waited_s))


def find(requests: Iterable[Request], queue: Queue, used: Callable[[Ticket], tuple[int, int]], now: float, request_id: str) -> Entry | None:
    """One of them, by the id of its request."""
    pairs = ((ticket, request) for request in requests if (ticket := request.ticket) is not None and ticket.id == request_id)
    found = next(pairs, None)
    return View(queue, used, now).entry(*found) if found is not None else None


def _came(pair: tuple[Ticket, Request]) -> tuple[bool, float]:
    return not pair[0].waiting, pair[0].entered


def stats(queue: Queue, running: int, now: float) -> Stats:
    """The queue in numbers."""
    wrong = sorted(queue.pace.errors)
    return Stats(
        waiting=queue.waiting,
        running=running,
        classes=queue.classes(),
        oldest_s=round(queue.oldest(now), 3),
        eta_error_median=round(wrong[len(wrong) // 2], 3) if wrong else None,
        eta_error_p90=round(wrong[len(wrong) * 9 // 10], 3) if wrong else None,
        shares=list(_shares(queue)),
        bytes=queue.held,
        paused=queue.paused,
        paused_models=sorted(queue.paused_models),
    )


def _shares(queue: Queue) -> Iterator[Share]:
    teams = {path: units for path, units in queue.pace.shares.items() if len(path) == 2 and units > 0}
    whole = sum(teams.values())
    for path, units in sorted(teams.items(), key=lambda item: -item[1]):
        yield Share(team=path[1], share=round(units / whole, 4), units=round(units))


class View:
    """One look at the queue."""

    def __init__(self, queue: Queue, used: Callable[[Ticket], tuple[int, int]], now: float) -> None:
        self._queue = queue
        self._used = used
        self._now = now

    def entry(self, ticket: Ticket, request: Request) -> Entry:
        """What can be said of one ticket."""
        outlook = self._queue.outlook(ticket, self._now) if ticket.waiting else Outlook(0, None)
        _org, team, user, key_id, end_user = ticket.flow.path
        placed = ticket.placed
        return Entry(
            id=ticket.id,
            state="waiting" if ticket.waiting else "running",
            model=ticket.needs.model,
            kind=ticket.needs.kind,
            priority=CLASSES[ticket.rank],
            key_id=key_id,
            key=request.caller.name if request.caller is not None else "",
            team=team,
            user=user,
            end_user=end_user,
            position=outlook.position,
            eta_s=round(outlook.eta, 1) if outlook.eta is not None else None,
            waited_s=round((placed if placed is not None else self._now) - ticket.entered, 3),
            running_s=round(self._now - placed, 3) if placed is not None else 0.0,
            worker=request.worker,
            reason=self.reason(ticket, outlook) if ticket.waiting else "",
            units=round(ticket.booked if placed is not None else ticket.cost, 1),
        )

    def reason(self, ticket: Ticket, outlook: Outlook) -> str:
        """Why it waits, for people."""
        if self._queue.is_paused(ticket.line):
            return "paused by an operator"
        used, slots = self._used(ticket)
        if not slots:
            return f"no worker is ready for {ticket.needs.model}"
        reasons = [f"no free slot {used}/{slots}"]
        higher = next((name for name, count in self._queue.classes(ticket.line).items() if count), "")
        if higher and higher != CLASSES[ticket.rank]:
            reasons.append(f"{CLASSES[ticket.rank]} yields to {higher}")
        if outlook.position > 1 and (share := self._share(ticket)):
            reasons.append(share)
        return ", ".join(reasons)

    def _share(self, ticket: Ticket) -> str:
        """How much the team, or the user within it, used of late, where others used something, too."""
        for depth in (2, 3):
            mine = ticket.flow.path[:depth]
            beside = {path: units for path, units in self._queue.pace.shares.items() if len(path) == depth and path[:-1] == mine[:-1]}
            whole = sum(beside.values())
            if len(beside) > 1 and whole > 0 and mine in beside and mine[-1]:
                return f"fair share: {mine[-1]} used {100 * beside[mine] / whole:.0f} %"
        return ""

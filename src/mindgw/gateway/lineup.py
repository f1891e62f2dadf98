"""Who waits and who runs, and why who waits does: values for management, made when somebody looks."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from msgspec import Struct

from mindgw.gateway.admission import Caller
from mindgw.gateway.flows import CLASSES
from mindgw.gateway.queue import Outlook, Queue
from mindgw.gateway.reason import Reasons
from mindgw.gateway.ticket import Ticket
from mindgw.gateway.turns import turns

#: Requests that a picture shows at most, of those that wait and of those that run.
MOST = 1000
#: Requests that are looked at before others have their turn in the event loop.
_CHUNK = 100


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
    #: Those of them that no connected worker announces now: a name that is not quite right pauses nobody.
    paused_unserved: list[str] = []


class Request(Protocol):
    """A request under way."""

    @property
    def caller(self) -> Caller | None: ...
    @property
    def ticket(self) -> Ticket | None: ...
    @property
    def worker(self) -> str: ...


class Wanted(Struct, frozen=True, kw_only=True):
    """Which requests a list is to have; what is empty allows all."""

    #: waiting or running.
    state: str = ""
    model: str = ""
    #: Name of the team.
    team: str = ""
    #: The person that the key belongs to, or the end user behind it.
    user: str = ""
    #: Id or name of the key.
    key: str = ""
    #: Id of the organisation.
    org_id: str = ""
    #: Ids of keys; None allows all.
    keys: frozenset[str] | None = None

    def has(self, ticket: Ticket, request: Request) -> bool:
        """Whether a request that waits or runs is among them."""
        org_id, team, user, key_id, end_user = ticket.flow.path
        key = request.caller.name if request.caller is not None else ""
        return (
            self.state in {"", "waiting" if ticket.waiting else "running"}
            and self.model in {"", ticket.needs.model}
            and self.team in {"", team}
            and self.user in {"", user, end_user}
            and self.key in {"", key_id, key}
            and self.org_id in {"", org_id}
            and (self.keys is None or key_id in self.keys)
        )


Used = Callable[[Ticket], tuple[int, int]]


def entries(requests: Iterable[Request], queue: Queue, used: Used, now: float) -> list[Entry]:
    """A picture: who waits, in the order of their turns, then who runs; of either the MOST that come first. `used`: slots that are taken,
    and all, of the workers that could serve a ticket."""
    view = View(queue, used, now)
    known = {ticket.id: (ticket, request) for request in requests if (ticket := request.ticket) is not None}
    first = (known[ticket.id] for ticket in turns(queue) if ticket.id in known)
    found = sorted((view.entry(ticket, request) for ticket, request in islice(first, MOST)), key=_place)
    return found + [view.entry(ticket, request) for ticket, request in islice((pair for pair in known.values() if pair[0].running), MOST)]


def _place(entry: Entry) -> tuple[int, float]:
    return entry.position, -entry.waited_s


async def ranking(requests: Iterable[Request], queue: Queue, wanted: Wanted) -> list[str]:
    """Ids of all who are wanted: who waits in the order of their turns, then who runs, the newest last. Others have their turn in the event
    loop meanwhile, so who comes now may be missing and who goes may be there."""
    places: list[tuple[int, float, float, str]] = []
    for number, request in enumerate(list(requests)):
        if number % _CHUNK == 0:
            await asyncio.sleep(0)
        ticket = request.ticket
        if ticket is None or not (ticket.waiting or ticket.running) or not wanted.has(ticket, request):
            continue
        if ticket.waiting and ticket.entry is not None:
            places.append((0, queue.order.ahead(ticket.entry).tickets, ticket.entered, ticket.id))
        else:
            places.append((1, 0.0, ticket.placed or 0.0, ticket.id))
    return [id for *_, id in sorted(places)]


async def entries_of(requests: Iterable[Request], queue: Queue, used: Used, now: float, ids: Sequence[str]) -> list[Entry]:
    """Those of them that are still there, in that order. Others have their turn in the event loop meanwhile."""
    view = View(queue, used, now)
    known = {ticket.id: request for request in requests if (ticket := request.ticket) is not None}
    found: list[Entry] = []
    for number, id in enumerate(ids):
        if number % _CHUNK == 0:
            await asyncio.sleep(0)
        request = known.get(id)
        ticket = request.ticket if request is not None else None
        if request is not None and ticket is not None and (ticket.waiting or ticket.running):
            found.append(view.entry(ticket, request))
    return found


def find(requests: Iterable[Request], queue: Queue, used: Used, now: float, request_id: str) -> Entry | None:
    """One of them, by the id of its request."""
    pairs = ((ticket, request) for request in requests if (ticket := request.ticket) is not None and ticket.id == request_id)
    found = next(pairs, None)
    return View(queue, used, now).entry(*found) if found is not None else None


def stats(queue: Queue, running: int, served: Callable[[str], bool], now: float) -> Stats:
    """The queue in numbers; `served` says whether a connected worker has a model."""
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
        paused_unserved=sorted(model for model in queue.paused_models if not served(model)),
    )


def _shares(queue: Queue) -> Iterator[Share]:
    teams = {path: units for path, units in queue.pace.shares.items() if len(path) == 2 and units > 0}
    whole = sum(teams.values())
    for path, units in sorted(teams.items(), key=lambda item: -item[1]):
        yield Share(team=path[1], share=round(units / whole, 4), units=round(units))


class View:
    """One look at the queue."""

    def __init__(self, queue: Queue, used: Used, now: float) -> None:
        self._queue = queue
        self._reasons = Reasons(queue, used)
        #: Monotonic seconds.
        self._now = now

    def entry(self, ticket: Ticket, request: Request) -> Entry:
        """What can be said of one ticket."""
        outlook = self._queue.outlook(ticket, self._now) if ticket.waiting else Outlook(0, None)
        _org, team, user, key_id, end_user = ticket.flow.path
        placed, caller = ticket.placed, request.caller
        return Entry(
            id=ticket.id,
            state="waiting" if ticket.waiting else "running",
            model=ticket.needs.model,
            kind=ticket.needs.kind,
            priority=CLASSES[ticket.rank],
            key_id=key_id,
            key=caller.name if caller is not None else "",
            team=team,
            user=user,
            end_user=end_user,
            position=outlook.position,
            eta_s=round(outlook.eta, 1) if outlook.eta is not None else None,
            waited_s=round((placed if placed is not None else self._now) - ticket.entered, 3),
            running_s=round(self._now - placed, 3) if placed is not None else 0.0,
            worker=request.worker,
            reason=self._reasons.reason(ticket, outlook.position, caller.name if caller is not None else "") if ticket.waiting else "",
            units=round(ticket.booked if placed is not None else ticket.cost, 1),
        )

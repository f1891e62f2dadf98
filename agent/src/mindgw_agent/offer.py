"""What this box has to offer: its engines, for whom and when its owner lets them be used, and the report that says so."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic

import msgspec

from mindgw_agent.events import Request
from mindgw_agent.exchange import Outlet
from mindgw_agent.stand import E, Stand
from mindgw_agent.wire import Close, EngineReport, Gpu, Meta, Report

#: Seconds after which a report is said again although nothing changed.
REPEAT = 30.0

#: Carries one request to an engine, until `out.close`; when cancelled it ends once the engine's slot is known to be free, and when
#: cancelled twice at once.
Carry = Callable[[E, Request, Outlet], Coroutine[Any, Any, None]]


def cancel(task: "asyncio.Task[None]") -> None:
    """Ask a request to end. One that is ending already waits for its engine: cancelling it again would cut that short."""
    if not task.cancelling():
        task.cancel()


class Offer(Generic[E]):
    """The engines of this box and their slots. One owner: synchronous on the event loop."""

    def __init__(
        self,
        stands: Sequence[Stand[E]],
        carry: Carry[E],
        *,
        gpus: Callable[[], list[Gpu]] = list,
        hostname: str = "",
        teams: Sequence[str] = (),
    ) -> None:
        #: At least one; no two have the same id.
        self.stands = tuple(stands)
        self._carry = carry
        #: Reads the GPUs; blocks.
        self._read_gpus = gpus
        self._gpus: list[Gpu] = []
        self._hostname = hostname
        #: Names of the teams that its owner keeps it for; none: for all.
        self.teams = tuple(teams)
        #: Unix seconds until which its owner wants it for other things, 0 when not.
        self.paused_until = 0
        #: Set when a request did not reach its engine: a probe is due.
        self.doubted = asyncio.Event()
        #: Set when the operator ends this agent.
        self.draining = False
        #: Why no request can be taken although the engines could; "" when nothing is in the way.
        self.blocked = ""
        self._serial = 0
        #: What was last told, without serial and count, and when.
        self._told = Report()
        self._told_at = 0.0

    @property
    def seen(self) -> EngineReport:
        """The first engine."""
        return self.stands[0].seen

    @property
    def slots(self) -> int:
        return sum(stand.seen.slots for stand in self.stands)

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return sum(len(stand.at_work) for stand in self.stands)

    @property
    def at_work(self) -> "frozenset[asyncio.Task[None]]":
        """Their tasks."""
        return frozenset(task for stand in self.stands for task in stand.at_work)

    async def probe(self) -> None:
        """Look at all engines, or for them. Never raises for what an engine does."""
        self._gpus = await asyncio.to_thread(self._read_gpus)
        await asyncio.gather(*(stand.probe() for stand in self.stands))

    def refusal(self, meta: Meta) -> Close | None:
        """How a request ends that the owner of the box does not want here, None when it may begin. It was not begun: others may have it."""
        if self.paused_until:
            return Close("busy", "paused", "the owner of the box paused it")
        if self.teams and meta.team not in self.teams:
            return Close("busy", "other_team", "the owner of the box keeps it for other teams")
        stand = self._stand(meta)
        if stand is None:
            return Close("failed", "refused", "the agent has no such engine, or does not offer this model")
        if stand.misses(meta.model):
            return Close("busy", "model_away", "the model was offered, and is not there at the moment")
        return None

    def start(self, request: Request, out: Outlet) -> "asyncio.Task[None] | None":
        """Begin a request that is not refused in a task of its own; None when all slots are taken. The slot is free once it has ended;
        see `cancel`."""
        stand = self._stand(request.meta)
        if stand is None or stand.is_full:
            return None
        return stand.start(self._work(stand, request, out))

    def heard(self, close: Close) -> None:
        """Take note of how a request ended."""
        if close.code == "engine_unreachable":
            self.doubted.set()

    async def stop(self, within: float) -> None:
        """End all requests; after that many seconds without waiting for the engines any more."""
        for end in (cancel, asyncio.Task.cancel):
            at_work = self.at_work
            for task in at_work:
                end(task)
            if at_work:
                await asyncio.wait(at_work, timeout=within)

    def _stand(self, meta: Meta) -> Stand[E] | None:
        """Whose engine a request is for; the server may leave that to the agent."""
        named = [stand for stand in self.stands if meta.engine in {"", stand.id} and stand.offers(meta.model)]
        return next((stand for stand in named if stand.has(meta.model)), named[0] if named else None)

    async def _work(self, stand: Stand[E], request: Request, out: Outlet) -> None:
        if stand.engine is None:
            out.close(Close("failed", "engine_unreachable", stand.seen.error, tag=request.meta.tag))
        else:
            await self._carry(stand.engine, request, out)

    def report(self, now: float) -> Report:
        """What to tell the server; the serial grows with each."""
        self._serial += 1
        self._told = self._compose()
        self._told_at = now
        counted = [
            msgspec.structs.replace(engine, running=len(stand.at_work))
            for engine, stand in zip(self._told.engines, self.stands, strict=True)
        ]
        return msgspec.structs.replace(self._told, serial=self._serial, engines=counted)

    def is_news(self, now: float) -> bool:
        """Whether a report is due: something changed, or the last one is REPEAT old. Our own requests the server counts itself."""
        return now - self._told_at >= REPEAT or self._compose() != self._told

    def _compose(self) -> Report:
        return Report(
            engines=[self._offered(stand.seen) for stand in self.stands],
            draining=self.draining,
            gpus=self._gpus,
            hostname=self._hostname,
            paused_until=self.paused_until,
            teams=list(self.teams),
        )

    def _offered(self, seen: EngineReport) -> EngineReport:
        """An engine as the server may use it."""
        return msgspec.structs.replace(seen, healthy=False, error=self.blocked) if self.blocked else seen

"""What this box has to offer: its engine, how many requests that takes at a time, and the report that says so.

The engine may be down, or not even be known yet: then the report says so, and every probe looks again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from mindgw_agent.events import Request
from mindgw_agent.exchange import Outlet
from mindgw_agent.wire import Close, EngineReport, Gpu, Report

log = logging.getLogger("mindgw.agent")

#: Seconds for one probe; an engine that is slower than this is not healthy.
PROBE_TIMEOUT = 10.0
#: Seconds after which a report is said again although nothing changed.
REPEAT = 30.0
#: Models that the log names of an engine.
NAMED = 10


class Engine(Protocol):
    """An engine that can be asked how it is."""

    async def probe(self) -> EngineReport:
        """How it is now; an engine that does not answer is a report too, an unhealthy one."""


E = TypeVar("E", bound=Engine)
#: Carries one request to an engine, until `out.close`; when cancelled it ends once the engine's slot is known to be free, and when
#: cancelled twice at once.
Carry = Callable[[E, Request, Outlet], Coroutine[Any, Any, None]]


def cancel(task: "asyncio.Task[None]") -> None:
    """Ask a request to end. One that is ending already waits for its engine: cancelling it again would cut that short."""
    if not task.cancelling():
        task.cancel()


class NoEngine(Exception):
    """No engine can be used now; the message says why."""


def _tell(before: EngineReport, now: EngineReport) -> None:
    """One line in the log when the engine is not what it was."""
    if not now.healthy:
        if before.healthy or before.error != now.error:
            log.warning("engine %s: %s", now.url or "-", now.error)
    elif not before.healthy or _facts(before) != _facts(now):
        names = [model.id for model in now.models]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        listed = ", ".join(names[:NAMED]) + more if names else "none"
        log.info("engine %s: %s, slots: %d, models: %s", now.url, f"{now.kind} {now.version}".rstrip(), now.slots, listed)


def _facts(report: EngineReport) -> tuple[str, str, int, frozenset[str]]:
    return report.kind, report.version, report.slots, frozenset(model.id for model in report.models)


class Offer(Generic[E]):
    """The engine of this box and its slots. One owner: synchronous on the event loop."""

    def __init__(
        self,
        find: Callable[[], Awaitable[E]],
        carry: Carry[E],
        *,
        gpus: Callable[[], list[Gpu]] = list,
        slots: int = 0,
        hostname: str = "",
        url: str = "",
    ) -> None:
        #: Gives the engine, or raises NoEngine.
        self._find = find
        self._carry = carry
        #: Reads the GPUs; blocks.
        self._read_gpus = gpus
        self._gpus: list[Gpu] = []
        #: What the operator said; 0 leaves it to the engine.
        self._slots = slots
        self._hostname = hostname
        #: None until one was found.
        self._engine: E | None = None
        #: How the engine was when last seen.
        self.seen = EngineReport(id="e1", kind="", url=url, healthy=False, slots=0, error="no engine was found yet")
        #: Requests whose engine is not known to be free, of links that are lost too; at most as many as there are slots.
        self._at_work: set[asyncio.Task[None]] = set()
        #: Set when a request did not reach the engine: a probe is due.
        self.doubted = asyncio.Event()
        #: Set when the operator ends this agent.
        self.draining = False
        #: Why no request can be taken although the engine could; "" when nothing is in the way.
        self.blocked = ""
        self._serial = 0
        #: What was last told, without serial and count, and when.
        self._told = Report()
        self._told_at = 0.0

    @property
    def slots(self) -> int:
        return self.seen.slots

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._at_work)

    @property
    def at_work(self) -> "frozenset[asyncio.Task[None]]":
        """Their tasks."""
        return frozenset(self._at_work)

    async def probe(self) -> None:
        """Look at the engine, or for one. Never raises for what an engine does."""
        before = self.seen
        self._gpus = await asyncio.to_thread(self._read_gpus)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                if self._engine is None:
                    self._engine = await self._find()
                seen = await self._engine.probe()
        except NoEngine as error:
            seen = msgspec.structs.replace(before, healthy=False, models=[], error=str(error))
        except TimeoutError:
            seen = msgspec.structs.replace(before, healthy=False, models=[], error=f"no answer within {PROBE_TIMEOUT:.0f} s")
        slots = self._slots or seen.slots or (1 if seen.healthy else 0)
        self.seen = msgspec.structs.replace(seen, slots=slots, running=0)
        _tell(before, self.seen)

    def has(self, engine: str) -> bool:
        """Whether an engine of this id is here; "" leaves the choice to the agent."""
        return engine in {"", self.seen.id}

    def start(self, request: Request, out: Outlet) -> "asyncio.Task[None] | None":
        """Begin a request in a task of its own; None when all slots are taken. The slot is free once it has ended; see `cancel`."""
        if self.running >= self.slots:
            return None
        task = asyncio.create_task(self._work(request, out))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        return task

    def heard(self, close: Close) -> None:
        """Take note of how a request ended."""
        if close.code == "engine_unreachable":
            self.doubted.set()

    async def stop(self, within: float) -> None:
        """End all requests; after that many seconds without waiting for the engine any more."""
        for end in (cancel, asyncio.Task.cancel):
            for task in self._at_work:
                end(task)
            if self._at_work:
                await asyncio.wait(self._at_work, timeout=within)

    async def _work(self, request: Request, out: Outlet) -> None:
        if self._engine is None:
            out.close(Close("failed", "engine_unreachable", self.seen.error, tag=request.meta.tag))
        else:
            await self._carry(self._engine, request, out)

    def report(self, now: float) -> Report:
        """What to tell the server; the serial grows with each."""
        self._serial += 1
        self._told = self._compose()
        self._told_at = now
        return msgspec.structs.replace(self._told, serial=self._serial, engines=[self._counted()])

    def is_news(self, now: float) -> bool:
        """Whether a report is due: something changed, or the last one is REPEAT old. Our own requests the server counts itself."""
        return now - self._told_at >= REPEAT or self._compose() != self._told

    def _compose(self) -> Report:
        return Report(engines=[self._offered()], draining=self.draining, gpus=self._gpus, hostname=self._hostname)

    def _offered(self) -> EngineReport:
        """The engine as the server may use it."""
        return msgspec.structs.replace(self.seen, healthy=False, error=self.blocked) if self.blocked else self.seen

    def _counted(self) -> EngineReport:
        return msgspec.structs.replace(self._offered(), running=self.running)

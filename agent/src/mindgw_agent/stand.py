"""One engine of this box, as it was last seen, and the requests that hold its slots.

The engine may be down, or not even be known yet: then its report says so, and every probe looks again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from mindgw_agent.wire import EngineReport, Model

log = logging.getLogger("mindgw.agent")

#: Seconds for one probe; an engine that is slower than this is not healthy.
PROBE_TIMEOUT: Final = 10.0
#: Models that the log names of an engine.
NAMED: Final = 10
#: Slots that one engine may have: a server takes more for a lie.
MAX_SLOTS: Final = 4096


class Engine(Protocol):
    """An engine that can be asked how it is."""

    async def probe(self) -> EngineReport:
        """How it is now; an engine that does not answer is a report too, an unhealthy one."""


E = TypeVar("E", bound=Engine)


class NoEngine(Exception):
    """No engine can be used now; the message says why."""


class Stand(Generic[E]):
    """One owner: synchronous on the event loop."""

    def __init__(
        self, find: Callable[[], Awaitable[E]], *, id: str = "e1", slots: int = 0, url: str = "", models: Sequence[str] = ()
    ) -> None:
        #: Gives the engine, or raises NoEngine.
        self._find = find
        #: None until one was found.
        self.engine: E | None = None
        #: What the operator said; 0 leaves it to the engine.
        self._slots = slots
        #: Globs of the models that are offered; none: all of them.
        self._models = tuple(models)
        #: Names of those that it had at the last two looks that the engine answered: reports of both may be what a server goes by.
        self._known: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        #: How the engine was when last seen.
        self.seen = EngineReport(id=id, kind="", url=url, healthy=False, slots=0, error="no engine was found yet")
        #: Requests whose engine is not known to be free, of links that are lost too; at most as many as there are slots.
        self.at_work: set[asyncio.Task[None]] = set()

    @property
    def id(self) -> str:
        return self.seen.id

    async def probe(self) -> None:
        """Look at the engine, or for one. Never raises for what an engine does."""
        before = self.seen
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                if self.engine is None:
                    self.engine = await self._find()
                seen = await self.engine.probe()
        except NoEngine as error:
            seen = msgspec.structs.replace(before, healthy=False, models=[], error=str(error))
        except TimeoutError:
            seen = msgspec.structs.replace(before, healthy=False, models=[], error=f"no answer within {PROBE_TIMEOUT:.0f} s")
        slots = min(self._slots or seen.slots or (1 if seen.healthy else 0), MAX_SLOTS)
        models = [model for model in seen.models if self._lets(model)]
        self.seen = msgspec.structs.replace(seen, id=before.id, slots=slots, running=0, models=models)
        if seen.healthy or models:
            self._known = self._known[1], frozenset(name for model in models for name in (model.id, *model.aliases))
        _tell(before, self.seen)

    def offers(self, model: str) -> bool:
        """Whether the operator lets a model of this engine be used; it may be one that is not there now."""
        return not self._models or any(model in names for names in self._known)

    def misses(self, model: str) -> bool:
        """Whether that is so, but nobody can say if the engine has it now, or it has not."""
        return bool(self._models) and not self.has(model)

    def has(self, model: str) -> bool:
        """Whether the engine had a model when it was last seen."""
        return any(model == known.id or model in known.aliases for known in self.seen.models)

    def _lets(self, model: Model) -> bool:
        names = (model.id, *model.aliases)
        return not self._models or any(fnmatchcase(name, pattern) for name in names for pattern in self._models)

    def start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Begin a request in a task of its own; its slot is free once that has ended."""
        task = asyncio.create_task(work)
        self.at_work.add(task)
        task.add_done_callback(self.at_work.discard)
        return task

    @property
    def is_full(self) -> bool:
        return len(self.at_work) >= self.seen.slots


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

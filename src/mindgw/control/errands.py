"""What operators do with workers: take them out of service and back, and have their agents do something."""

import re
from typing import Final, cast

from msgspec import Struct

from mindgw.control import fleet
from mindgw.control.fleet import WorkerStatus
from mindgw.control.live import Live
from mindgw.errors import BadRequest, Conflict, NotFound
from mindgw.gateway.errands import Errand, State
from mindgw.store import audit
from mindgw.store import fleet as stored
from mindgw.store.audit import Who
from mindgw.store.database import Database

#: What can be asked for, and whether that takes an argument.
ORDERS: Final = {"restart": False, "logs": True, "load": True, "unload": True, "pull": True}
#: What is asked for of a log: so many lines, or those after one of that number.
_DIGITS: Final = re.compile(r"[0-9]{1,4}", re.ASCII)
_AFTER: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)
#: The most lines of a log that are asked for at once.
MOST_LINES: Final = 1000


class ErrandStatus(Struct, frozen=True, kw_only=True):
    """A command to a worker, and what became of it."""

    id: str
    #: Name of the worker.
    worker: str
    verb: str
    argument: str
    #: running, done or failed.
    state: State
    #: How far it is: for people; and from 0 to 1, None where nobody knows.
    note: str
    part: float | None
    #: Why it failed: a code.
    error: str
    #: Lines of the agent's log, the oldest first, when those were asked for; and the number of the last one, 0 where an old agent counts
    #: none.
    lines: list[str]
    line: int = 0


async def drain(database: Database, who: Who | str, live: Live, reference: str, *, version: int | None = None) -> WorkerStatus:
    """A worker finishes what it has and takes nothing new until `undrain`, also when it comes back from elsewhere. Raises NotFound,
    Conflict for one that an operator has yet to approve or release, PreconditionFailed."""
    return await _drain(database, who, live, reference, version, drained=True)


async def undrain(database: Database, who: Who | str, live: Live, reference: str, *, version: int | None = None) -> WorkerStatus:
    """It takes requests again. Raises as `drain`."""
    return await _drain(database, who, live, reference, version, drained=False)


async def release(database: Database, who: Who | str, live: Live, reference: str, *, version: int | None = None) -> WorkerStatus:
    """An operator has looked at a worker in quarantine: it may take requests again, as far as nothing else is said of it; one that they
    drained stays so. Raises NotFound,
    PreconditionFailed, and Conflict for one that is not in quarantine."""
    async with database.write() as session:
        found = await stored.find_worker(session, reference)
        live_charge = any(view.id == found.id and view.reason for view in live.snapshot().workers)
        if found.state_admin != "quarantined" and not live_charge:
            raise Conflict(f"Worker {found.name!r} is not in quarantine.")
        # of a charge that is not written down yet nothing is to be changed there, but the version must be that one all the same
        to = "active" if found.state_admin == "quarantined" else cast("stored.State", found.state_admin)
        row = await stored.set_state(session, found.id, to, version=version)
        await audit.record(session, who, "worker.release", row.id, name=row.name)
    live.errands.release(row.id)
    return await fleet.worker(database, live.snapshot(), row.id)


async def order(database: Database, who: Who | str, live: Live, reference: str, verb: str, argument: str) -> ErrandStatus:
    """Has a worker's agent do something; `errand` tells what became of it. Whoever goes on reading a log (+N: the lines after line N) is
    audited when they begin. Raises BadRequest, NotFound, and what `Errands.start` raises."""
    if verb not in ORDERS:
        raise BadRequest(f"verb must be one of {', '.join(ORDERS)}.", param="verb")
    if ORDERS[verb] != bool(argument):
        raise BadRequest(f"{verb} takes {'an' if ORDERS[verb] else 'no'} argument.", param="argument")
    if verb == "logs" and not (_AFTER.fullmatch(argument) or (_DIGITS.fullmatch(argument) and 0 < int(argument) <= MOST_LINES)):
        raise BadRequest(f"argument must be a number of lines, {MOST_LINES} at most, or +N for those after line N.", param="argument")
    by = audit.named(who)
    if _AFTER.fullmatch(argument):
        async with database.read() as session:
            row = await stored.find_worker(session, reference)
        if live.errands.goes_on(row.id, verb, by):
            return _status(live.errands.start(row.id, row.name, verb, argument, by))
    async with database.write() as session:
        row = await stored.find_worker(session, reference)
        await audit.record(session, who, f"worker.{verb}", row.id, name=row.name, argument=argument)
        started = live.errands.start(row.id, row.name, verb, argument, by)
    return _status(started)


async def errand(database: Database, live: Live, reference: str, errand_id: str) -> ErrandStatus:
    """What became of a command; it is remembered for a while. Raises NotFound."""
    async with database.read() as session:
        row = await stored.find_worker(session, reference)
    found = live.errands.find(row.id, errand_id)
    if found is None:
        raise NotFound(f"Worker {row.name!r} was not asked for anything under {errand_id[:80]!r}, or it was long ago.")
    return _status(found)


async def _drain(database: Database, who: Who | str, live: Live, reference: str, version: int | None, *, drained: bool) -> WorkerStatus:
    async with database.write() as session:
        found = await stored.find_worker(session, reference)
        row = await stored.set_drained(session, found.id, drained=drained, version=version)
        await audit.record(session, who, "worker.drain" if drained else "worker.undrain", row.id, name=row.name)
    (live.errands.drain if drained else live.errands.undrain)(row.id)
    return await fleet.worker(database, live.snapshot(), row.id)


def _status(errand: Errand) -> ErrandStatus:
    return ErrandStatus(
        id=errand.id,
        worker=errand.worker,
        verb=errand.verb,
        argument=errand.argument,
        state=errand.state,
        note=errand.note,
        part=errand.part,
        error=errand.error,
        lines=errand.lines,
        line=errand.line,
    )

"""How workers were over time, as management sees it; and what becomes of it: as it was measured for a week, by the hour for a year and a
month."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from msgspec import Struct
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core.series import Sum, Sums, decode
from mindgw.errors import BadRequest
from mindgw.gateway.trends import LONG_STEP, SCALES, STEP
from mindgw.quantities import duration
from mindgw.store import fleet, series
from mindgw.store.database import Database
from mindgw.store.series import Stored

DAY: Final = 86_400
#: Seconds for which there is what was measured, and the sums of hours.
FINE, LONG = 7 * DAY, 400 * DAY
#: Steps of one answer, and steps times columns: what is told is written down for its reader by the loop that all requests wait for.
MOST: Final = 10_000
VALUES: Final = 80_000
#: Steps that an answer has about when nobody says how long they are to be, and lengths of which the first is taken that makes few enough.
_FEW: Final = 360
_LADDER: Final = (10, 30, 60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, DAY)
#: Workers of which one call of `forget` sums a day up.
_FOLDED: Final = 50
#: What the numbers of a column are, by the last word of its name.
UNITS: Final = {
    "slots": "", "used": "", "elsewhere": "", "requests": "1/s", "tokens": "1/s", "utilisation": "", "memory": "bytes", "temperature": "°C",
}  # fmt: skip


class ColumnView(Struct, frozen=True, kw_only=True):
    """One measurement, a number for each step; null where nothing was measured."""

    #: Empty: a number of things, or a part of one; 1/s, bytes, °C.
    unit: str
    #: How often it was measured.
    count: list[int]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]


class TrendView(Struct, frozen=True, kw_only=True):
    """How a worker was, from `since` to `until`, in steps of so many seconds."""

    #: Name of the worker.
    worker: str
    since: datetime
    until: datetime
    step_s: int
    #: slots, used, elsewhere (requests of others in its engines), requests and tokens (of answers, counted when they end), and of each
    #: GPU utilisation (0 to 1), memory (in use) and temperature. What was never measured is not there.
    columns: dict[str, ColumnView]


class Unwritten(Protocol):
    """What the running gateway knows that the database does not."""

    def blocks(self, worker_id: str) -> Sequence[bytes]:
        """Blocks of a worker, whole."""

    def starts(self, worker_id: str) -> frozenset[int]:
        """Unix seconds at which they begin; what the database has of these is less."""


class Past:
    """Tells how workers were, to one at a time: that takes a while, and whatever else this process does has the interpreter to share."""

    def __init__(self, database: Database, unwritten: Unwritten) -> None:
        self._database = database
        self._unwritten = unwritten
        self._turn = asyncio.Semaphore(1)

    async def trend(self, reference: str, since: str, step: str, now: datetime) -> TrendView:
        """`since` is a span that ends now, such as 7d, or a moment; `step` a span, or empty. Raises BadRequest, NotFound."""
        end = int(now.timestamp())
        begin = _begin(since, end)
        seconds = _step(step, end - begin)
        first, last = begin // seconds, end // seconds + 1
        if last - first > MOST:
            raise BadRequest(f"That makes {last - first:,} steps, and {MOST:,} are the most: let 'step' be longer.", param="step")
        async with self._turn:
            async with self._database.read() as session:
                row = await fleet.find_worker(session, reference)
            columns = await self._columns(row.id, Sums(first, last), seconds)
        return TrendView(worker=row.name, since=_moment(first * seconds), until=_moment(last * seconds), step_s=seconds, columns=columns)

    async def _columns(self, worker_id: str, sums: Sums, seconds: int) -> dict[str, ColumnView]:
        # before the database is looked at: what is written meanwhile is in both, and known to be
        fresh, known = list(self._unwritten.blocks(worker_id)), self._unwritten.starts(worker_id)
        async with self._database.read() as session:  # one moment: what is summed up meanwhile is neither missing nor counted twice
            await _take(session, sums, worker_id, STEP, seconds, known)
            if seconds % LONG_STEP == 0:
                await _take(session, sums, worker_id, LONG_STEP, seconds)
        return await asyncio.to_thread(_told, sums, fresh, seconds)


async def keep(database: Database, blocks: Sequence[Stored]) -> None:
    """Writes blocks, all or none."""
    async with database.write() as session:
        await series.keep(session, blocks)


async def _take(session: AsyncSession, sums: Sums, worker_id: str, step: int, seconds: int, but: frozenset[int] = frozenset()) -> None:
    """Sums up blocks of the database; a block may begin an hour before what is wanted of it, one of sums a day."""
    since, until = sums.first * seconds - (LONG_STEP if step == STEP else DAY), sums.end * seconds
    while found := await series.load(session, worker_id, step, since, until):
        since = found[-1].start + 1
        await asyncio.to_thread(_add, sums, [block for block in found if block.start not in but], seconds)
        _shown(sums)


def _add(sums: Sums, blocks: Sequence[Stored], seconds: int) -> None:
    """Takes a while for many."""
    for block in blocks:
        try:
            read = decode(block.data)
        except ValueError:  # of a later release, or damaged: it is a gap
            continue
        take = sums.take if block.step == STEP else sums.take_sums
        take(read, seconds // block.step)


def _told(sums: Sums, fresh: Sequence[bytes], seconds: int) -> dict[str, ColumnView]:
    """Takes a while for many, too."""
    for raw in fresh:
        sums.take(decode(raw), seconds // STEP)
    return {name: _column(sums, name) for name in _shown(sums)}


def _shown(sums: Sums) -> Sequence[str]:
    """Columns that are told. Raises BadRequest for too many values."""
    names = [name for name in sums.names() if name.rpartition(".")[2] in SCALES]
    values = (sums.end - sums.first) * len(names)
    if values > VALUES:
        why = f"{sums.end - sums.first:,} steps of {len(names)} measurements are {values:,} values, and {VALUES:,} are the most"
        raise BadRequest(f"{why}: let 'step' be longer, or 'since' later.", param="step")
    return names


def _column(sums: Sums, name: str) -> ColumnView:
    kind = name.rpartition(".")[2]
    scale = SCALES[kind]
    found: list[Sum | None] = [sums.at(name, step) for step in range(sums.first, sums.end)]
    return ColumnView(
        unit=UNITS[kind],
        count=[one.count if one else 0 for one in found],
        mean=[round(one.mean / scale, 4) if one else None for one in found],
        low=[one.low / scale if one else None for one in found],
        high=[one.high / scale if one else None for one in found],
    )


def _begin(text: str, end: int) -> int:
    try:
        begin = end - int(duration(text))
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise BadRequest(
                f"'since' must be a span such as 7d or a moment such as 2026-11-01T00:00:00Z, not {text[:80]!r}.", param="since"
            ) from None
        begin = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if not end - LONG <= begin < end:
        raise BadRequest(f"'since' must be before now, and within {LONG // DAY} days.", param="since")
    return begin


def _step(text: str, span: int) -> int:
    if not text:
        return next((step for step in _LADDER if span <= _FEW * step), DAY)
    try:
        exact = duration(text)
    except ValueError:
        exact = 0.0
    seconds = int(exact)
    if seconds != exact or not seconds or seconds % STEP or (seconds > LONG_STEP and seconds % LONG_STEP):
        raise BadRequest(f"'step' must be {STEP} seconds or some times that, above an hour whole hours.", param="step")
    return seconds


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# -- retention ---------------------------------------------------------------------------------------------------------


async def forget(database: Database, now: datetime) -> int:
    """Sums up by the hour what is older than a week, a day of a worker at a time and some workers a call; takes away sums that are too old.
    Returns how many days were summed up."""
    moment = int(now.timestamp())
    oldest_day = (moment - FINE) // DAY * DAY
    async with database.read() as session:
        due = await series.old(session, STEP, oldest_day, _FOLDED)
    for worker_id, start in due:
        await _fold(database, worker_id, start // DAY * DAY)
    async with database.write() as session:
        await series.drop_older(session, LONG_STEP, moment - LONG)
    return len(due)


async def _fold(database: Database, worker_id: str, day: int) -> None:
    """One day of one worker. Servers that do so at once come to the same."""
    sums = Sums(day // LONG_STEP, (day + DAY) // LONG_STEP)
    async with database.read() as session:
        before = await series.load(session, worker_id, LONG_STEP, day, day + 1)
        fine: list[Stored] = []
        since = day
        while page := await series.load(session, worker_id, STEP, since, day + DAY):
            fine += page
            since = page[-1].start + 1
    if not fine:  # another server was quicker
        return
    data = await asyncio.to_thread(_folded, sums, [*before, *fine])
    async with database.write() as session:
        await series.keep(session, [Stored(worker_id, LONG_STEP, day, data)])
        await series.drop(session, worker_id, STEP, [block.start for block in fine])


def _folded(sums: Sums, blocks: Sequence[Stored]) -> bytes:
    _add(sums, blocks, LONG_STEP)
    return sums.encode()

"""Runs of server processes. One that is dead leaves leases: they stay reserved until all its receipts are in the ledger, or a day is over.

Moments are those of `now`, so that processes on several machines agree.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import ColumnElement, and_, exists, func, not_, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.core.quota import Budget, Draw
from mindgw.store import budgets, tables
from mindgw.store.budgets import LEASES
from mindgw.store.entries import Entry, of_lease
from mindgw.store.ledger import GENESIS

#: How long another directory's process may be silent before it counts as dead.
SILENT = timedelta(seconds=60)
#: How long the leases of a dead process wait for the receipts of its workers.
PATIENCE = timedelta(hours=24)

_EPOCHS = tables.metadata.tables["epochs"]
_WORKERS = tables.metadata.tables["epoch_workers"]


class Over(Exception):
    """The epoch was taken for dead, and what it had on loan was given to others."""


class Repeated(Exception):
    """What was given back under that number was taken before."""


class Begun(msgspec.Struct, frozen=True):
    """A new run, and what its chain starts from."""

    id: int
    instance: str
    genesis: bytes


async def now(session: AsyncSession) -> datetime:
    """The moment by the clock that all processes share: the database's, where it has one."""
    if not budgets.postgres(session):
        return clock.utcnow()
    moment: datetime = (await (await session.connection()).execute(select(func.clock_timestamp()))).scalar_one()
    return moment.astimezone(UTC)


async def begin(session: AsyncSession, instance: str, now: datetime) -> Begun:
    """Begins a run. Its chain goes on from the last one of this instance that has a link, or else from the last one of all: so whatever is
    cut off the end of that one is missed."""
    await budgets.guard(session, alone=True)
    row = _EPOCHS.c
    latest = (
        select(row.id, row.head_seq, row.head).where(row.head_seq > 0).order_by((row.instance == instance).desc(), row.id.desc()).limit(1)
    )
    connection = await session.connection()
    after_epoch, after_seq, genesis = (await connection.execute(latest)).first() or (0, 0, GENESIS)
    values = {
        "instance": instance, "started_at": now, "beat_at": now, "genesis": genesis, "after_epoch": after_epoch, "after_seq": after_seq,
        "head": genesis, "head_seq": 0, "returns": 0,
    }  # fmt: skip
    made = (await connection.execute(_EPOCHS.insert().values(values).returning(row.id))).scalar_one()
    return Begun(made, instance, genesis)


async def beat(session: AsyncSession, epoch: int, now: datetime) -> None:
    """Says that it lives, at least three times in `SILENT`. Raises Over: then its leases are lost, and it must begin a new epoch."""
    await budgets.guard(session)
    await require_running(session, epoch)
    await (await session.connection()).execute(_EPOCHS.update().where(_EPOCHS.c.id == epoch).values(beat_at=now))


async def require_running(session: AsyncSession, epoch: int) -> None:
    """Raises Over unless it may have leases."""
    query = select(_EPOCHS.c.ended_at).where(_EPOCHS.c.id == epoch)
    found = (await (await session.connection()).execute(query)).first()
    if found is None or found[0] is not None:
        raise Over(f"epoch {epoch} is over")


async def has_returned(session: AsyncSession, epoch: int, number: int) -> bool:
    """Whether what the epoch gave back under that number, or a later one, was taken."""
    query = select(_EPOCHS.c.returns).where(_EPOCHS.c.id == epoch)
    return ((await (await session.connection()).execute(query)).scalar() or 0) >= number


async def returned(session: AsyncSession, epoch: int, number: int) -> None:
    """Notes that. Raises Repeated when another transaction did so meanwhile: then this one must be undone."""
    row = _EPOCHS.c
    noted = await (await session.connection()).execute(_EPOCHS.update().where(row.id == epoch, row.returns < number).values(returns=number))
    if not noted.rowcount:
        raise Repeated(f"return {number} of epoch {epoch} was taken before")


async def end(session: AsyncSession, epoch: int, now: datetime) -> None:
    """Ends a run well: all that it still has on loan is given back. To be called when all that it did is in the ledger."""
    await budgets.guard(session, alone=True)
    await _end(session, [epoch], now)


async def linked(session: AsyncSession, epoch: int, worker_id: str) -> None:
    """Notes that a worker may have receipts of this epoch from now on."""
    insert = postgresql.insert(_WORKERS) if budgets.postgres(session) else sqlite.insert(_WORKERS)
    again = insert.on_conflict_do_update(index_elements=["epoch", "worker_id"], set_={"cleared_at": None})
    await (await session.connection()).execute(again, {"epoch": epoch, "worker_id": worker_id, "cleared_at": None})


async def cleared(session: AsyncSession, worker_id: str, before: int, now: datetime) -> None:
    """Notes that a worker has no receipt of an epoch before this one that is not in the ledger."""
    row = _WORKERS.c
    mine = _WORKERS.update().where(row.worker_id == worker_id, row.epoch < before, row.cleared_at.is_(None))
    await (await session.connection()).execute(mine.values(cleared_at=now))


def _gone(own: int, now: datetime) -> ColumnElement[bool]:
    """Epochs that will never come back, or have not been heard of for long: of the same directory every older one."""
    row = _EPOCHS.c
    here = select(row.instance).where(row.id == own).scalar_subquery()
    return or_(and_(row.instance == here, row.id < own), row.beat_at < now - SILENT)


def _dead(own: int, now: datetime) -> ColumnElement[bool]:
    """Those of them that nobody has ended."""
    row = _EPOCHS.c
    return and_(row.ended_at.is_(None), row.id != own, _gone(own, now))


async def living(session: AsyncSession, own: int, asked: Collection[int], now: datetime) -> set[int]:
    """Those of these epochs that belong to other processes that live; `own` is the epoch of whoever asks."""
    row = _EPOCHS.c
    query = select(row.id).where(row.id.in_(asked), row.ended_at.is_(None), row.id != own, not_(_gone(own, now)))
    return set((await (await session.connection()).execute(query)).scalars())


async def recover(session: AsyncSession, own: int, now: datetime) -> Sequence[int]:
    """Gives back the leases of dead epochs all of whose workers have nothing more to say, and ends those that have no lease left; `own` is
    the epoch of whoever asks. Returns those that ended."""
    await budgets.guard(session, alone=True)
    row = _EPOCHS.c
    silent = ~exists().where(_WORKERS.c.epoch == row.id, _WORKERS.c.cleared_at.is_(None))
    empty = ~exists().where(LEASES.c.epoch == row.id, LEASES.c.amount > 0)
    query = select(row.id).where(_dead(own, now), or_(silent, empty)).order_by(row.id)
    ended = (await (await session.connection()).execute(query)).scalars().all()
    await _end(session, ended, now)
    return ended


async def _end(session: AsyncSession, ended: Sequence[int], now: datetime) -> None:
    for piece in budgets.parts(ended):
        await budgets.settle(session, {}, await budgets.loans(session, LEASES.c.epoch.in_(piece)))
        row = _EPOCHS.c
        await (await session.connection()).execute(_EPOCHS.update().where(row.id.in_(piece), row.ended_at.is_(None)).values(ended_at=now))
    await budgets.drop(session, ended)


async def expire(session: AsyncSession, own: int, now: datetime, patience: timedelta = PATIENCE) -> list[Entry]:
    """What is to be charged of leases whose epochs are dead for so long that nobody waits for receipts any more: entries for the caller's
    own writer to commit. Nothing is changed here; what they charge is decided then, so they may be dropped, or committed twice."""
    row = _EPOCHS.c
    query = select(row.id).where(_dead(own, now), row.beat_at < now - patience)
    old = (await (await session.connection()).execute(query)).scalars().all()
    found: dict[tuple[int, Budget], int] = {}
    for piece in budgets.parts(old):
        found |= await budgets.loans(session, LEASES.c.epoch.in_(piece))
    return [of_lease(epoch, Draw(budget, amount), now) for (epoch, budget), amount in found.items()]

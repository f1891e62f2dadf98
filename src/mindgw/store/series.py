"""Blocks of what workers measured: written now and then, summed up when they are old, gone in the end."""

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import delete, func, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.tables import SeriesBlock

#: Blocks that one call of `load` or `drop_older` is about at most.
PAGE = 200


class Stored(Struct, frozen=True):
    """A block as it is stored. Fields are those of the table, where they are explained."""

    worker_id: str
    step: int
    start: int
    data: bytes


async def keep(session: AsyncSession, blocks: Sequence[Stored]) -> None:
    """Writes blocks, in place of those that begin at the same moment."""
    if not blocks:
        return
    insert = postgresql.insert(SeriesBlock) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(SeriesBlock)
    upsert = insert.on_conflict_do_update(index_elements=["worker_id", "step", "start"], set_={"data": insert.excluded.data})
    await (await session.connection()).execute(upsert, [asdict(block) for block in blocks])


async def load(session: AsyncSession, worker_id: str, step: int, since: int, until: int) -> list[Stored]:
    """Blocks of a worker that begin from `since` on and before `until`, in their order, PAGE at most: to be called again from behind the
    last one until there are none."""
    inside = col(SeriesBlock.start) >= since, col(SeriesBlock.start) < until
    wanted = select(SeriesBlock).where(col(SeriesBlock.worker_id) == worker_id, col(SeriesBlock.step) == step, *inside)
    found = (await session.exec(wanted.order_by(col(SeriesBlock.start)).limit(PAGE))).all()
    return [Stored(row.worker_id, row.step, row.start, row.data) for row in found]


async def old(session: AsyncSession, step: int, before: int, most: int) -> list[tuple[str, int]]:
    """Workers that have blocks from before a moment, and the moment at which the first of each begins; at most so many."""
    first = func.min(col(SeriesBlock.start))
    wanted = select(SeriesBlock.worker_id, first).where(col(SeriesBlock.step) == step, col(SeriesBlock.start) < before)
    found = await session.exec(wanted.group_by(col(SeriesBlock.worker_id)).order_by(first).limit(most))
    return [(worker_id, start) for worker_id, start in found.all()]


async def drop(session: AsyncSession, worker_id: str, step: int, starts: Collection[int]) -> None:
    """Takes away blocks of a worker."""
    mine = col(SeriesBlock.worker_id) == worker_id, col(SeriesBlock.step) == step
    await session.exec(delete(SeriesBlock).where(*mine, col(SeriesBlock.start).in_(starts)))


async def drop_older(session: AsyncSession, step: int, before: int) -> int:
    """Takes away blocks that begin before a moment, the oldest first, PAGE at most; returns how many."""
    key = tuple_(col(SeriesBlock.worker_id), col(SeriesBlock.step), col(SeriesBlock.start))
    wanted = select(SeriesBlock.worker_id, SeriesBlock.step, SeriesBlock.start)
    old = wanted.where(col(SeriesBlock.step) == step, col(SeriesBlock.start) < before).order_by(col(SeriesBlock.start)).limit(PAGE)
    doomed = (await session.exec(old)).all()
    if doomed:
        await session.exec(delete(SeriesBlock).where(key.in_([tuple(one) for one in doomed])))
    return len(doomed)

"""Requests with an Idempotency-Key that are over, and their answers. Written in batches, never changed, gone after a day."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import ColumnElement, and_, delete, func, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.tables import Replay

#: Rows that one call of `drop_old` takes away at most.
STEP = 1000
#: The part of all rows that one API key may have where others need room: 1 of so many.
SHARES = 10


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How one request ended. Fields are those of the table, where they are explained."""

    identity: bytes
    key_id: str
    request_id: str
    fingerprint: bytes
    status: int
    code: str = ""
    kind: str = "json"
    note: str = ""
    sealed: bytes | None = None
    done_at: datetime


async def append(session: AsyncSession, ended: Sequence[Ended], since: datetime) -> None:
    """Adds rows. The first one of an identity stands, so a batch may be sent again, unless it is from before `since`."""
    if not ended:
        return
    insert = postgresql.insert(Replay) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(Replay)
    newer = {name: insert.excluded[name] for name in Ended.__struct_fields__ if name != "identity"}
    upsert = insert.on_conflict_do_update(index_elements=["identity"], set_=newer, where=col(Replay.done_at) < since)
    await (await session.connection()).execute(upsert, [msgspec.structs.asdict(one) for one in ended])


async def find(session: AsyncSession, identity: bytes, since: datetime) -> Ended | None:
    """How the request of this identity ended; None when there was none since then."""
    found = (await session.exec(select(Replay).where(col(Replay.identity) == identity, col(Replay.done_at) >= since))).first()
    return Ended(**{name: getattr(found, name) for name in Ended.__struct_fields__}) if found is not None else None


async def drop_old(session: AsyncSession, before: datetime, most: int) -> int:
    """Takes away rows from before a moment, and when there are more than `most` the oldest: of keys that have more than their share, a
    tenth of `most`, until they have not, and then of all. At most STEP rows; returns how many. To be called until there are none."""
    old = await _drop(session, col(Replay.done_at) < before, STEP)
    counts = dict((await session.exec(select(Replay.key_id, func.count()).group_by(col(Replay.key_id)))).all())
    excess = min(sum(counts.values()) - most, STEP - old)
    if excess <= 0:
        return old
    greedy = max(counts, key=counts.__getitem__)
    beyond = counts[greedy] - most // SHARES
    if beyond > 0:
        return old + await _drop(session, col(Replay.key_id) == greedy, min(excess, beyond))
    return old + await _drop(session, true(), excess)


async def strip(session: AsyncSession, most: int) -> int:
    """Takes away answers, and leaves their rows, when all together have more than `most` bytes: the oldest, of keys as `drop_old` has it.
    At most STEP; returns how many. To be called until there are none."""
    size, key_id = func.length(col(Replay.sealed)), col(Replay.key_id)
    kept: ColumnElement[bool] = col(Replay.sealed).is_not(None)
    sizes = dict((await session.exec(select(Replay.key_id, func.sum(size)).where(kept).group_by(key_id))).all())
    excess = sum(sizes.values()) - most
    if excess <= 0:
        return 0
    greedy = max(sizes, key=sizes.__getitem__)
    beyond = sizes[greedy] - most // SHARES
    if beyond > 0:
        kept, excess = and_(kept, key_id == greedy), min(excess, beyond)
    oldest = select(Replay.identity, size).where(kept).order_by(col(Replay.done_at), col(Replay.identity)).limit(STEP)
    doomed = []
    for identity, length in (await session.exec(oldest)).all():
        if excess <= 0:
            break
        doomed.append(identity)
        excess -= length
    await session.exec(update(Replay).where(col(Replay.identity).in_(doomed)).values(sealed=None, note="crowded"))
    return len(doomed)


async def _drop(session: AsyncSession, where: ColumnElement[bool], most: int) -> int:
    """Takes away the oldest of these."""
    oldest = select(Replay.identity).where(where).order_by(col(Replay.done_at), col(Replay.identity)).limit(most)
    doomed = (await session.exec(oldest)).all()
    if doomed:
        await session.exec(delete(Replay).where(col(Replay.identity).in_(doomed)))
    return len(doomed)

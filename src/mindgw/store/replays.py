"""Requests with an Idempotency-Key that are over, and their answers. Written in batches, never changed, gone after a day."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.tables import Replay

#: Rows that one call of `drop_old` takes away at most.
STEP = 1000


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
    """Takes away rows from before a moment, and the oldest of more than `most`, but at most STEP; returns how many. To be called until
    there are none."""
    newest = select(Replay.done_at, Replay.identity).order_by(col(Replay.done_at).desc(), col(Replay.identity).desc())
    kept = (await session.exec(newest.offset(most).limit(1))).first()
    old = col(Replay.done_at) < before
    if kept is not None:
        at, identity = kept
        old = or_(old, col(Replay.done_at) < at, (col(Replay.done_at) == at) & (col(Replay.identity) <= identity))
    doomed = (await session.exec(select(Replay.identity).where(old).limit(STEP))).all()
    if doomed:
        await session.exec(delete(Replay).where(col(Replay.identity).in_(doomed)))
    return len(doomed)

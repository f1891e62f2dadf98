"""Counters of the queue's flows, as the last server left them."""

import json
import math
from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import delete, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.tables import FlowCounter

Path = tuple[str, ...]

#: Characters of a path as it is stored; a longer one is not kept, Postgres could not index it.
LONGEST = 2000


async def load(session: AsyncSession, since: datetime, limit: int) -> dict[Path, float]:
    """Counters that changed after `since`, parents before children, at most `limit`. What is no path with a finite counter of 0 or
    more is left out."""
    newer = select(FlowCounter.path, FlowCounter.counter).where(col(FlowCounter.updated_at) > since)
    # the text of a parent is shorter than those of its children
    stored = (await session.exec(newer.order_by(func.length(FlowCounter.path)).limit(limit))).all()
    found = {path: float(counter) for text, counter in stored if _counts(counter) and (path := _path(text))}
    return dict(sorted(found.items(), key=lambda item: len(item[0])))


async def keep(session: AsyncSession, counters: Mapping[Path, float], at: datetime) -> None:
    """Writes counters, in place of older ones of the same flows."""
    texts = [(text, counter) for path, counter in counters.items() if len(text := json.dumps(path)) <= LONGEST]
    if not texts:
        return
    insert = postgresql.insert(FlowCounter) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(FlowCounter)
    newest = {"counter": insert.excluded.counter, "updated_at": insert.excluded.updated_at}
    upsert = insert.on_conflict_do_update(index_elements=["path"], set_=newest)
    rows = [{"path": text, "counter": float(counter), "updated_at": at} for text, counter in texts]
    await (await session.connection()).execute(upsert, rows)


async def drop(session: AsyncSession, paths: Collection[Path]) -> None:
    """Forgets flows; those that are not there are no error."""
    if paths:
        await session.exec(delete(FlowCounter).where(col(FlowCounter.path).in_([json.dumps(path) for path in paths])))


async def drop_older(session: AsyncSession, since: datetime) -> None:
    """Forgets flows whose counters did not change after `since`."""
    await session.exec(delete(FlowCounter).where(col(FlowCounter.updated_at) <= since))


def _counts(counter: object) -> bool:
    return isinstance(counter, float | int) and math.isfinite(counter) and counter >= 0


def _path(text: object) -> Path | None:
    try:
        names = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return tuple(names) if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None

"""Answers to requests with an Idempotency-Key, between memory and database: sealed on the way in, opened on the way out."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec.structs import replace

from mindgw import clock
from mindgw.config import Idempotency
from mindgw.control.sealing import Safe
from mindgw.store import replays
from mindgw.store.database import Database
from mindgw.store.replays import Ended

#: How a request ended, and its answer; None: that is not kept.
Sent = tuple[Ended, bytes | None]


def seal(safe: Safe, sent: Sequence[Sent]) -> list[Ended]:
    """Rows as they are stored. Takes a while where answers are large."""
    return [ended if body is None else replace(ended, sealed=safe.seal(_name(ended), body)) for ended, body in sent]


async def find(database: Database, safe: Safe, settings: Idempotency, identity: bytes) -> Sent | None:
    """How the request of this identity ended, with its answer where that is kept; None when there was none of late. Raises Draining."""
    async with database.read() as session:
        ended = await replays.find(session, identity, oldest(settings, clock.utcnow()))
    if ended is None or ended.sealed is None:
        return (ended, None) if ended is not None else None
    try:
        return replace(ended, sealed=None), safe.open(_name(ended), ended.sealed)
    except ValueError:
        return replace(ended, sealed=None, note="unreadable"), None


async def append(database: Database, settings: Idempotency, ended: Sequence[Ended]) -> None:
    """Writes rows, all or none."""
    async with database.write() as session:
        await replays.append(session, ended, oldest(settings, clock.utcnow()))


async def forget(database: Database, settings: Idempotency, now: datetime) -> int:
    """Takes away what is older than the settings allow, or too much; returns how many rows and answers."""
    gone, step = 0, 1
    while step:
        async with database.write() as session:
            step = await replays.drop_old(session, oldest(settings, now), settings.most) or await replays.strip(session, settings.max_total)
        gone += step
    return gone


def oldest(settings: Idempotency, now: datetime) -> datetime:
    """When a request must have ended to be still remembered."""
    return now - timedelta(seconds=settings.keep)


def _name(ended: Ended) -> str:
    """Whose answer it is, and what it says of itself in plain."""
    return f"{ended.identity.hex()} {ended.status} {ended.kind}"

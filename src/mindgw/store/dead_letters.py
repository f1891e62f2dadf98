"""Dead letters: what is known of requests that failed for good. Written in batches; only their retries are ever changed."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import delete, update
from sqlalchemy.orm import defer
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import NotFound
from mindgw.store import rows
from mindgw.store.tables import DeadLetter

#: Letters that one call of `drop_old` takes away at most.
STEP = 1000
_SEE = "`mindgw queue dead list` shows them all"


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One request that failed for good. Fields are those of the table, where they are explained."""

    id: str
    request_id: str
    key_id: str
    user_id: str | None = None
    team_id: str | None = None
    org_id: str
    end_user: str = ""
    model: str
    endpoint: str
    stream: bool = False
    fault: str
    status: int
    code: str
    message: str
    attempts: list[dict[str, Any]] = []
    started_at: datetime
    failed_at: datetime
    queued_ms: int = 0
    total_ms: int = 0
    size: int = 0
    body_note: str = ""
    sealed: bytes | None = None


async def append(session: AsyncSession, letters: Sequence[Letter]) -> None:
    """Adds letters; one whose request has a letter already is left out, so a batch may be sent again."""
    if letters:
        await (await session.connection()).execute(rows.insert_once(session, DeadLetter), [msgspec.structs.asdict(one) for one in letters])


async def page(session: AsyncSession, *, before: str | None = None, limit: int = rows.PAGE) -> Sequence[DeadLetter]:
    """The latest letters, newest first, without their bodies; `before` is the id of the last letter of the page before."""
    older = () if before is None else (col(DeadLetter.id) < before,)
    wanted = select(DeadLetter).options(defer(DeadLetter.sealed, raiseload=True))  # type: ignore[arg-type]
    return (await session.exec(wanted.where(*older).order_by(col(DeadLetter.id).desc()).limit(min(limit, rows.PAGE)))).all()


async def find(session: AsyncSession, reference: str) -> DeadLetter:
    """The letter with this id, or of the request with this id. Raises NotFound."""
    named = or_(col(DeadLetter.id) == reference, col(DeadLetter.request_id) == reference)
    found = (await session.exec(select(DeadLetter).where(named))).first()
    if found is None:
        raise NotFound(f"There is no dead letter {reference[:80]!r}.", hint=_SEE)
    return found


async def note_retry(session: AsyncSession, letter_id: str, at: datetime, code: str) -> None:
    """Counts a retry; `code` is that of what went wrong. Nothing happens when the letter is gone."""
    more = {"retries": DeadLetter.retries + 1, "retried_at": at, "retry_code": code}
    await session.exec(update(DeadLetter).where(col(DeadLetter.id) == letter_id).values(more))


async def drop(session: AsyncSession, letter_id: str) -> None:
    """Takes a letter away; nothing happens when it is gone."""
    await session.exec(delete(DeadLetter).where(col(DeadLetter.id) == letter_id))


async def drop_old(session: AsyncSession, before: datetime, most: int) -> int:
    """Takes away letters of failures before a moment, and the oldest of more than `most`, but at most STEP; returns how many. To be
    called until there are none."""
    kept = (await session.exec(select(DeadLetter.id).order_by(col(DeadLetter.id).desc()).offset(most).limit(1))).first()
    old = col(DeadLetter.failed_at) < before
    old = old if kept is None else or_(old, col(DeadLetter.id) <= kept)
    doomed = (await session.exec(select(DeadLetter.id).where(old).limit(STEP))).all()
    if doomed:
        await session.exec(delete(DeadLetter).where(col(DeadLetter.id).in_(doomed)))
    return len(doomed)

"""The audit log: written in the transaction of the change itself, so that neither exists without the other."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.tables import AuditEntry

#: Key of the advisory lock under which entries get their numbers: "audit" in ASCII.
LOCK = 0x6175646974


async def record(session: AsyncSession, actor: str, action: str, target: str, **detail: Any) -> None:
    """`actor` did `action` (noun.verb) to the object with id `target`; `detail` holds JSON values and never a secret."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
        await (await session.connection()).execute(select(func.pg_advisory_xact_lock(LOCK)))
    last = (await session.exec(select(func.max(AuditEntry.seq)))).one()
    session.add(AuditEntry(actor=actor, action=action, object=target, detail=detail, seq=(last or 0) + 1))
    await session.flush()


async def recent(session: AsyncSession, *, before: str | None = None, limit: int = 100) -> Sequence[AuditEntry]:
    """The latest entries, newest first; `before` is the id of the last entry of the page before."""
    older = () if before is None else (col(AuditEntry.id) < before,)
    return (await session.exec(select(AuditEntry).where(*older).order_by(col(AuditEntry.id).desc()).limit(min(limit, 1000)))).all()

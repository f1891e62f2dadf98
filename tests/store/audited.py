"""What the audit log holds, as it is stored."""

from collections.abc import Sequence

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.tables import AuditEntry


async def entries(session: AsyncSession) -> Sequence[AuditEntry]:
    """All entries, oldest first."""
    return (await session.exec(select(AuditEntry).order_by(col(AuditEntry.seq)))).all()

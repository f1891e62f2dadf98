"""How often users, teams and organisations may ask. Keys have their rates in their own row."""

from collections.abc import Sequence

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import NotFound
from mindgw.store import rows
from mindgw.store.tables import Rate

#: What helps who has named a rate that is not there.
SEE = "`mindgw rates list` shows them all"


async def load(session: AsyncSession) -> Sequence[Rate]:
    """All of them, in order."""
    return (await session.exec(select(Rate).order_by(col(Rate.scope)))).all()


async def put(session: AsyncSession, scope: str, changes: dict[str, int | None], *, version: int | None = None) -> Rate:
    """Sets some of the three numbers of a scope (None: no limit), the others stay. Raises PreconditionFailed when it is no longer at the
    version that its changer saw."""
    row = await rows.locked(session, Rate, scope)
    if row is None:
        row = Rate(scope=scope, rpm=changes.get("rpm"), tpm=changes.get("tpm"), concurrency=changes.get("concurrency"))
        session.add(row)
        await session.flush()
        return row
    return rows.change(row, version, **changes)


async def clear(session: AsyncSession, scope: str, *, version: int | None = None) -> Rate:
    """Takes the rate of a scope away; as it was. Raises NotFound, PreconditionFailed."""
    row = await rows.locked(session, Rate, scope)
    if row is None:
        raise NotFound(f"There is no rate for {scope}.", hint=SEE)
    rows.change(row, version)
    await session.delete(row)
    await session.flush()
    return row

"""What the noun rooms share: pages of a list, changes that count, rows made at most once."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Insert, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import PreconditionFailed
from mindgw.store.tables.columns import Versioned

V = TypeVar("V", bound=Versioned)

#: Rows that a page holds unless its reader asks for fewer.
PAGE = 1000


async def page(session: AsyncSession, table: type[V], *where: Any, after: str | None = None, limit: int = PAGE) -> Sequence[V]:
    """Rows in the order of their making; `after` is the id of the last row of the page before. An unknown one gives the first page."""
    made, key = col(table.created_at), table.__table__.c.id  # type: ignore[attr-defined]
    last = await session.get(table, after) if after else None
    if last is not None:
        where = (*where, tuple_(made, key) > tuple_(last.created_at, after))
    return (await session.exec(select(table).where(*where).order_by(made, key).limit(min(limit, PAGE)))).all()


async def locked(session: AsyncSession, table: type[V], row_id: str) -> V | None:
    """The row as it is now, with nobody else changing it until the transaction ends."""
    return await session.get(table, row_id, with_for_update=True, populate_existing=True)


def expect(row: Versioned, expected: int | None) -> None:
    """Raises PreconditionFailed when the row is no longer at the version its changer saw; None: any will do."""
    if expected is not None and row.version != expected:
        raise PreconditionFailed(f"It is at version {row.version} by now, not {expected}.")


def change(row: V, expected: int | None = None, **values: Any) -> V:
    """Sets the values and counts the change. Raises PreconditionFailed when the row is no longer at the version its changer saw."""
    expect(row, expected)
    for name, value in values.items():
        setattr(row, name, value)
    row.version += 1
    return row


def insert_once(session: AsyncSession, table: type[SQLModel]) -> Insert:
    """An INSERT that leaves a row with the same unique value as it is."""
    dialect = session.get_bind().dialect.name
    target = table.__table__  # type: ignore[attr-defined]
    if dialect == "postgresql":
        return postgresql.insert(target).on_conflict_do_nothing()
    return sqlite.insert(target).on_conflict_do_nothing()

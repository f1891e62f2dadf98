"""What was used, summed up."""

from collections.abc import Mapping

import msgspec
from sqlalchemy import func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.budgets import LEDGER
from mindgw.store.entries import BILLED, LEASE

#: What totals may be asked for by, and the column of each.
BY = {
    "key": "key_id",
    "user": "user_id",
    "team": "team_id",
    "org": "org_id",
    "model": "model",
    "day": "day",
    "worker": "worker_id",
}


class Total(msgspec.Struct, frozen=True):
    """The billed rows of one key, user and so on. Tokens that came from an engine's cache are counted in `tokens_in` too; `cost` is in
    millionths of a dollar."""

    #: Id or name; a day looks like 2026-11-21; empty: rows without one.
    name: str
    tokens_in: int
    tokens_out: int
    cached: int
    requests: int
    cost: int


async def totals(session: AsyncSession, by: str, since: str, until: str, filters: Mapping[str, str] | None = None) -> list[Total]:
    """One total for each name, in order, over the days from `since` to `until`, both included; `filters`: only rows of these, by the words
    of `BY`. What was charged for the leases of a dead server is no use that anybody knows of: it is in budgets, not here."""
    row = LEDGER.c
    name = func.coalesce(row[BY[by]], "")
    where = [row[BY[word]] == value for word, value in (filters or {}).items()]
    query = (
        select(
            name,
            func.sum(row.prompt_tokens),
            func.sum(row.completion_tokens),
            func.sum(row.cached_tokens),
            func.count(row.request_id.distinct()),
            func.sum(row.cost),
        )
        .where(row.kind.in_(BILLED), row.outcome != LEASE, row.day.between(since, until), *where)
        .group_by(name)
    )
    found = [Total(who, *map(int, sums)) for who, *sums in await (await session.connection()).execute(query)]
    return sorted(found, key=lambda total: total.name)

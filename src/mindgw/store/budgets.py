"""The rows that say how much of a limit is used and reserved, and the leases that the reserved part is made of.

Whoever changes them calls `guard` first in his transaction. Then, on Postgres, locks are taken in one order: new budgets, budgets, leases,
each sorted; leases are only touched by who holds their budget, or works alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    ScalarSelect,
    String,
    Table,
    and_,
    any_,
    bindparam,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core.quota import DAY, MONTH, TOKENS, Budget
from mindgw.store import tables
from mindgw.store.entries import BILLED, LEASE, SCOPES

T = TypeVar("T")

#: Key of the advisory lock of all that is about money: "ledger" in ASCII.
LOCK = 0x6C6564676572
#: Budgets that one statement asks for.
STEP = 500

LEDGER = tables.metadata.tables["ledger"]
QUOTAS = tables.metadata.tables["quotas"]
BUDGETS = tables.metadata.tables["budgets"]
LEASES = tables.metadata.tables["leases"]

#: A lease: its epoch and its budget.
Loan = tuple[int, Budget]


class State(msgspec.Struct):
    """A budget's row, locked."""

    lim: int
    used: int
    reserved: int
    over: int
    forgiven: int

    def use(self, amount: int) -> None:
        """Counts what was used; what is taken back after a reset was forgiven, not used."""
        self.used += amount
        if self.used < 0:
            self.forgiven += self.used
            self.used = 0

    def stretch(self) -> None:
        """Notes how far it went beyond its limit, once and for all."""
        self.over = max(self.over, self.used + self.reserved - self.lim)


async def guard(session: AsyncSession, *, alone: bool = False) -> None:
    """Keeps those who change limits, or leases of others, apart from everybody else. SQLite has one writer anyway."""
    if postgres(session):
        kind = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        await (await session.connection()).execute(select(getattr(func, kind)(LOCK)))


def postgres(session: AsyncSession) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def among(session: AsyncSession, column: ColumnElement[Any], values: Iterable[str]) -> ColumnElement[bool]:
    """Whether a column is one of many texts, as one parameter however many they are."""
    if postgres(session):
        return column == any_(cast(list(values), ARRAY(String)))
    listed = func.json_each(msgspec.json.encode(list(values)).decode()).table_valued("value")
    return column.in_(select(listed.c.value))


def parts(values: Iterable[T]) -> Iterable[list[T]]:
    """Pieces that a statement can take."""
    rest = iter(values)
    while piece := list(islice(rest, STEP)):
        yield piece


def counted(scope: str, unit: str, period: str, window: Any) -> ScalarSelect[Any]:
    """What the ledger says is used of one scope in one window."""
    name, _, value = scope.partition(":")
    return total(LEDGER.c[SCOPES[name]] == value, unit, period, window)


def total(whose: ColumnElement[bool], unit: str, period: str, window: Any) -> ScalarSelect[Any]:
    """The sum of the billed rows of a window. Rows of leases count in their own window alone, which stands in place of their day."""
    row = LEDGER.c
    inside: ColumnElement[bool] = or_(row.outcome != LEASE, row.day == window)
    if period == DAY:
        inside = row.day == window
    elif period == MONTH:
        inside = and_(row.day.between(window, window + "-31"), inside)
    amount = row.prompt_tokens + row.completion_tokens if unit == TOKENS else row.cost
    return select(func.coalesce(func.sum(amount), 0)).where(whose, row.kind.in_(BILLED), inside).scalar_subquery()


async def create(session: AsyncSession, wanted: Mapping[Budget, str]) -> None:
    """Makes the rows that are missing of these budgets (and their periods), as far as there are limits for them."""
    here = await _present(session, wanted)
    insert = postgresql.insert(BUDGETS) if postgres(session) else sqlite.insert(BUDGETS)
    connection = await session.connection()
    for budget in sorted(wanted.keys() - here):
        period = wanted[budget]
        quota = QUOTAS.c
        sums = select(
            quota.scope, quota.unit, literal(budget.window).label("w"), quota.period, quota.lim,
            counted(budget.scope, budget.unit, period, budget.window).label("used"),
        ).where(quota.scope == budget.scope, quota.unit == budget.unit, quota.period == period).subquery()  # fmt: skip
        beyond = sums.c.used - sums.c.lim
        row = select(*sums.c, literal(0), case((beyond > 0, beyond), else_=0), literal(0)).where(literal(value=True))
        names = ["scope", "unit", "window", "period", "lim", "used", "reserved", "over", "forgiven"]
        await connection.execute(insert.from_select(names, row).on_conflict_do_nothing())


async def _present(session: AsyncSession, wanted: Iterable[Budget]) -> set[Budget]:
    found: set[Budget] = set()
    for piece in parts(sorted(wanted)):
        rows = await (await session.connection()).execute(select(*_key(BUDGETS)).where(tuple_(*_key(BUDGETS)).in_(piece)))
        found.update(Budget._make(row) for row in rows)
    return found


def _key(table: Table) -> tuple[ColumnElement[str], ...]:
    return table.c.scope, table.c.unit, table.c.window


def _in_order(session: AsyncSession) -> tuple[ColumnElement[str], ...]:
    """As Python sorts; Postgres sorts as its language does, unless it is told."""
    key = _key(BUDGETS)
    return tuple(column.collate("C") for column in key) if postgres(session) else key


async def locked(session: AsyncSession, wanted: Collection[Budget]) -> dict[Budget, State]:
    """The rows that there are, in order, with nobody else changing them until the transaction ends."""
    row = BUDGETS.c
    found: dict[Budget, State] = {}
    for piece in parts(sorted(wanted)):
        query = select(*_key(BUDGETS), row.lim, row.used, row.reserved, row.over, row.forgiven).where(tuple_(*_key(BUDGETS)).in_(piece))
        rows = await (await session.connection()).execute(query.order_by(*_in_order(session)).with_for_update())
        found.update((Budget(scope, unit, window), State(*values)) for scope, unit, window, *values in rows)
    return found


async def write(session: AsyncSession, states: Mapping[Budget, State]) -> None:
    """Writes rows that were locked."""
    if not states:
        return
    row = BUDGETS.c
    mine = and_(row.scope == bindparam("s"), row.unit == bindparam("u"), row.window == bindparam("w"))
    names = State.__struct_fields__
    values = [{"s": b.scope, "u": b.unit, "w": b.window, **msgspec.structs.asdict(state)} for b, state in sorted(states.items())]
    await (await session.connection()).execute(BUDGETS.update().where(mine).values({name: bindparam(name) for name in names}), values)


async def loans(session: AsyncSession, *where: ColumnElement[bool]) -> dict[Loan, int]:
    """Leases that are not empty, by epoch and budget."""
    query = select(LEASES.c.epoch, *_key(LEASES), LEASES.c.amount).where(LEASES.c.amount > 0, *where)
    rows = await (await session.connection()).execute(query.order_by(LEASES.c.epoch, *_key(LEASES)))
    return {(epoch, Budget(scope, unit, window)): amount for epoch, scope, unit, window, amount in rows}


async def loans_of(session: AsyncSession, wanted: Iterable[Loan]) -> dict[Loan, int]:
    """Those of these leases that are not empty."""
    found: dict[Loan, int] = {}
    for piece in parts(sorted(wanted)):
        keys = [(epoch, *budget) for epoch, budget in piece]
        found |= await loans(session, tuple_(LEASES.c.epoch, *_key(LEASES)).in_(keys))
    return found


async def lend(session: AsyncSession, epoch: int, amounts: Mapping[Budget, int]) -> None:
    """Adds to leases; the budgets are locked, and reserve as much more."""
    insert = postgresql.insert(LEASES) if postgres(session) else sqlite.insert(LEASES)
    more = insert.on_conflict_do_update(
        index_elements=["epoch", "scope", "unit", "window"], set_={"amount": LEASES.c.amount + insert.excluded.amount}
    )
    values = [{"epoch": epoch, **budget._asdict(), "amount": amount} for budget, amount in sorted(amounts.items()) if amount]
    if values:
        await (await session.connection()).execute(more, values)


async def settle(session: AsyncSession, used: Mapping[Budget, int], draws: Mapping[Loan, int]) -> None:
    """Counts what was used of budgets, and takes out of leases what was drawn, as far as it is there: a lease that was given back meanwhile
    has no more. Budgets without a row are left out."""
    states = await locked(session, {*used, *(budget for _, budget in draws)})
    amounts = await loans_of(session, draws)
    changed: dict[Loan, int] = {}
    for loan in sorted(amounts):
        state = states.get(loan[1])
        if state is None:
            continue
        taken = min(draws[loan], amounts[loan])
        state.reserved -= taken
        changed[loan] = amounts[loan] - taken
    for budget, amount in used.items():
        if budget in states:
            states[budget].use(amount)
    for state in states.values():
        state.stretch()
    await write(session, states)
    await _shrink(session, changed)


async def _shrink(session: AsyncSession, amounts: Mapping[Loan, int]) -> None:
    if not amounts:
        return
    row = LEASES.c
    mine = and_(row.epoch == bindparam("e"), row.scope == bindparam("s"), row.unit == bindparam("u"), row.window == bindparam("w"))
    values = [{"e": e, "s": b.scope, "u": b.unit, "w": b.window, "amount": amount} for (e, b), amount in amounts.items()]
    await (await session.connection()).execute(LEASES.update().where(mine).values(amount=bindparam("amount")), values)


async def drop(session: AsyncSession, epochs: Sequence[int]) -> None:
    """Takes away leases of epochs that are over; they are empty by now."""
    for piece in parts(epochs):
        await (await session.connection()).execute(LEASES.delete().where(LEASES.c.epoch.in_(piece)))

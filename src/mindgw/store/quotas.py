"""Limits, and loans of what they allow. People change limits; processes borrow and give back."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, or_, select
from sqlmodel import col
from sqlmodel import select as pick
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core import quota
from mindgw.core.quota import Budget
from mindgw.errors import NotFound
from mindgw.store import budgets, epochs, rows
from mindgw.store.budgets import BUDGETS, LEASES, QUOTAS
from mindgw.store.tables import Quota

#: What helps who has named a limit that is not there.
SEE = "`mindgw quotas list` shows them all"


class Want(msgspec.Struct, frozen=True):
    """A wish for a loan: `want` if there is as much, `least` if there is not, more if there is plenty."""

    budget: Budget
    period: str
    least: int
    want: int


class Lent(msgspec.Struct, frozen=True):
    """What came of a wish, and the budget's row as it is after it."""

    budget: Budget
    amount: int
    used: int
    reserved: int
    limit: int


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A limit and what is used of it in its window."""

    scope: str
    unit: str
    period: str
    window: str
    on_exceed: str
    limit: int
    used: int = 0
    reserved: int = 0
    over: int = 0
    forgiven: int = 0


async def load(session: AsyncSession) -> Sequence[Quota]:
    """All limits."""
    return (await session.exec(pick(Quota).order_by(col(Quota.scope), col(Quota.unit), col(Quota.period)))).all()


async def put(session: AsyncSession, wanted: Quota, day: str, *, version: int | None = None) -> Quota:
    """Sets a limit from now on: `day` is today, and the windows before it keep the limit that they had. What is used already counts; a
    limit below it refuses whatever comes. Raises PreconditionFailed when it is no longer at the version its changer saw."""
    await budgets.guard(session, alone=True)
    row = await session.get(Quota, (wanted.scope, wanted.unit, wanted.period), populate_existing=True)
    if row is None:
        row = wanted
        session.add(row)
    else:
        rows.change(row, version, lim=wanted.lim, on_exceed=wanted.on_exceed)
    await session.flush()
    now = quota.window(row.period, day)
    await budgets.create(session, {Budget(row.scope, row.unit, now): row.period})
    budget = BUDGETS.c
    query = select(budget.window).where(_same(row.scope, row.unit, row.period), budget.window >= now)
    windows = (await (await session.connection()).execute(query)).scalars()
    states = await budgets.locked(session, [Budget(row.scope, row.unit, window) for window in windows])
    for state in states.values():
        state.lim = row.lim
        state.stretch()
    await budgets.write(session, states)
    return row


async def reset(session: AsyncSession, scope: str, unit: str, period: str, day: str) -> Standing:
    """Forgives what was used in the window of that day. What is reserved stays so. Raises NotFound."""
    row = await _alone(session, scope, unit, period)
    budget = Budget(scope, unit, quota.window(period, day))
    await budgets.create(session, {budget: period})
    states = await budgets.locked(session, [budget])
    state = states[budget]
    state.forgiven, state.used, state.over = state.forgiven + state.used, 0, 0
    state.stretch()
    await budgets.write(session, states)
    return _standing(row, budget.window, state)


async def clear(session: AsyncSession, scope: str, unit: str, period: str) -> None:
    """Takes a limit away, with its budgets and what is on loan of them. Raises NotFound."""
    row = await _alone(session, scope, unit, period)
    windows = select(BUDGETS.c.window).where(_same(scope, unit, period))
    connection = await session.connection()
    await connection.execute(delete(LEASES).where(LEASES.c.scope == scope, LEASES.c.unit == unit, LEASES.c.window.in_(windows)))
    await connection.execute(delete(BUDGETS).where(_same(scope, unit, period)))
    await session.delete(row)
    await session.flush()


async def _alone(session: AsyncSession, scope: str, unit: str, period: str) -> Quota:
    await budgets.guard(session, alone=True)
    row = await session.get(Quota, (scope, unit, period), populate_existing=True)
    if row is None:
        raise NotFound(f"There is no limit for the {unit} of {scope} per {period}.", hint=SEE)
    return row


def _same(scope: str, unit: str, period: str) -> ColumnElement[bool]:
    return and_(BUDGETS.c.scope == scope, BUDGETS.c.unit == unit, BUDGETS.c.period == period)


async def standings(session: AsyncSession, day: str, *, scope: str | None = None, unit: str | None = None) -> list[Standing]:
    """Every limit with its window of that day, in order; those of one scope or unit where they are named."""
    row, budget = QUOTAS.c, BUDGETS.c
    now = or_(*(and_(row.period == period, budget.window == quota.window(period, day)) for period in quota.PERIODS))
    mine = and_(budget.scope == row.scope, budget.unit == row.unit, budget.period == row.period, now)
    where = [column == value for column, value in ((row.scope, scope), (row.unit, unit)) if value is not None]
    query = select(QUOTAS, budget.used, budget.reserved, budget.over, budget.forgiven).join(BUDGETS, mine, isouter=True).where(*where)
    found = await (await session.connection()).execute(query.order_by(row.scope, row.unit, row.period))
    return [
        _standing(line, quota.window(line.period, day), line if line.used is not None else budgets.State(0, 0, 0, 0, 0)) for line in found
    ]


def _standing(row: Quota | Row[Any], window: str, state: budgets.State | Row[Any]) -> Standing:
    return Standing(
        scope=row.scope, unit=row.unit, period=row.period, window=window, on_exceed=row.on_exceed, limit=row.lim,
        used=state.used, reserved=state.reserved, over=state.over, forgiven=state.forgiven,
    )  # fmt: skip


# -- loans -------------------------------------------------------------------------------------------------------------


async def borrow(session: AsyncSession, epoch: int, wants: Sequence[Want]) -> list[Lent]:
    """Lends what there is, each budget by itself, in the order of the budgets; where nothing is, the row still says why. Budgets whose
    limit is gone are left out. Raises epochs.Over when the epoch has no right to leases any more."""
    await budgets.guard(session)
    await epochs.require_running(session, epoch)
    asked = {want.budget: want for want in wants}
    await budgets.create(session, {want.budget: want.period for want in wants})
    states = await budgets.locked(session, asked)
    amounts = {}
    for budget, state in sorted(states.items()):
        want = asked[budget]
        left = state.lim - state.used - state.reserved
        amounts[budget] = quota.grant(left, state.lim, budget.unit, want.least, want.want)
        state.reserved += amounts[budget]
    await budgets.write(session, {budget: states[budget] for budget, amount in amounts.items() if amount})
    await budgets.lend(session, epoch, amounts)
    return [Lent(budget, amount, states[budget].used, states[budget].reserved, states[budget].lim) for budget, amount in amounts.items()]


async def give_back(session: AsyncSession, epoch: int, number: int, amounts: Mapping[Budget, int]) -> None:
    """Takes out of the epoch's leases what it does not need, as far as it is there. Numbers rise: what comes again under one that was taken
    is taken for the same, and changes nothing. Raises epochs.Repeated where another transaction was faster with it."""
    await budgets.guard(session)
    if await epochs.has_returned(session, epoch, number):
        return
    await budgets.settle(session, {}, {(epoch, budget): amount for budget, amount in amounts.items()})
    await epochs.returned(session, epoch, number)  # last, as a batch of the ledger has it: rows are locked in one order

"""Entries that come late: from receipts of requests whose server had ended, and about leases that it never gave back.

Of a request one attempt is billed: the one that answered in full, else the one of which most came, and of several such the latest. Two may
have run at once, and whoever knew which of them its client was given is gone; of others the later one has more than what failed before
its first word. What is known by now decides, so an attempt that was billed may have to be taken back. Whoever calls this works alone
(`budgets.guard`), so that what is read here stays true.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core.quota import Draw
from mindgw.store import budgets
from mindgw.store.budgets import LEDGER, Loan
from mindgw.store.entries import BILLED, COLUMNS, LEASE, Entry, of_lease

#: Billed entries of each attempt of each request.
History = dict[str, dict[int, list[Entry]]]
#: What a correction takes back.
_BACK = ("prompt_tokens", "completion_tokens", "cached_tokens", "cost")


async def resolve(session: AsyncSession, entries: Sequence[Entry]) -> tuple[list[Entry | None], list[Entry]]:
    """What is to be written in the place of each entry (None: nothing, it was about a lease that is empty by now), and what corrects rows
    that are there."""
    history = await _history(session, {entry.request_id for entry in entries if entry.recovered})
    for entry in entries:
        if not entry.recovered and entry.request_id in history:
            _note(history, entry)
    adjusted: list[Entry] = []
    written: list[Entry | None] = [_attempt(history, entry, adjusted) if entry.recovered else entry for entry in entries]
    own = {(entry.lease_epoch, draw.budget) for entry in entries for draw in entry.draws if entry.lease_epoch}
    loans = Counter(await budgets.loans_of(session, own))
    missing: Counter[Loan] = Counter()
    at: dict[Loan, datetime] = {}
    for entry in (one for one in written if one is not None and one.lease_epoch and one.outcome != LEASE):
        for draw in entry.draws:
            loan = entry.lease_epoch, draw.budget
            taken = min(loans[loan], draw.amount)
            loans[loan] -= taken
            missing[loan] += draw.amount - taken
            at[loan] = entry.started_at
    adjusted += await _given_back(session, +missing, at)
    return [_left(entry, loans) if entry is not None and entry.outcome == LEASE else entry for entry in written], adjusted


async def _history(session: AsyncSession, requests: Iterable[str]) -> History:
    found: History = {request: {} for request in requests}
    if found:
        row = LEDGER.c
        query = select(*(row[name] for name in COLUMNS)).where(budgets.among(session, row.request_id, found), row.kind.in_(BILLED))
        for values in (await (await session.connection()).execute(query)).mappings():
            _note(found, Entry(**{name: values[name] for name in COLUMNS}))
    return found


def _note(history: History, entry: Entry) -> None:
    if entry.kind in BILLED:
        history[entry.request_id].setdefault(entry.attempt, []).append(entry)


def _attempt(history: History, entry: Entry, adjusted: list[Entry]) -> Entry:
    """A recovered entry as it is to be written; attempts that were billed in its place are taken back, into `adjusted`."""
    if entry.kind not in BILLED:
        return entry
    billed = {number: rows for number, rows in history[entry.request_id].items() if any(_sums(rows))}
    # an attempt that was corrected by somebody already cannot be corrected once more
    if any(len(rows) > 1 or _weight(rows[0]) > _weight(entry) for rows in billed.values()):
        return msgspec.structs.replace(entry, kind="wasted", draws=())
    for rows in billed.values():
        back = {name: -getattr(rows[0], name) for name in _BACK}
        # one that comes in the same batch still has its draws: they leave the lease with its own row
        taken_back = msgspec.structs.replace(rows[0], kind="adjust", bytes_out=0, over=0, draws=(), **back)
        _note(history, taken_back)
        adjusted.append(taken_back)
    _note(history, entry)
    return entry


def _weight(entry: Entry) -> tuple[bool, int, int]:
    """The heaviest attempt is the one that its client had, as far as that is known."""
    is_whole = entry.outcome == "done" and (entry.completion_tokens > 0 or not entry.stream)
    return is_whole, 0 if is_whole else entry.bytes_out, entry.attempt


def _sums(rows: Sequence[Entry]) -> tuple[int, ...]:
    return tuple(sum(getattr(row, name) for row in rows) for name in _BACK)


async def _given_back(session: AsyncSession, missing: Counter[Loan], at: dict[Loan, datetime]) -> list[Entry]:
    """Corrections of leases that were charged whole: what was drawn from one and is not there any more was charged with it."""
    ids = {of_lease(epoch, Draw(budget, 0), at[epoch, budget]).request_id: (epoch, budget) for epoch, budget in missing}
    if not ids:
        return []
    row = LEDGER.c
    query = select(row.request_id, row.completion_tokens + row.cost).where(
        budgets.among(session, row.request_id, ids), row.outcome == LEASE
    )
    charged: Counter[str] = Counter()
    corrected: Counter[str] = Counter()
    for request_id, amount in await (await session.connection()).execute(query):
        charged[request_id] += amount
        corrected[request_id] += amount <= 0
    made = []
    for request_id, (epoch, budget) in sorted(ids.items()):
        amount = min(missing[epoch, budget], charged[request_id])
        if amount > 0:
            draw, number = Draw(budget, -amount), corrected[request_id] + 1
            made.append(of_lease(epoch, draw, at[epoch, budget], kind="adjust", attempt=number))
    return made


def _left(entry: Entry, loans: Counter[Loan]) -> Entry | None:
    """What is to be charged of a lease: no more than is in it."""
    (draw,) = entry.draws
    loan = entry.lease_epoch, draw.budget
    amount = min(draw.amount, loans[loan])
    loans[loan] -= amount
    return of_lease(entry.lease_epoch, Draw(loan[1], amount), entry.started_at) if amount else None

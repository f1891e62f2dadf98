"""Whether the books are right: the invariants of the ledger, its budgets and its chains, looked at row by row in bounded memory.

What it cannot see: whoever may write to the database can cut commits off the end of a chain that no later one goes on from (the newest
of each data directory), put the head in `epochs` back, and budgets with it. What is left is a chain that hangs together. Against that
`heads` says where these chains end, to be noted where that writer does not reach: a commit that was noted and is not there was cut off.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import Select, and_, case, exists, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core import chain
from mindgw.core.quota import PERIODS, UNITS
from mindgw.store import budgets, tables
from mindgw.store.budgets import BUDGETS, LEASES, LEDGER
from mindgw.store.entries import BILLED, COLUMNS, LEASE, SCOPES, TERMINAL
from mindgw.store.ledger import GENESIS, link

#: Rows of the ledger that are in memory at once, unless a single commit has more.
ROWS = 10_000
#: Things of one kind that are read at once.
PAGE = 1000

_COMMITS = tables.metadata.tables["ledger_commits"]
_EPOCHS = tables.metadata.tables["epochs"]
_RECEIPTS = tables.metadata.tables["receipts"]


class Broken(msgspec.Struct, frozen=True):
    """An invariant that does not hold."""

    #: I1 to I7.
    invariant: str
    #: Which row, budget or commit.
    where: str
    #: What is wrong with it, for people.
    what: str


class Head(msgspec.Struct, frozen=True):
    """The last commit of a chain."""

    epoch: int
    seq: int
    hash: bytes


async def heads(session: AsyncSession) -> list[Head]:
    """Where the chains end that no later one goes on from, the newest PAGE of them at most; there is one for each data directory."""
    row, next = _EPOCHS.c, _EPOCHS.alias().c
    gone_on = exists().where(next.after_epoch == row.id, next.after_seq == row.head_seq, next.head_seq > 0)
    query = select(row.id, row.head_seq, row.head).where(row.head_seq > 0, ~gone_on).order_by(row.id.desc()).limit(PAGE)
    return [Head(*found) for found in reversed((await (await session.connection()).execute(query)).all())]


async def broken(session: AsyncSession, key: bytes, checked: Counter[str] | None = None) -> AsyncIterator[Broken]:
    """All that is wrong; `key` is that of the chains. The session should see one moment. Counts in `checked` what was looked at: budgets,
    leases, requests, receipts, rows, commits, epochs."""
    counts = Counter[str]() if checked is None else checked
    for each in (_budgets, _leases, _attempts, _receipts, _owners):
        async for found in each(session, counts):
            yield found
    async for found in _chains(session, key, counts):
        yield found


async def _rows(session: AsyncSession, query: Select[*tuple[Any, ...]]) -> AsyncIterator[Any]:
    """The rows of a query, a page at a time."""
    async with (await session.connection()).stream(query.execution_options(yield_per=PAGE)) as result:
        async for row in result:
            yield row


# -- budgets and leases ------------------------------------------------------------------------------------------------


async def _budgets(session: AsyncSession, counts: Counter[str]) -> AsyncIterator[Broken]:
    """I1: what is used is what is billed. I3: no more than the limit, but for what is noted."""
    row = BUDGETS.c
    for name, column in SCOPES.items():
        whose = LEDGER.c[column] == func.substr(row.scope, len(name) + 2)
        sums = [
            ((row.unit == unit) & (row.period == period), budgets.total(whose, unit, period, row.window))
            for unit in UNITS
            for period in PERIODS
        ]
        query = select(row.scope, row.unit, row.window, row.lim, row.used, row.reserved, row.over, row.forgiven, case(*sums, else_=None))
        async for scope, unit, window, lim, used, reserved, over, forgiven, billed in _rows(
            session, query.where(row.scope.like(f"{name}:%"))
        ):
            counts["budgets"] += 1
            where = f"{scope} {unit} {window}"
            if used + forgiven != billed:
                yield Broken("I1", where, f"used {used} and forgiven {forgiven} are not the {billed} that the ledger has")
            if min(used, reserved) < 0 or used + reserved > lim + over:
                yield Broken("I3", where, f"used {used} and reserved {reserved} are more than the limit {lim} and {over} beyond it")


async def _leases(session: AsyncSession, counts: Counter[str]) -> AsyncIterator[Broken]:
    """I2: what is reserved is what is on loan."""
    lease, row = LEASES.c, BUDGETS.c
    mine = and_(lease.scope == row.scope, lease.unit == row.unit, lease.window == row.window)
    lent = select(func.coalesce(func.sum(lease.amount), 0)).where(mine).scalar_subquery()
    async for scope, unit, window, reserved, amount in _rows(session, select(row.scope, row.unit, row.window, row.reserved, lent)):
        if reserved != amount:
            yield Broken("I2", f"{scope} {unit} {window}", f"{reserved} are reserved, {amount} are on loan")
    stray = select(lease.epoch, lease.scope, lease.unit, lease.window, row.lim.is_(None)).join(BUDGETS, mine, isouter=True)
    async for epoch, scope, unit, window, lost in _rows(session, stray):
        counts["leases"] += 1
        if lost:
            yield Broken("I2", f"{scope} {unit} {window}", f"epoch {epoch} has a loan of a budget that is not there")


# -- requests ----------------------------------------------------------------------------------------------------------


async def _attempts(session: AsyncSession, counts: Counter[str]) -> AsyncIterator[Broken]:
    """I4: an attempt ends once, and of a request one attempt at most is billed."""
    row = LEDGER.c
    billed = case((row.kind.in_(BILLED), 1), else_=0)
    ends = func.sum(case((row.kind.in_(TERMINAL), 1), else_=0))
    paid = or_(*(func.sum(billed * count) != 0 for count in (row.prompt_tokens, row.completion_tokens, row.cost)))
    # in the order of an index; who is how often in it is counted here, a database would hold all of them in memory
    attempts = select(row.request_id, ends, case((paid, 1), else_=0)).where(row.outcome != LEASE).group_by(row.request_id, row.attempt)
    request, bills = "", 0
    async for request_id, most, bill in _rows(session, attempts.order_by(row.request_id, row.attempt)):
        if request_id != request:
            request, bills = request_id, 0
            counts["requests"] += 1
        bills += bill
        if most > 1:
            yield Broken("I4", request_id, f"an attempt ended {most} times")
        if bill and bills == 2:
            yield Broken("I4", request_id, "more than one attempt is billed")


async def _receipts(session: AsyncSession, counts: Counter[str]) -> AsyncIterator[Broken]:
    """I6: whatever an agent says that it delivered, its request is in the ledger; a receipt is kept only once that is written. Which of
    its attempts is not asked: of one that it turned down there is no row, whatever a false agent says of it."""
    receipt = _RECEIPTS.c
    booked = exists().where(LEDGER.c.request_id == receipt.request_id)
    ours = receipt.request_id != ""
    counts["receipts"] += (await (await session.connection()).execute(select(func.count()).select_from(_RECEIPTS).where(ours))).scalar_one()
    query = select(receipt.worker_id, receipt.seq, receipt.request_id, receipt.attempt).where(ours, ~booked)
    async for worker_id, seq, request_id, attempt in _rows(session, query):
        yield Broken("I6", f"{request_id}.{attempt}", f"receipt {seq} of worker {worker_id} says that it was delivered, and no row does")


async def _owners(session: AsyncSession, counts: Counter[str]) -> AsyncIterator[Broken]:
    """I7: somebody answers for every row."""
    row = LEDGER.c
    nobody = and_(row.outcome != LEASE, or_(row.key_id == "", row.org_id == ""))
    query = select(row.request_id, row.attempt, row.kind).where(or_(nobody, and_(row.outcome == LEASE, ~row.request_id.like("lease:%"))))
    async for request_id, attempt, kind in _rows(session, query):
        yield Broken("I7", f"{request_id}.{attempt} {kind}", "it belongs to nobody")


# -- chains ------------------------------------------------------------------------------------------------------------


async def _chains(session: AsyncSession, key: bytes, counts: Counter[str]) -> AsyncIterator[Broken]:
    """I5: every link follows from the one before and its rows, and nothing is missing at the end."""
    connection = await session.connection()
    row, commit = _EPOCHS.c, _COMMITS.c
    last = 0
    while True:
        page = select(row.id, row.genesis, row.after_epoch, row.after_seq, row.head, row.head_seq).where(row.id > last).order_by(row.id)
        found = (await connection.execute(page.limit(PAGE))).all()
        for epoch, genesis, after_epoch, after_seq, head, head_seq in found:
            counts["epochs"] += 1
            before = select(commit.hash).where(commit.epoch == after_epoch, commit.seq == after_seq)
            start = (await connection.execute(before)).scalar() if after_epoch else GENESIS
            if start != genesis:
                yield Broken("I5", f"epoch {epoch}", f"commit {after_epoch}.{after_seq}, after which it began, is gone or was changed")
            async for wrong in _chain(session, key, _End(epoch, 0, genesis), (head_seq, head), counts):
                yield wrong
        if len(found) < PAGE:
            break
        last = found[-1].id
    async for wrong in _strays(session):
        yield wrong


class _End(msgspec.Struct):
    """How far a chain was followed."""

    epoch: int
    seq: int
    hash: bytes


async def _chain(session: AsyncSession, key: bytes, end: _End, head: tuple[int, bytes], counts: Counter[str]) -> AsyncIterator[Broken]:
    commit = _COMMITS.c
    read = end.seq
    while True:
        page = select(_COMMITS).where(commit.epoch == end.epoch, commit.seq > read).order_by(commit.seq).limit(PAGE)
        commits = (await (await session.connection()).execute(page)).all()
        for piece in _pieces(commits):
            rows = await _hashed(session, end.epoch, piece[0].seq, piece[-1].seq)
            counts["commits"] += len(piece)
            counts["rows"] += sum(map(len, rows.values()))
            for seq, what in _followed(key, end, piece, rows):
                yield Broken("I5", f"commit {end.epoch}.{seq}", what)
        if len(commits) < PAGE:
            break
        read = commits[-1].seq
    if (end.seq, end.hash) != head:
        yield Broken("I5", f"epoch {end.epoch}", f"its last commit was number {head[0]}; the chain ends with number {end.seq}")


def _pieces(commits: Sequence[Any]) -> Iterator[list[Any]]:
    """Commits with a bounded number of rows."""
    piece: list[Any] = []
    size = 0
    for commit in commits:
        if piece and size + commit.entries > ROWS:
            yield piece
            piece, size = [], 0
        piece.append(commit)
        size += commit.entries
    if piece:
        yield piece


async def _hashed(session: AsyncSession, epoch: int, first: int, last: int) -> dict[int, list[bytes]]:
    """Rows of some commits in canonical form, by commit."""
    row = LEDGER.c
    query = select(*(row[name] for name in COLUMNS), row.epoch, row.seq).where(row.epoch == epoch, row.seq.between(first, last))
    found: dict[int, list[bytes]] = {}
    async for values in _rows(session, query):
        found.setdefault(values[-1], []).append(chain.canonical(tuple(values)))
    return found


def _followed(key: bytes, end: _End, commits: Sequence[Any], rows: dict[int, list[bytes]]) -> Iterator[tuple[int, str]]:
    """What is wrong with which of these commits; `end` moves on to the last of them."""
    for commit in commits:
        for what in _wrong(key, end, commit, rows.get(commit.seq, [])):
            yield commit.seq, what
        end.seq, end.hash = commit.seq, commit.hash


def _wrong(key: bytes, end: _End, commit: Any, rows: list[bytes]) -> Iterator[str]:
    """What does not fit about a commit that comes after `end`."""
    if commit.seq != end.seq + 1:
        yield f"it comes after number {end.seq}: some are missing"
    elif commit.prev != end.hash:
        yield "it does not go on from the one before"
    if commit.entries != len(rows):
        yield f"it has {len(rows)} rows of {commit.entries}"
    if commit.hash != link(key, commit.prev, commit.epoch, commit.seq, commit.committed_at, rows):
        yield "its rows are not those that were written"


async def _strays(session: AsyncSession) -> AsyncIterator[Broken]:
    row, commit = LEDGER.c, _COMMITS.c
    lost = select(row.epoch, row.seq, func.count()).join(_COMMITS, and_(commit.epoch == row.epoch, commit.seq == row.seq), isouter=True)
    async for epoch, seq, number in _rows(session, lost.where(commit.seq.is_(None)).group_by(row.epoch, row.seq)):
        yield Broken("I5", f"commit {epoch}.{seq}", f"{number} rows say that they came with it, and it is not there")
    known = select(commit.epoch, func.count()).join(_EPOCHS, _EPOCHS.c.id == commit.epoch, isouter=True)
    async for epoch, number in _rows(session, known.where(_EPOCHS.c.id.is_(None)).group_by(commit.epoch)):
        yield Broken("I5", f"epoch {epoch}", f"it has {number} commits, and nobody knows of it")

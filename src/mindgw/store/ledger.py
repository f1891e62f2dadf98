"""The ledger: entries come in batches, each batch is one transaction and one link of a chain; each attempt counts once, and nothing that
is written is ever changed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter

import msgspec
from sqlalchemy import Dialect, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel import select as pick
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw import clock
from mindgw.core import chain, quota
from mindgw.core.quota import Budget, Draw
from mindgw.store import budgets, recovery, tables
from mindgw.store.budgets import LEDGER, QUOTAS, Loan
from mindgw.store.entries import BILLED, COLUMNS, LEASE, Entry, check, scopes, slot
from mindgw.store.tables import LedgerRow, Receipt

__all__ = ["COLUMNS", "GENESIS", "Committed", "Entry", "Raced", "Writer", "commit", "of_request", "recent"]

#: What the first chain of all starts from.
GENESIS = chain.genesis("ledger")
#: What the ledger has room for once: see `Entry.slot`.
Slot = tuple[str, int, str]
#: In place of the number of a commit: one of another epoch's, the one that is being made.
OTHERS, OWN = -1, 0
#: How a violation of uniqueness is called: by Postgres, and by SQLite (of a UNIQUE, of a primary key).
_TAKEN = ("23505", 2067, 1555)

_COMMITS = tables.metadata.tables["ledger_commits"]
_EPOCHS = tables.metadata.tables["epochs"]
#: What is hashed and written as it is; the day, the moment and the commit come after it.
_plain = attrgetter(*COLUMNS[:-2])
_whose = attrgetter("key_id", "user_id", "team_id", "org_id", "model")
_decode_known = msgspec.msgpack.Decoder(list[Slot]).decode


class Raced(Exception):
    """Another transaction wrote the same just now. Nothing was written; offered again, the batch will find what is there."""


class Writer(msgspec.Struct):
    """The writing end of one epoch's chain. One batch at a time; one that failed must be offered again before the process ends, but it
    may be cut or joined differently then."""

    epoch: int
    #: Key of the chain.
    key: bytes
    #: Last link that is known to be committed: `seq` 0 and the epoch's genesis in the beginning.
    seq: int
    head: bytes

    def advance(self, done: "Committed") -> None:
        """To be called when the transaction of a batch was committed, and only then."""
        self.seq, self.head = done.seq, done.head


class Committed(msgspec.Struct, frozen=True):
    """What became of a batch."""

    #: Last link of the chain now.
    seq: int
    head: bytes
    #: Entries of the batch that are rows of this epoch's now, as they were written.
    written: list[Entry]
    #: Those that stood in the ledger already, or were about a lease that is empty.
    known: list[Entry]
    #: Corrections that were made beside them.
    adjusted: list[Entry]


async def commit(session: AsyncSession, writer: Writer, entries: Sequence[Entry]) -> Committed:
    """Writes a batch, counts it in all budgets, and takes what it drew out of leases, in the caller's transaction. A batch whose answer was
    lost may be offered again: what was written then is found, and written only once. Raises ValueError for an entry that must never
    be booked, Raced, and what the database raises."""
    for entry in entries:
        check(entry)
    late = [entry for entry in entries if entry.recovered or entry.lease_epoch not in (0, writer.epoch)]
    await budgets.guard(session, alone=bool(late))
    batch = await _sorted_out(session, writer, entries)
    final: list[Entry | None] = list(batch.fresh)
    adjusted: list[Entry] = []
    if late:
        final, adjusted = await recovery.resolve(session, batch.fresh)
    rows = [entry for entry in final if entry is not None]
    batch.written += rows
    batch.known += [entry for entry, made in zip(batch.fresh, final, strict=True) if made is None]
    seq, head = batch.seq, batch.head
    if rows or adjusted or batch.drawn:
        used = await _used(session, [*rows, *adjusted])
        seq, head = seq + 1, await _write(session, writer, batch, [*rows, *adjusted])
        await budgets.settle(session, used, _drawn(writer, [*rows, *adjusted, *batch.drawn]))
    return Committed(seq, head, batch.written, batch.known, adjusted)


class _Batch(msgspec.Struct):
    """A batch in the light of what the ledger holds."""

    #: Last link of the chain: the writer's, or that of a commit whose answer was lost.
    seq: int
    head: bytes
    written: list[Entry] = []
    known: list[Entry] = []
    #: Those of the known ones whose draws still leave the lease, in this transaction.
    drawn: list[Entry] = []
    fresh: list[Entry] = []


async def _sorted_out(session: AsyncSession, writer: Writer, entries: Sequence[Entry]) -> _Batch:
    batch = _Batch(writer.seq, writer.head)
    told: set[Slot] = set()
    row = _COMMITS.c
    lost = select(row.seq, row.hash, row.known).where(row.epoch == writer.epoch, row.seq > writer.seq).order_by(row.seq)
    connection = await session.connection()
    for seq, head, known in await connection.execute(lost):
        batch.seq, batch.head = seq, head
        told.update(_decode_known(known) if known else ())
    there, taken = await _there(session, writer, entries) if entries else ({}, {})
    for entry in entries:
        slot = entry.slot
        if there.get(slot, OWN) > writer.seq:
            batch.written.append(entry)
        elif slot in there:
            batch.known.append(entry)
            # what this epoch wrote took its draws with it; what another one wrote of a receipt may have taken less of the lease, or nothing
            if there[slot] == OTHERS and slot not in told and entry.lease_epoch in (0, writer.epoch):
                batch.drawn += _rest(entry, taken.get(slot, {}))
        else:
            batch.fresh.append(entry)
            there[slot] = OWN
    return batch


async def _there(session: AsyncSession, writer: Writer, entries: Iterable[Entry]) -> tuple[dict[Slot, int], dict[Slot, dict[str, int]]]:
    """Slots of these requests that are taken: by which commit of the writer's own epoch, `OTHERS` for one of another's; and what those of
    others were billed, in each unit. They were made of receipts, as only those are about attempts of another epoch, so that much has left
    this one's leases."""
    row = LEDGER.c
    asked = dict.fromkeys(entry.request_id for entry in entries)
    columns = (
        row.request_id,
        row.attempt,
        row.kind,
        row.epoch,
        row.seq,
        (row.prompt_tokens + row.completion_tokens).label("tokens"),
        row.cost,
    )
    rows = await (await session.connection()).execute(select(*columns).where(budgets.among(session, row.request_id, asked)))
    there: dict[Slot, int] = {}
    taken: dict[Slot, dict[str, int]] = {}
    for id, attempt, kind, epoch, seq, tokens, cost in rows:
        at = slot(id, attempt, kind)
        there[at] = seq if epoch == writer.epoch else OTHERS
        if there[at] == OTHERS and kind in BILLED:
            taken[at] = {quota.TOKENS: tokens, quota.USD: cost}
    return there, taken


def _rest(entry: Entry, taken: dict[str, int]) -> list[Entry]:
    """The entry with draws of what was not `taken` for it yet; none when nothing is left of them."""
    rest = [Draw(draw.budget, draw.amount - taken.get(draw.budget.unit, 0)) for draw in entry.draws]
    draws = tuple(draw for draw in rest if draw.amount > 0)
    return [msgspec.structs.replace(entry, draws=draws)] if draws else []


async def _write(session: AsyncSession, writer: Writer, batch: _Batch, entries: Sequence[Entry]) -> bytes:
    """Adds the rows, their link and the new head of the chain, which it returns."""
    seq, at = batch.seq + 1, clock.utcnow()
    connection = await session.connection()
    moment = _as_text if connection.dialect.name == "sqlite" else _as_it_is
    values, hashed = [], []
    for entry in entries:
        plain, day, started = _plain(entry), entry.booked, entry.started_at
        values.append((*plain, day, moment(started), writer.epoch, seq))
        hashed.append(chain.canonical((*plain, day, started, writer.epoch, seq)))
    head = link(writer.key, batch.head, writer.epoch, seq, at, hashed)
    known = msgspec.msgpack.encode([entry.slot for entry in batch.drawn]) if batch.drawn else b""
    commit = {
        "epoch": writer.epoch,
        "seq": seq,
        "prev": batch.head,
        "hash": head,
        "entries": len(values),
        "known": known,
        "committed_at": at,
    }
    try:
        await connection.execute(_COMMITS.insert(), commit)
        if values:
            await connection.exec_driver_sql(_insert(connection.dialect), values)
    except IntegrityError as wrong:
        if getattr(wrong.orig, "sqlstate", None) in _TAKEN or getattr(wrong.orig, "sqlite_errorcode", None) in _TAKEN:
            raise Raced(str(wrong.orig)) from wrong
        raise
    await connection.execute(_EPOCHS.update().where(_EPOCHS.c.id == writer.epoch).values(head=head, head_seq=seq))
    return head


def link(key: bytes, prev: bytes, epoch: int, seq: int, at: datetime, rows: Iterable[bytes]) -> bytes:
    """The link of a commit; `rows` are in canonical form and come in any order."""
    return chain.link(key, prev, seq, [chain.canonical((epoch, at)), *sorted(rows)])


def _as_text(moment: datetime) -> str:
    """As SQLAlchemy stores it in SQLite."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _as_it_is(moment: datetime) -> datetime:
    return moment


@lru_cache(maxsize=4)
def _insert(dialect: Dialect) -> str:
    """The statement that adds a row, for the driver itself: what goes round its types is ten times as slow."""
    names = [*COLUMNS, "epoch", "seq"]
    compiled = LEDGER.insert().compile(dialect=dialect, column_keys=names)
    assert getattr(compiled, "positiontup", None) == names
    return str(compiled)


async def _used(session: AsyncSession, entries: Iterable[Entry]) -> Counter[Budget]:
    """What billed entries count in each budget. Makes the budgets of new windows, which begin with what the ledger holds: so it is called
    before these entries are in it."""
    used: Counter[Budget] = Counter()
    alike: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        if entry.outcome == LEASE:
            (draw,) = entry.draws
            used[draw.budget] += entry.amount(draw.budget.unit)
        elif entry.kind in BILLED:
            alike.setdefault((*_whose(entry), entry.booked), []).append(entry)
    limits: dict[str, list[tuple[str, str]]] = {}
    asked = {scope for same in alike.values() for scope in scopes(same[0])}
    row = QUOTAS.c
    query = select(row.scope, row.unit, row.period).where(budgets.among(session, row.scope, asked))
    for scope, unit, period in await (await session.connection()).execute(query) if asked else ():
        limits.setdefault(scope, []).append((unit, period))
    periods: dict[Budget, str] = {}
    for same in alike.values() if limits else ():
        for whose, (unit, period) in ((scope, limit) for scope in scopes(same[0]) for limit in limits.get(scope, ())):
            budget = Budget(whose, unit, quota.window(period, same[0].booked))
            used[budget] += sum(entry.amount(unit) for entry in same)
            periods[budget] = period
    await budgets.create(session, periods)
    return used


def _drawn(writer: Writer, entries: Iterable[Entry]) -> Counter[Loan]:
    draws: Counter[Loan] = Counter()
    for entry in entries:
        for draw in entry.draws:
            draws[entry.lease_epoch or writer.epoch, draw.budget] += draw.amount
    return +draws


async def recent(session: AsyncSession, *, before: int | None = None, limit: int = 100) -> Sequence[LedgerRow]:
    """The rows written last, newest first; `before` is the id of the last row of the page before."""
    older = () if before is None else (col(LedgerRow.id) < before,)
    return (await session.exec(pick(LedgerRow).where(*older).order_by(col(LedgerRow.id).desc()).limit(min(limit, 1000)))).all()


async def of_request(session: AsyncSession, request_id: str) -> tuple[Sequence[LedgerRow], Sequence[Receipt]]:
    """All that is written of one request, oldest first: its rows and the receipts of its agents."""
    rows = await session.exec(pick(LedgerRow).where(LedgerRow.request_id == request_id).order_by(col(LedgerRow.id)))
    receipts = await session.exec(pick(Receipt).where(Receipt.request_id == request_id).order_by(col(Receipt.attempt), col(Receipt.at)))
    return rows.all(), receipts.all()


async def orgs_of(session: AsyncSession, request_id: str) -> set[str]:
    """The organisations that a request was booked on, whatever the session is confined to."""
    query = select(LEDGER.c.org_id).where(LEDGER.c.request_id == request_id)
    return set((await (await session.connection()).execute(query)).scalars())

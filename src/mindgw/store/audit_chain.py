"""The chain of the audit log: its daily signed heads, what leaves the database for a file, and whether all of it is right.

A head says, with the server's identity key, where the chain stood at the end of a day. The entries since the head before are its segment:
a segment leaves the database whole or not at all, and the chain has an entry that says so. What stands after the last head, and the heads
themselves, can be cut off by whoever may write to the database; against that `Kept` is noted where that writer does not reach.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from typing import Any

import msgspec
from sqlalchemy import CursorResult, RowMapping, delete, func, select
from sqlmodel import col
from sqlmodel import select as rows_of
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.core import chain
from mindgw.store import audit, rows
from mindgw.store.tables import AuditEntry, AuditHead

#: Entries that are in memory at once, and that are hashed before others have their turn.
PAGE = 200
#: The entry that says that a segment has left the database; its object is the day of the head.
ARCHIVE = "audit.archive"

_AUDIT = AuditEntry.__table__  # type: ignore[attr-defined]


#: An entry by the names of its columns.
Entry = Mapping[str, Any] | RowMapping


class Broken(msgspec.Struct, frozen=True):
    """Something that is not as it was written."""

    #: The first entry that it is about.
    seq: int
    what: str


class End(msgspec.Struct):
    """How far the chain was followed."""

    seq: int = 0
    hash: bytes = audit.GENESIS


class Kept(msgspec.Struct, frozen=True):
    """What is known of the chain beside the database."""

    #: The first entry that is linked; those before it are older than the chain. None: nobody knows.
    start: int | None = None
    #: Up to here it went once.
    end: End = msgspec.field(default_factory=End)


NOTHING = Kept()


def transcript(day: str, seq: int, hash: bytes) -> bytes:
    """What the signature of a head is made over."""
    return b"mindgw-audit-head-v1\0" + chain.canonical((day, seq, hash))


async def heads(session: AsyncSession, *where: Any) -> Sequence[AuditHead]:
    """Oldest first."""
    return (await session.exec(rows_of(AuditHead).where(*where).order_by(col(AuditHead.seq)))).all()


async def last(session: AsyncSession) -> End:
    """Where the chain ends now."""
    found = (await _run(session, select(_AUDIT.c.seq, _AUDIT.c.hash).order_by(_AUDIT.c.seq.desc()).limit(1))).first()
    if found is not None:
        return End(found.seq, found.hash or b"")
    known = await heads(session)
    return End(known[-1].seq, known[-1].hash) if known else End()


async def first_linked(session: AsyncSession) -> int:
    """The first entry that is not older than the chain, or will not be."""
    found = (await _run(session, select(func.min(_AUDIT.c.seq)).where(func.length(_AUDIT.c.hash) > 0))).scalar()
    return int(found) if found is not None else (await last(session)).seq + 1


async def has(session: AsyncSession, end: End) -> bool:
    """Whether the chain goes through there, as far as the database can tell: what has left for files is known by its heads."""
    if not end.seq:
        return True
    found = (await _run(session, select(_AUDIT.c.hash).where(_AUDIT.c.seq == end.seq))).first()
    if found is not None:
        return (found.hash or b"") == end.hash
    gone = await heads(session, col(AuditHead.archived_at).is_not(None), col(AuditHead.seq) >= end.seq)
    return bool(gone) and (gone[0].seq != end.seq or gone[0].hash == end.hash)


async def sign(session: AsyncSession, now: datetime, signed: Callable[[bytes], bytes]) -> AuditHead | None:
    """The head of the last day that is over and has entries; None when it has one already. `signed` makes the signature."""
    known = await heads(session)
    before = known[-1] if known else None
    midnight = datetime.combine(now.astimezone(UTC).date(), time(), UTC)
    over = _AUDIT.c.at < midnight, _AUDIT.c.seq > (before.seq if before is not None else 0), func.length(_AUDIT.c.hash) > 0
    latest = select(_AUDIT.c.at, _AUDIT.c.seq, _AUDIT.c.hash).where(*over).order_by(_AUDIT.c.seq.desc()).limit(1)
    found = (await _run(session, latest)).first()
    if found is None:
        return None
    day = found.at.date().isoformat()
    if before is not None and day <= before.day:
        return None  # it came late: the next day's head is its own
    head = AuditHead(day=day, seq=found.seq, hash=found.hash, signature=signed(transcript(day, found.seq, found.hash)))
    await _run(session, rows.insert_once(session, AuditHead).values(**head.model_dump()))  # another server may have been faster
    return head


async def pages(session: AsyncSession, after: int, until: int | None = None) -> AsyncIterator[Sequence[RowMapping]]:
    """Entries behind number `after`, in their order."""
    while True:
        where = [_AUDIT.c.seq > after] + ([_AUDIT.c.seq <= until] if until is not None else [])
        found = (await _run(session, select(_AUDIT).where(*where).order_by(_AUDIT.c.seq).limit(PAGE))).mappings().all()
        if found:
            yield found
        if len(found) < PAGE:
            return
        after = found[-1]["seq"]


async def leave(session: AsyncSession, head: AuditHead, first: int, now: datetime) -> int:
    """Takes a segment out of the database; returns how many entries it had."""
    gone = await _run(session, delete(_AUDIT).where(_AUDIT.c.seq >= first, _AUDIT.c.seq <= head.seq))
    head.archived_at = now
    session.add(head)
    await session.flush()
    return int(gone.rowcount)


async def _run(session: AsyncSession, query: Any) -> CursorResult[Any]:
    result: CursorResult[Any] = await (await session.connection()).execute(query)
    return result


# -- whether it is right -----------------------------------------------------------------------------------------------


def follow(key: bytes, end: End, entries: Sequence[Entry], start: int | None = None) -> Iterator[Broken]:
    """What is wrong with entries that come after `end`, which moves on to the last of them. Those before number `start` may be older than
    the chain, and where it is not known, all before the first link."""
    for entry in entries:
        seq, link = entry["seq"], entry["hash"]
        if seq != end.seq + 1:
            many = seq - end.seq - 1
            yield Broken(end.seq + 1, f"{many} {'entries are' if many > 1 else 'entry is'} missing before number {seq}")
        if link or end.hash != audit.GENESIS or (start is not None and seq >= start):  # else it is older than the chain
            if link != _link(key, end.hash, entry):
                yield Broken(seq, "it is not what was written, or does not follow the one before")
            end.hash = link or b""
        end.seq = seq


def _link(key: bytes, prev: bytes, entry: Entry) -> bytes:
    try:
        return chain.link(key, prev, entry["seq"], [audit.hashed(entry)])
    except (TypeError, ValueError):
        return b""


async def broken(
    session: AsyncSession, key: bytes, verify: Callable[[bytes, bytes], bool], counts: Counter[str], kept: Kept = NOTHING
) -> AsyncIterator[Broken]:
    """All that is wrong with what is in the database; `verify` takes the signature of a head and what it was made over. Counts in `counts`
    what was looked at: entries, those among them that are older than the chain, heads."""
    known = await heads(session)
    for head in known:
        counts["heads"] += 1
        if not verify(head.signature, transcript(head.day, head.seq, head.hash)):
            yield Broken(head.seq, f"the signature of the head of {head.day} is not this server's")
    gone = [head for head in known if head.archived_at is not None]
    end = End(gone[-1].seq, gone[-1].hash) if gone else End()
    vouched = not gone
    at = {head.seq: head for head in known}
    async for page in pages(session, end.seq):
        for entry in page:
            for wrong in follow(key, end, [entry], kept.start):
                yield wrong
            head_here = at.get(entry["seq"])
            if head_here is not None and head_here.hash != entry["hash"]:
                yield Broken(entry["seq"], f"it is not the one that the head of {head_here.day} was signed for")
            vouched = vouched or says_archived(entry, gone[-1])
        counts["entries"] += len(page)
        counts["older than the chain"] += sum(not entry["hash"] for entry in page)
    if not vouched:
        yield Broken(1, f"the head of {gone[-1].day} says that the entries before it were archived, and no entry does")
    async for wrong in _beyond(session, end, known, kept):
        yield wrong


async def _beyond(session: AsyncSession, end: End, known: Sequence[AuditHead], kept: Kept) -> AsyncIterator[Broken]:
    """What should stand behind the last entry that is there."""
    for head in known:
        if head.seq > end.seq:
            yield Broken(end.seq + 1, f"entries up to number {head.seq} are missing, the last one of {head.day}")
    if kept.end.seq > end.seq:
        yield Broken(end.seq + 1, f"entries up to number {kept.end.seq} are missing: the data directory knows how far they went")
    elif not await has(session, kept.end):
        yield Broken(kept.end.seq, "it is not the one that the data directory knows")


def says_archived(entry: Entry, head: AuditHead) -> bool:
    """Whether this entry says that the segment of that head has left the database."""
    told = entry["detail"]
    return bool(entry["action"] == ARCHIVE and entry["object"] == head.day and told.get("hash") == head.hash.hex())

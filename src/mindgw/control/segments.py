"""Signed segments of the audit log: made once a day, written to files when they are old enough, and only then taken out of the database.

A file has one entry a line, as JSON, in their order, and the signed head as its last line. It may be moved anywhere: the chain in the
database goes on from its head, and an entry there says what the file was.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import replica, witness
from mindgw.control.secrets import Secrets
from mindgw.store import audit, audit_chain
from mindgw.store.audit_chain import ARCHIVE, NOTHING, Broken, End, Entry
from mindgw.store.database import Database
from mindgw.store.tables import AuditHead
from mindgw_agent import identity, private_files

log = logging.getLogger("mindgw.audit")

#: Folder of the files in a data directory.
FOLDER = "audit"
#: Who takes segments out.
ACTOR = "server"
#: Largest file that is read.
MAX_FILE = 2**30


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry in a file; fields are those of the table."""

    seq: int
    id: str
    at: datetime
    actor: str
    action: str
    object: str
    detail: dict[str, Any]
    org_id: str | None
    address: str
    outcome: str
    #: In hexadecimal digits.
    hash: str


class Last(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last line of a file: the head. Bytes in hexadecimal digits."""

    day: str
    seq: int
    hash: str
    signature: str


_line = msgspec.json.Decoder(Line).decode
_last = msgspec.json.Decoder(Last).decode


def file_of(directory: Path, day: str) -> Path:
    """Where the segment that ended on this day is archived."""
    return directory / FOLDER / f"{day}.jsonl"


async def tend(database: Database, own: Secrets, directory: Path, keep: timedelta, now: datetime) -> None:
    """Signs the day that is over, and archives segments of days that were over `keep` ago. To be called now and then."""
    async with database.write() as session:
        head = await audit_chain.sign(session, now, partial(identity.sign, own.identity))
    if head is not None:
        log.info("the audit log of %s is signed: it ends with entry %d", head.day, head.seq)
    kept = witness.load(directory) or NOTHING
    oldest = (now - keep).date().isoformat()
    async with database.read() as session:
        due = await audit_chain.heads(session, col(AuditHead.archived_at).is_(None), col(AuditHead.day) < oldest)
    for head in due:
        if not await _archive(database, own, directory, (head, kept.start), now):
            return


async def _archive(database: Database, own: Secrets, directory: Path, segment: tuple[AuditHead, int | None], now: datetime) -> bool:
    """False when the segment is not as it was written: what is wrong stays where it can be looked at. `segment`: its head, and with which
    entry the chain began."""
    head = segment[0]
    async with database.read() as session:
        before = await _before(session, head)
        found = [entry async for page in audit_chain.pages(session, before.seq, head.seq) for entry in page]
    wrong, text = await asyncio.to_thread(_bound, own.audit_key, before, found, segment)
    if wrong or not found or found[-1]["hash"] != head.hash:
        log.error("the audit log of %s is not archived: it is not as it was written; see `mindgw audit verify`", head.day)
        return False
    path = file_of(directory, head.day)
    await asyncio.to_thread(_write, path, text)
    async with database.write() as session:
        fresh = await session.get(AuditHead, head.day, with_for_update=True)
        if fresh is None or fresh.archived_at is not None:
            return True  # another server was faster
        for entry in found:
            if entry["action"] == replica.MARK:  # by which this database is known to be ours
                await audit.record(session, entry["actor"], entry["action"], entry["object"], **entry["detail"])
        told = {"first": found[0]["seq"], "last": head.seq, "hash": head.hash.hex(), "sha256": hashlib.sha256(text).hexdigest()}
        await audit.record(session, ACTOR, ARCHIVE, head.day, **told)
        await audit_chain.leave(session, fresh, found[0]["seq"], now)
    log.info("%d entries of the audit log, up to %s, are archived in %s", len(found), head.day, path)
    return True


def _bound(key: bytes, before: End, found: Sequence[Entry], segment: tuple[AuditHead, int | None]) -> tuple[list[Broken], bytes]:
    """What is wrong with a segment, and its file; a day may have very many entries."""
    head, start = segment
    wrong = list(audit_chain.follow(key, End(before.seq, before.hash), found, start))
    return wrong, b"".join(map(_written, found)) + _end_of(head)


async def _before(session: AsyncSession, head: AuditHead) -> End:
    """The end of the segment before that of `head`."""
    older = await audit_chain.heads(session, col(AuditHead.seq) < head.seq)
    return End(older[-1].seq, older[-1].hash) if older else End()


def _write(path: Path, text: bytes) -> None:
    private_files.make_directory(path.parent)
    private_files.write(path, text)


def _written(entry: Any) -> bytes:
    fields = {name: entry[name] for name in Line.__struct_fields__}
    return msgspec.json.encode({**fields, "hash": (entry["hash"] or b"").hex()}) + b"\n"


def _end_of(head: AuditHead) -> bytes:
    return msgspec.json.encode(Last(day=head.day, seq=head.seq, hash=head.hash.hex(), signature=head.signature.hex())) + b"\n"


# -- whether they are right --------------------------------------------------------------------------------------------


async def broken(
    session: AsyncSession, key: bytes, directory: Path, counts: Counter[str], start: int | None = None
) -> AsyncIterator[Broken]:
    """What is wrong with the files that are there; those that were moved elsewhere are counted. `start`: as in `audit_chain.follow`."""
    end = End()
    for head in await audit_chain.heads(session, col(AuditHead.archived_at).is_not(None)):
        path = file_of(directory, head.day)
        if path.is_file():
            counts["archives"] += 1
            for found in await asyncio.to_thread(check_file, path, key, (end, start), head):
                yield found
        else:
            counts["archives elsewhere"] += 1
        end = End(head.seq, head.hash)


def check_file(path: Path, key: bytes, after: tuple[End, int | None], head: AuditHead) -> list[Broken]:
    """What is wrong with the file of a head; `after`: the end of the segment before, and with which entry the chain began."""
    before, start = after
    end = End(before.seq, before.hash)
    wrong: list[Broken] = []
    try:
        if path.stat().st_size > MAX_FILE:
            return [Broken(before.seq + 1, f"{path.name} is too large to be a segment")]
        *entries, last = path.read_bytes().splitlines()
        for text in entries:
            wrong += audit_chain.follow(key, end, [_read(text)], start)
        ends = _last(last)
    except (OSError, ValueError) as error:
        return [*wrong, Broken(end.seq + 1, f"{path.name} cannot be read after entry {end.seq}: {error}")]
    if (ends.day, ends.seq, ends.hash, ends.signature) != (head.day, head.seq, head.hash.hex(), head.signature.hex()):
        wrong.append(Broken(head.seq, f"the last line of {path.name} is not the head of {head.day}"))
    if (end.seq, end.hash) != (head.seq, head.hash):
        wrong.append(Broken(end.seq + 1, f"{path.name} ends before entry {head.seq}"))
    return wrong


def _read(text: bytes) -> Mapping[str, Any]:
    found = msgspec.structs.asdict(_line(text))
    return {**found, "hash": bytes.fromhex(found["hash"])}

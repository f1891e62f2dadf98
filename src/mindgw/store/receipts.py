"""Receipts of agents, kept as they came: what was signed can be shown and checked by anybody who has the worker's public key."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.errors import Conflict
from mindgw.store import rows
from mindgw.store.tables import Receipt, ReceiptHead


class NewReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """One receipt. Fields are those of the table, where they are explained."""

    seq: int
    tag: bytes = b""
    request_id: str
    attempt: int
    outcome: str
    prompt: int
    completion: int
    cached: int = 0
    source: str
    events: int = 0
    bytes_out: int = 0
    prev: bytes
    hash: bytes
    at: datetime


class Vouched(NamedTuple):
    """A receipt and the signed end of the batch that it came with."""

    receipt: Receipt
    head: ReceiptHead | None


async def head(session: AsyncSession, worker_id: str) -> tuple[int, bytes] | None:
    """Number and link of the last receipt of a worker; None when there is none."""
    query = select(Receipt.seq, col(Receipt.hash)).where(Receipt.worker_id == worker_id).order_by(col(Receipt.seq).desc()).limit(1)
    found = (await session.exec(query)).first()
    return (found[0], found[1]) if found is not None else None


async def append(session: AsyncSession, worker_id: str, new: Sequence[NewReceipt], signature: bytes, at: datetime) -> None:
    """Keeps a batch, in the order of its numbers, whose links and signature the caller has checked; one that came before may come again.
    Raises Conflict when it does not go on from what is kept of this worker: it has lost its memory, or was copied."""
    if not new:
        return
    query = select(Receipt.seq, Receipt.hash).where(Receipt.worker_id == worker_id, col(Receipt.seq).between(new[0].seq - 1, new[-1].seq))
    kept = dict((await session.exec(query)).all())
    if any(kept.get(one.seq, one.hash) != one.hash for one in new) or kept.get(new[0].seq - 1, new[0].prev) != new[0].prev:
        raise Conflict("These receipts do not go on from those that the worker sent before.", code="receipts_forked")
    connection = await session.connection()
    values = [{"worker_id": worker_id, **msgspec.structs.asdict(one)} for one in new]
    await connection.execute(rows.insert_once(session, Receipt), values)
    signed = {"worker_id": worker_id, "seq": new[-1].seq, "hash": new[-1].hash, "signature": signature, "received_at": at}
    await connection.execute(rows.insert_once(session, ReceiptHead), [signed])


async def get(session: AsyncSession, request_id: str) -> list[Vouched]:
    """All receipts of a request, by attempt, each with the signature that covers it."""
    query = select(Receipt).where(Receipt.request_id == request_id).order_by(col(Receipt.attempt), col(Receipt.at))
    return [Vouched(receipt, await _signed(session, receipt)) for receipt in (await session.exec(query)).all()]


async def _signed(session: AsyncSession, receipt: Receipt) -> ReceiptHead | None:
    after = select(ReceiptHead).where(ReceiptHead.worker_id == receipt.worker_id, col(ReceiptHead.seq) >= receipt.seq)
    return (await session.exec(after.order_by(col(ReceiptHead.seq)).limit(1))).first()

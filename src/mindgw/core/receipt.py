"""Does a piece of an agent's chain of receipts fit to what is known of it?

What the signature is worth is for the caller to say: it stands over `wire.transcript_receipts(worker, batch.last, batch.head)`.
"""

from typing import Literal

from msgspec import Struct

from mindgw_agent import wire
from mindgw_agent.wire import Receipt, Receipts

#: order: its own numbers have holes; head: its own hashes do not add up; gap: the beginning of a new chain that is none; missing: what
#: lies between it and what is known was never seen; fork: another chain than the one that is known.
Fault = Literal["order", "head", "gap", "missing", "fork"]


class Broken(Struct, frozen=True):
    """Why a batch is not taken.

    "missing" is what a server sees that was restored from a backup: it may take the agent's word that the rest was acknowledged once, and
    check again with `batch.after` and `batch.prev`. Everything else is a defect or a lie.
    """

    fault: Fault
    why: str


def check(batch: Receipts, worker_id: str, last_seq: int, last_hash: bytes) -> list[tuple[Receipt, bytes]] | Broken:
    """The receipts that are new, each with its hash, where `last_seq` and `last_hash` are the newest that is known (0: none).

    What is known already is left out: agents send again what was not acknowledged. A batch with a `gap` begins a new chain: take it, and
    tell people.
    """
    hashes = _hashes(batch)
    if isinstance(hashes, Broken):
        return hashes
    if batch.gap and batch.prev != wire.anew(worker_id, batch.after, batch.gap):
        return Broken("gap", f"the chain that begins anew behind {batch.after} begins with a wrong hash")
    if batch.after > last_seq and not batch.gap:
        return Broken("missing", f"receipts from {last_seq + 1} to {batch.after} were never seen")
    known = last_hash if last_seq else wire.genesis(worker_id)
    if not batch.gap and batch.after == last_seq and batch.prev != known:
        return Broken("fork", f"the chain goes on behind {last_seq} from another hash than the one that is known")
    pairs = list(zip(batch.receipts, hashes, strict=True))
    if any(receipt.seq == last_seq and hash != known for receipt, hash in pairs):
        return Broken("fork", f"receipt {last_seq} is known with another hash")
    return [pair for pair in pairs if pair[0].seq > last_seq]


def _hashes(batch: Receipts) -> list[bytes] | Broken:
    """The hash of each receipt, recomputed."""
    hashes: list[bytes] = []
    newest = batch.prev
    for seq, receipt in enumerate(batch.receipts, batch.after + 1):
        if receipt.seq != seq:
            return Broken("order", f"receipt {receipt.seq} stands where {seq} belongs")
        newest = wire.chained(newest, receipt)
        hashes.append(newest)
    if newest != batch.head:
        return Broken("head", f"the receipts up to {batch.last} do not give the hash that was signed")
    return hashes

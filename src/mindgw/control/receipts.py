"""Receipts of agents as management sees them, and what they are worth: each is a link of its worker's chain, whose end the worker has
signed, and says what the ledger says."""

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import recount
from mindgw.control.pages import Page
from mindgw.errors import NotFound
from mindgw.store import fleet, ledger, receipts, tenants
from mindgw.store.database import Database
from mindgw.store.entries import TERMINAL
from mindgw.store.receipts import Vouched
from mindgw.store.tables import LedgerRow, Receipt, ReceiptHead, Worker
from mindgw_agent import identity, wire

#: Receipts between one and the signature over it: a batch has far fewer.
REACH = 1000


class SignedHead(Struct, frozen=True, kw_only=True):
    """The end of a batch, as the worker has signed it."""

    #: Number and hash of the last receipt that it covers, and the Ed25519 signature over both; in hex.
    seq: int
    hash: str
    signature: str
    received_at: datetime


class Booked(Struct, frozen=True, kw_only=True):
    """What the ledger says of the same attempt."""

    kind: str
    outcome: str
    tokens_in: int
    tokens_out: int
    tokens_cached: int


class ReceiptView(Struct, frozen=True, kw_only=True):
    """What an agent says that it delivered in one attempt."""

    request_id: str
    attempt: int
    #: Name of the worker, its id when it is not known, and its public key in hex.
    worker: str
    worker_id: str
    public_key: str
    #: Place in the worker's chain, and the hashes of the receipt before and of this one, in hex.
    seq: int
    prev: str
    hash: str
    #: done, cancelled or failed.
    outcome: str
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    #: Who counted: engine, counted or estimated.
    source: str
    #: What the agent wrote to its tunnel.
    events: int
    bytes_out: int
    #: By the agent's clock.
    at: datetime
    #: None: no signature covers it.
    head: SignedHead | None
    #: None: there is no row.
    ledger: Booked | None
    #: yes, or as good as; no; missing: there is no row; incomparable: it ended before its time, so that the agent may well have sent
    #: what no client was given, or somebody only estimated.
    agrees: str
    #: What is wrong with it, for people.
    problems: list[str]
    #: Whether nothing is.
    ok: bool


async def of_request(database: Database, request_id: str) -> Page[ReceiptView]:
    """All receipts of a request, by attempt. Raises NotFound when there is none."""
    async with database.read() as session:
        vouched = await receipts.get(session, request_id)
        if not vouched or not await _is_seen(session, request_id):
            raise NotFound(
                f"There is no receipt of request {request_id[:80]!r}.",
                hint="only attempts that reached an engine have one, and its agent may not have brought it yet: `mindgw ledger show ID`",
            )
        rows, _ = await ledger.of_request(session, request_id)
        return Page([await _view(session, one, rows) for one in vouched])


async def _is_seen(session: AsyncSession, request_id: str) -> bool:
    """Whether the receipts of a request are for whom the session is for: they stand with its rows in the ledger, and without any they are a
    matter of whoever runs the server."""
    view = tenants.view_of(session)
    if view is None:
        return True
    orgs = await ledger.orgs_of(session, request_id)
    return view.org_id in orgs or (view.is_home and not orgs)


async def _view(session: AsyncSession, vouched: Vouched, rows: Sequence[LedgerRow]) -> ReceiptView:
    receipt, head = vouched
    worker = await fleet.worker(session, receipt.worker_id)
    row = next((row for row in rows if row.attempt == receipt.attempt and row.kind in TERMINAL), None)
    agrees = compare(receipt, row)
    problems = [*await _chain_problems(session, vouched), *_signature_problems(vouched, worker)]
    problems += [_DISAGREES[agrees]] if agrees in _DISAGREES else []
    return ReceiptView(
        request_id=receipt.request_id,
        attempt=receipt.attempt,
        worker=worker.name if worker is not None else receipt.worker_id,
        worker_id=receipt.worker_id,
        public_key=worker.public_key.hex() if worker is not None else "",
        seq=receipt.seq,
        prev=receipt.prev.hex(),
        hash=receipt.hash.hex(),
        outcome=receipt.outcome,
        tokens_in=receipt.prompt,
        tokens_out=receipt.completion,
        tokens_cached=receipt.cached,
        source=receipt.source,
        events=receipt.events,
        bytes_out=receipt.bytes_out,
        at=receipt.at,
        head=_signed(head) if head is not None else None,
        ledger=_booked(row) if row is not None else None,
        agrees=agrees,
        problems=problems,
        ok=not problems,
    )


def _signed(head: ReceiptHead) -> SignedHead:
    return SignedHead(seq=head.seq, hash=head.hash.hex(), signature=head.signature.hex(), received_at=head.received_at)


def _booked(row: LedgerRow) -> Booked:
    return Booked(
        kind=row.kind,
        outcome=row.outcome,
        tokens_in=row.prompt_tokens,
        tokens_out=row.completion_tokens,
        tokens_cached=row.cached_tokens,
    )


# -- what it is worth --------------------------------------------------------------------------------------------------

_DISAGREES = {"no": "the ledger has other numbers", "missing": "the ledger has no row of this attempt"}


def compare(receipt: Receipt, row: LedgerRow | None) -> str:
    """Whether the row of the attempt says the same; see `ReceiptView.agrees`."""
    if row is None:
        return "missing"
    if recount.differs(row, _said(receipt)):
        return "no"
    same = (receipt.prompt, receipt.completion) == (row.prompt_tokens, row.completion_tokens)
    comparable = (row.kind, row.outcome, receipt.outcome) == ("settled", "done", "done") and "estimated" not in (row.source, receipt.source)
    return "yes" if same or comparable else "incomparable"


def _said(receipt: Receipt) -> wire.Receipt:
    """As its agent wrote it."""
    return wire.Receipt(
        seq=receipt.seq,
        tag=receipt.tag,
        outcome=receipt.outcome,  # type: ignore[arg-type]
        prompt=receipt.prompt,
        completion=receipt.completion,
        cached=receipt.cached,
        source=receipt.source,  # type: ignore[arg-type]
        events=receipt.events,
        bytes=receipt.bytes_out,
        at=round(receipt.at.timestamp() * 1000),
    )


async def _chain_problems(session: AsyncSession, vouched: Vouched) -> list[str]:
    """From the receipt before it to the end of its batch."""
    receipt, head = vouched
    problems = []
    if wire.chained(receipt.prev, _said(receipt)) != receipt.hash:
        problems.append("its hash is not that of its numbers: they were changed")
    last = min(head.seq if head is not None else receipt.seq, receipt.seq + REACH)
    near = select(Receipt.seq, Receipt.prev, Receipt.hash).where(
        Receipt.worker_id == receipt.worker_id, col(Receipt.seq).between(receipt.seq - 1, last)
    )
    links = {seq: (prev, hash) for seq, prev, hash in (await session.exec(near)).all()}
    begins = wire.genesis(receipt.worker_id) if receipt.seq == 1 else links.get(receipt.seq - 1, (b"", receipt.prev))[1]
    if receipt.prev != begins:
        problems.append("it does not go on from the receipt before it")
    if head is None:
        return problems
    following = range(receipt.seq + 1, head.seq + 1)
    if any(seq not in links or links[seq][0] != links[seq - 1][1] for seq in following) or links[last][1] != head.hash:
        problems.append(f"the chain from it to the signed end, number {head.seq}, is broken")
    return problems


def _signature_problems(vouched: Vouched, worker: Worker | None) -> list[str]:
    receipt, head = vouched
    if head is None:
        return ["no signature covers it"]
    if worker is None:
        return ["its worker is not known, and so nobody knows its public key"]
    message = wire.transcript_receipts(receipt.worker_id, head.seq, head.hash)
    if identity.verify(worker.public_key, head.signature, message):
        return []
    return ["the signature is not that of its worker"]

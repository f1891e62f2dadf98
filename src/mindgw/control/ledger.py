"""The ledger as management sees it: the rows of a request, and whether the books are right."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

from msgspec import Struct
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import scopes
from mindgw.control.amounts import dollars
from mindgw.control.pages import Page
from mindgw.errors import NotFound
from mindgw.store import ledger, verify
from mindgw.store.database import Database
from mindgw.store.tables import LedgerRow
from mindgw.store.verify import Broken

#: Seconds between two words of a check that takes long.
PERIOD = 1.0
#: What is wrong is told one by one up to here, and counted from there on.
MOST = 1000


class EntryView(Struct, frozen=True, kw_only=True):
    """A row of the ledger."""

    id: int
    request_id: str
    attempt: int
    #: settled, estimated and adjust are billed; wasted and refused are not.
    kind: str
    key_id: str
    #: Names of the key, team, organisation and worker, address of the person; their ids when they are not known any more.
    key: str
    user: str
    team: str
    org: str
    worker: str
    model: str
    endpoint: str
    stream: bool
    status: int
    outcome: str
    error_code: str
    #: Negative in a correction that takes something back.
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    #: Who counted: engine, counted or estimated.
    source: str
    #: Tokens beyond what was reserved.
    over: int
    #: Decimal dollars, as text, and which prices said so; "": there was none.
    cost_usd: str
    price_version: str
    #: The UTC day that it is booked on.
    day: str
    started_at: datetime
    queued_ms: int
    ttft_ms: int | None
    total_ms: int
    bytes_out: int
    #: The commit that it came with.
    epoch: int
    seq: int


class Checking(Struct, frozen=True, kw_only=True, tag_field="state", tag="checking"):
    """A check goes on."""

    #: What -> how many of them were looked at.
    checked: dict[str, int]


class Wrong(Struct, frozen=True, kw_only=True, tag_field="state", tag="broken"):
    """Something is wrong."""

    #: I1 to I5, or I7.
    invariant: str
    #: Which row, budget or commit.
    where: str
    what: str


class Checked(Struct, frozen=True, kw_only=True, tag_field="state", tag="done"):
    """A check is over."""

    ok: bool
    #: How many things are wrong, those that were not told one by one too.
    broken: int
    checked: dict[str, int]


Word = Checking | Wrong | Checked


async def entries(database: Database, request_id: str) -> Page[EntryView]:
    """All rows of a request, oldest first. Raises NotFound when there is none."""
    async with database.read() as session:
        rows, _ = await ledger.of_request(session, request_id)
        if not rows:
            raise unknown(request_id)
        return Page(await _views(session, rows))


def unknown(request_id: str) -> NotFound:
    """Nothing is written of this request."""
    hint = "the id is what its client has in x-mindgw-request-id; what is under way is written when it ends"
    return NotFound(f"The ledger has no row of request {request_id[:80]!r}.", hint=hint)


async def check(database: Database, key: bytes) -> AsyncGenerator[Word]:
    """Looks at everything; `key` is that of the chains. Says at least one word in PERIOD seconds, the last one is `Checked`. Raises what
    the database raises."""
    checked: Counter[str] = Counter()
    wrong: asyncio.Queue[Broken] = asyncio.Queue(MOST)
    looking = asyncio.create_task(_look(database, key, checked, wrong))
    number = 0
    try:
        while not (looking.done() and wrong.empty()):
            found = await _next(wrong, looking)
            number += found is not None
            if found is None and not looking.done():
                yield Checking(checked=dict(checked))
            elif found is not None and number <= MOST:
                yield Wrong(invariant=found.invariant, where=found.where, what=found.what)
        await looking
    finally:
        looking.cancel()
        await asyncio.wait([looking])
    yield Checked(ok=not number, broken=number, checked=dict(checked))


async def _look(database: Database, key: bytes, checked: Counter[str], wrong: "asyncio.Queue[Broken]") -> None:
    async with database.read() as session:
        async for found in verify.broken(session, key, checked):
            await wrong.put(found)


async def _next(wrong: "asyncio.Queue[Broken]", looking: "asyncio.Task[None]") -> Broken | None:
    """The next thing that is wrong; None when there was none for PERIOD seconds, or when all was looked at."""
    getting = asyncio.ensure_future(wrong.get())
    try:
        await asyncio.wait([getting, looking], timeout=PERIOD, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()


async def _views(session: AsyncSession, rows: Sequence[LedgerRow]) -> list[EntryView]:
    columns = {"key": "key_id", "user": "user_id", "team": "team_id", "org": "org_id", "worker": "worker_id"}
    ids = {kind: {getattr(row, column) or "" for row in rows} for kind, column in columns.items()}
    names = {kind: await scopes.names(session, kind, some) for kind, some in ids.items()}
    return [_view(row, {kind: names[kind][getattr(row, column) or ""] for kind, column in columns.items()}) for row in rows]


def _view(row: LedgerRow, named: dict[str, str]) -> EntryView:
    return EntryView(
        id=row.id or 0,
        request_id=row.request_id,
        attempt=row.attempt,
        kind=row.kind,
        key_id=row.key_id,
        model=row.model,
        endpoint=row.endpoint,
        stream=row.stream,
        status=row.status,
        outcome=row.outcome,
        error_code=row.error_code,
        tokens_in=row.prompt_tokens,
        tokens_out=row.completion_tokens,
        tokens_cached=row.cached_tokens,
        source=row.source,
        over=row.over,
        cost_usd=dollars(row.cost),
        price_version=row.price_version,
        day=row.day,
        started_at=row.started_at,
        queued_ms=row.queued_ms,
        ttft_ms=row.ttft_ms,
        total_ms=row.total_ms,
        bytes_out=row.bytes_out,
        epoch=row.epoch,
        seq=row.seq,
        **named,
    )

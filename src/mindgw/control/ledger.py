"""The ledger as management sees it: the rows of a request, and whether the books are right."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime

from msgspec import Struct
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.control import scopes, search
from mindgw.control.amounts import dollars
from mindgw.control.pages import Page
from mindgw.errors import NotFound
from mindgw.store import ledger, verify
from mindgw.store.database import Database
from mindgw.store.tables import LedgerRow
from mindgw.store.verify import Broken

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

    #: I1 to I7.
    invariant: str
    #: Which row, budget or commit.
    where: str
    what: str


class HeadView(Struct, frozen=True):
    """Where a chain ends."""

    epoch: int
    seq: int
    #: In hexadecimal digits.
    hash: str


class Checked(Struct, frozen=True, kw_only=True, tag_field="state", tag="done"):
    """A check is over."""

    ok: bool
    #: How many things are wrong, those that were not told one by one too.
    broken: int
    checked: dict[str, int]
    #: The last commits of the chains that no later one goes on from: what was cut off after one that was noted elsewhere is missed there.
    heads: list[HeadView] = []


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
    """Looks at everything; `key` is that of the chains. Says at least one word in `search.PERIOD` seconds, the last one is `Checked`.
    Raises what the database raises."""
    checked: Counter[str] = Counter()
    heads: list[HeadView] = []
    number = 0

    async def look(session: AsyncSession) -> AsyncIterator[Broken]:
        async for found in verify.broken(session, key, checked):
            yield found
        heads.extend(HeadView(head.epoch, head.seq, head.hash.hex()) for head in await verify.heads(session))

    async with aclosing(search.follow(database, look)) as findings:
        async for found in findings:
            number += found is not None
            if found is None:
                yield Checking(checked=dict(checked))
            elif number <= MOST:
                yield Wrong(invariant=found.invariant, where=found.where, what=found.what)
    yield Checked(ok=not number, broken=number, checked=dict(checked), heads=heads)


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

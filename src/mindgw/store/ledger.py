"""The ledger of finished requests: rows come in batches, each is counted once, none is ever changed."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store.tables.ledger import Usage


class Draw(msgspec.Struct, frozen=True):
    """What a settled attempt takes out of a lease."""

    scope: str
    unit: str
    window: str
    amount: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A row to be written: what became of one attempt. Fields are those of the table, where they are explained, but for the last three."""

    request_id: str
    attempt: int = 1
    kind: str = "settled"
    #: Empty: the day of `started_at`.
    day: str = ""
    cost: int = 0
    price_version: str = ""
    over: int = 0
    key_id: str
    user_id: str | None = None
    team_id: str | None = None
    org_id: str
    model: str
    worker_id: str = ""
    endpoint: str
    stream: bool = False
    status: int
    outcome: str
    error_code: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    source: str = ""
    queued_ms: int = 0
    ttft_ms: int | None = None
    total_ms: int = 0
    bytes_out: int = 0
    started_at: datetime
    #: What leaves leases with it, and of which epoch's; 0: the writer's own.
    draws: tuple[Draw, ...] = ()
    lease_epoch: int = 0
    #: It comes from a receipt, after its server had ended: other attempts of the request may be in the ledger already.
    recovered: bool = False


#: Fields of an entry that are columns of the table.
COLUMNS = Entry.__struct_fields__[:-3]


async def append(session: AsyncSession, rows: Sequence[Entry]) -> None:
    """Adds rows; one whose request id is there already is left out, so a batch may be sent again."""
    if not rows:
        return
    postgres = session.get_bind().dialect.name == "postgresql"
    insert = postgresql.insert(Usage) if postgres else sqlite.insert(Usage)
    await (await session.connection()).execute(
        insert.on_conflict_do_nothing(), [{name: getattr(row, name) for name in Usage.model_fields if name != "id"} for row in rows]
    )


async def recent(session: AsyncSession, *, before: int | None = None, limit: int = 100) -> Sequence[Usage]:
    """The rows written last, newest first; `before` is the id of the last row of the page before."""
    older = () if before is None else (col(Usage.id) < before,)
    return (await session.exec(select(Usage).where(*older).order_by(col(Usage.id).desc()).limit(min(limit, 1000)))).all()

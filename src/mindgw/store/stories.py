"""What became of requests, moment by moment. Written in batches when they are over, never changed, gone after some days."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Dialect, and_, delete, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import defer
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from mindgw.store import ids, rows, tables
from mindgw.store.tables import Story as Row

#: Rows that one transaction takes away, and that one look finds to be taken away.
STEP, LOT = 1000, 10_000
#: The part of all rows that one organisation may have, and one API key, where others need room: 1 of so many.
SHARES = 10
#: Rows of an organisation up to which those of its keys are counted one by one; and how many others one is looked at for, by the last
#: character of its id, which is random.
EXACT = 20_000
_PART, _SAMPLED = 32, "0"
_TABLE = tables.metadata.tables["stories"]

#: The largest number that is told: a caller may make up any.
LARGEST = 2**53


class Choice(Struct, frozen=True, omit_defaults=True):
    """Why a worker was taken, where there were several. Tokens and seconds are those that were expected."""

    strategy: str
    #: (id, seconds that they were compared by) of those that were looked at, the best first; empty: the strategy asks for no such thing.
    considered: tuple[tuple[str, float], ...] = ()
    #: Of the one that was taken: the prompt, what it remembered of it, loading the model, what was before it there, reading.
    prompt: int = 0
    cached: int = 0
    cold: float = 0.0
    ahead: float = 0.0
    reading: float = 0.0


class Moment(Struct, frozen=True, omit_defaults=True):
    """Something that happened to a request. What a kind has no use for is left as it is."""

    #: Microseconds since it came.
    at: int
    #: arrived, identified, admitted, waited, stood, moved, funding, funded, sent, first_byte, turned_down, failed, left, omitted or ended.
    what: str
    #: sent: first, retry or hedge; identified: where from the key was known, memory or database.
    kind: str = ""
    #: Id of a worker, and what it calls the model.
    worker: str = ""
    model: str = ""
    #: sent, moved: tags that the worker must have.
    where: tuple[str, ...] = ()
    #: Code of an error; of `left` and `ended` how it ended.
    code: str = ""
    #: An HTTP status: the engine's of `failed`, the caller's of `ended`.
    status: int = 0
    #: Where it stood, 1 is next, and the seconds until its turn.
    position: int = 0
    eta: float | None = None
    #: omitted: how many.
    count: int = 0
    choice: Choice | None = None


class Limit(Struct, frozen=True, omit_defaults=True):
    """A limit that a request fell under."""

    #: Such as team:ID.
    scope: str
    #: tokens, usd, rpm, tpm or concurrency; money in millionths of a dollar.
    unit: str
    limit: int
    #: Of quotas: how long it counts, and what it does: block, soft, queue-low, alert or shadow.
    period: str = ""
    mode: str = ""


class Document(Struct, frozen=True, omit_defaults=True):
    """What no column has."""

    endpoint: str = ""
    stream: bool = False
    #: Bytes of the request, its tokens as they were estimated, and the most that its answer might have.
    size: int = 0
    prompt: int = 0
    cap: int | None = None
    #: Seconds within which its answer had to begin.
    deadline: float | None = None
    #: Name of its route, and how a worker was chosen if that was not the server's own way.
    route: str = ""
    strategy: str = ""
    #: Its class in the queue when it was over.
    priority: str = ""
    #: What its caller is bound to, such as region=eu.
    home: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    #: Who served it, with the tags that it was bound to.
    served_by: str = ""
    #: What kind of row the ledger has of its end, what that costs in millionths of a dollar, who counted, and tokens that were remembered.
    billed: str = ""
    cost: int = 0
    price_version: str = ""
    source: str = ""
    cached: int = 0
    moments: tuple[Moment, ...] = ()


class Story(Struct, frozen=True, kw_only=True):
    """One request. Fields are those of the table, where they are explained."""

    id: str = ""
    request_id: str
    org_id: str
    team_id: str | None = None
    user_id: str | None = None
    key_id: str
    end_user: str = ""
    asked: str
    model: str
    worker_id: str = ""
    outcome: str
    status: int
    error_code: str = ""
    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    queued_ms: int = 0
    ttft_ms: int | None = None
    total_ms: int = 0
    speed: float | None = None
    started_at: datetime
    document: bytes = b""


COLUMNS = Story.__struct_fields__
pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Document).decode


def unpack(document: bytes) -> Document:
    """What `pack` made of it; an empty one of what a later release has written in another way."""
    try:
        return _unpack(document)
    except msgspec.DecodeError:
        return Document()


async def append(session: AsyncSession, told: Sequence[Story]) -> None:
    """Adds stories; of a request that has one already it is left out, so a batch may be sent again."""
    if not told:
        return
    connection = await session.connection()
    stored = [
        msgspec.structs.replace(one, started_at=_as_text(one.started_at)) if connection.dialect.name == "sqlite" else one for one in told
    ]
    values = [msgspec.structs.astuple(one) for one in stored]
    await connection.exec_driver_sql(_insert(connection.dialect), values)


def _as_text(moment: datetime) -> str:
    """As SQLAlchemy stores it in SQLite."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


@lru_cache(maxsize=4)
def _insert(dialect: Dialect) -> str:
    """The statement that adds a row, for the driver itself: what goes round its types is ten times as slow."""
    once = postgresql.insert(_TABLE) if dialect.name == "postgresql" else sqlite.insert(_TABLE)
    compiled = once.on_conflict_do_nothing().compile(dialect=dialect, column_keys=list(COLUMNS))
    assert getattr(compiled, "positiontup", None) == list(COLUMNS)
    return str(compiled)


async def page(session: AsyncSession, *where: Any, before: str | None = None, limit: int = rows.PAGE) -> Sequence[Row]:
    """The latest stories, newest first, without their documents; `before` is the id of the last one of the page before."""
    older = () if before is None else (col(Row.id) < before,)
    wanted = select(Row).options(defer(Row.document, raiseload=True))  # type: ignore[arg-type]
    return (await session.exec(wanted.where(*older, *where).order_by(col(Row.id).desc()).limit(min(limit, rows.PAGE)))).all()


async def find(session: AsyncSession, request_id: str) -> Story | None:
    """The story of a request; None: there is none, or not yet."""
    found = (await session.exec(select(Row).where(col(Row.request_id) == request_id))).first()
    return Story(**{name: getattr(found, name) for name in COLUMNS}) if found is not None else None


async def surplus(session: AsyncSession, before: datetime, most: int) -> list[str]:
    """Ids of stories that should go: what was over before a moment, and when there are more than `most` of the rest about the oldest; of
    the organisations that have most, there of the keys that have most, down to a share, a tenth of `most`, and then of all. At most LOT; to
    be called until there are fewer. It takes a while, and only reads."""
    young = col(Row.id) >= ids.bound(before.timestamp())
    found = await _oldest(session, LOT, ~young)
    counts = Counter(dict((await session.exec(select(Row.org_id, func.count()).where(young).group_by(col(Row.org_id)))).all()))
    excess, share = min(counts.total() - most, LOT - len(found)), most // SHARES
    crowd: list[str] = []
    for org_id, beyond in _beyond(counts, excess, share):
        crowd += await _of_org(session, (org_id, counts[org_id]), beyond, share, young)
    return found + crowd + await _oldest(session, excess - len(crowd), young, but=crowd)


async def drop(session: AsyncSession, doomed: Sequence[str]) -> None:
    """Takes away those of these ids; STEP at most in one go, or others wait for long."""
    await session.exec(delete(Row).where(col(Row.id).in_(doomed)))


async def _of_org(session: AsyncSession, org: tuple[str, int], excess: int, share: int, young: ColumnElement[bool]) -> list[str]:
    """So many of an organisation, given how many it has. Of many the keys are told by every 32nd row: no index has both."""
    org_id, count = org
    part = 1 if count <= EXACT else _PART
    of_org = and_(young, col(Row.org_id) == org_id)
    looked_at = of_org if part == 1 else and_(of_org, col(Row.id).endswith(_SAMPLED))
    keys = select(Row.key_id, func.count(), func.min(Row.id)).where(looked_at).group_by(col(Row.key_id))
    counts, first = Counter[str](), dict[str, str]()
    for key_id, seen, oldest in (await session.exec(keys)).all():
        counts[key_id], first[key_id] = seen * part, oldest
    found: list[str] = []
    for key_id, beyond in _beyond(counts, excess, share):
        found += await _oldest(session, beyond, of_org, col(Row.key_id) == key_id, col(Row.id) >= first[key_id])
    return found + await _oldest(session, excess - len(found), of_org, but=found)


def _beyond(counts: Counter[str], excess: int, share: int) -> Iterator[tuple[str, int]]:
    """Who has to give how many, so that `excess` are given and the largest come down to one level, but to no less than a share."""
    ordered = counts.most_common()
    level = total = 0
    for number, (_, count) in enumerate(ordered, 1):
        total += count
        level = max(share, (total - excess) // number)
        if number == len(ordered) or level >= ordered[number][1]:
            break
    for name, count in ordered:
        given = min(excess, count - level)
        if given <= 0:
            break
        excess -= given
        yield name, given


async def _oldest(session: AsyncSession, count: int, *where: ColumnElement[bool], but: Sequence[str] = ()) -> list[str]:
    if count <= 0:
        return []
    known = set(but)
    rows = await session.exec(select(Row.id).where(*where).order_by(col(Row.id)).limit(count + len(known)))
    return [id for id in rows.all() if id not in known][:count]
